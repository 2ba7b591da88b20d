"""Evaluate one run of the tables over methods: scores on labelled frames, agreement along the flow, training hours."""

from semivid.evaluation.method_run import evaluate_run
from semivid.evaluation.trained import trained_network
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    network, flip = stage.params.network, stage.params.evaluate.flip
    method, _, selection = stage.args.row.partition("-")
    evaluate_run(
        stage,
        method,
        selection,
        network,
        lambda classes, runtime: trained_network(stage.run, classes, network, runtime, flip),
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["data.name", "frames.size", "network", "train", "evaluate"],
        {"row": str, "labels": int, "seed": int},
    )
