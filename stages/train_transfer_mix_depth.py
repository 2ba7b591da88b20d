"""Train one network, started from self-supervised depth, with pseudo labels on frames mixed by their disparity."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.models.transfer import transfer_depth
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.mix_run import train_on_mixes


def main(stage: Stage) -> None:
    args, parts = stage.args, stage.params.transfer.model_dump()
    depth, disparity = Path(stage.params.depth_model), Path("data/disparity")
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    train_on_mixes(
        stage,
        selection,
        FrameStore(disparity=disparity),
        [depth, disparity],
        lambda student: transfer_depth(student, depth, **parts),
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["depth_model", "frames.size", "network", "train", "methods.{method}", "transfer"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
