"""Depth pretraining, phase 2: the encoder too, held near its ImageNet features."""

from semivid.depth.finetune import finetune
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    finetune(stage, "depth_finetune", stage.params.depth_finetune.feature_distance)


if __name__ == "__main__":
    run_stage(main, ["frames.size", "depth_network", "depth_finetune"])
