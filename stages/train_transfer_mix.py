"""Train one network, started from self-supervised depth, with pseudo labels of a mean teacher."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.models.transfer import transfer_depth
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.mix_run import train_on_mixes


def main(stage: Stage) -> None:
    args, depth, parts = stage.args, Path(stage.params.depth_model), stage.params.transfer.model_dump()
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    train_on_mixes(stage, selection, FrameStore(), [depth], lambda student: transfer_depth(student, depth, **parts))


if __name__ == "__main__":
    run_stage(
        main,
        ["depth_model", "frames.size", "network", "train", "methods.{method}", "transfer"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
