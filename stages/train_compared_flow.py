"""Train one network on a selection's labelled frames, with the flow consistency loss on unlabelled ones."""

from pathlib import Path

from semivid.flow.run import train_with_flow
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    args = stage.args
    train_with_flow(stage, Path(f"splits/selected/{args.selection}-{args.seed}.txt"), args.labels)


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.flow_baseline", "methods.flow_consistency"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
