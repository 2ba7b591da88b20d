"""Train one network with pseudo labels of a mean teacher, on mixed frames or unmixed ones (mean teacher, ClassMix)."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.mix_run import train_on_mixes


def main(stage: Stage) -> None:
    args = stage.args
    train_on_mixes(stage, Path(f"splits/selected/{args.selection}-{args.seed}.txt"), FrameStore())


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.{method}"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
