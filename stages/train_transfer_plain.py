"""Train one network, started from depth that was learnt without feature distance, on labelled frames alone."""

from pathlib import Path

from semivid.pipeline.stage import Stage, run_stage
from semivid.training.transfer_run import train_from_depth


def main(stage: Stage) -> None:
    train_from_depth(stage, Path("models/depth_finetune_plain"))


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.{method}", "transfer"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
