"""Evaluate one run of the multi-task network, as evaluate_methods does those of the common network."""

from semivid.evaluation.method_run import evaluate_run
from semivid.evaluation.trained import with_weights
from semivid.models.multitask import build_multitask_net
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    args, network, flip = stage.args, stage.params.multitask_network, stage.params.evaluate.flip
    arguments = network.arguments() | {"weights": "none", "pose_weights": "none"}
    evaluate_run(
        stage,
        args.method,
        args.selection,
        network,
        lambda classes, runtime: with_weights(build_multitask_net(classes, **arguments), stage.run, runtime, flip),
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["data.name", "frames.size", "multitask_network", "train", "evaluate"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
