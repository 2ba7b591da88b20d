"""Depth pretraining, phase 2 without feature distance: what the table of ablations compares `depth_finetune` with."""

from semivid.depth.finetune import finetune
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    finetune(stage, "depth_finetune_plain", feature_weight=0.0)


if __name__ == "__main__":
    run_stage(
        main,
        [
            "frames.size",
            "depth_network",
            "depth_finetune.iterations",
            "depth_finetune.batch_size",
            "depth_finetune.crop",
            "depth_finetune.lr",
            "depth_finetune.pose_lr",
            "depth_finetune.milestones",
            "depth_finetune.min_depth",
            "depth_finetune.max_depth",
            "depth_finetune.auto_mask",
            "depth_finetune.encoder_statistics",
            "depth_finetune.flip",
            "depth_finetune.color_jitter",
            "depth_finetune.intrinsics",
            "depth_finetune.precision",
            "depth_finetune.seed",
            "depth_finetune.threads",
        ],
    )
