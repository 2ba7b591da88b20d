"""Train one network with pseudo labels of a mean teacher on frames mixed by their disparity (DepthMix)."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.mix_run import train_on_mixes


def main(stage: Stage) -> None:
    args, disparity = stage.args, Path("data/disparity")
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    train_on_mixes(stage, selection, FrameStore(disparity=disparity), [disparity])


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.{method}"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
