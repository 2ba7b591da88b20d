"""Train one network on a share of the labelled frames, with the flow consistency loss on unlabelled ones."""

from pathlib import Path

from semivid.flow.run import train_with_flow
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    train_with_flow(stage, Path(f"splits/fractions/{stage.args.seed}/{stage.args.percent}.txt"), labels=None)


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.flow_baseline", "methods.flow_consistency"],
        {"method": str, "percent": int, "seed": int},
    )
