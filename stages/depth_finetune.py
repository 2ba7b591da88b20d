"""Depth pretraining, phase 2: the encoder too, held near its ImageNet features."""

import torch

from semivid.depth.networks import build_depth_model
from semivid.depth.run import train_depth
from semivid.models.checkpoints import load_parts, save_parts
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.loop import finish, write_curves
from semivid.training.rng import torch_seed

PHASE_1 = "models/depth_pretrain"


def main(stage: Stage) -> None:
    options, network = stage.params.depth_finetune, stage.params.depth_network
    torch.manual_seed(torch_seed(options.seed, "depth weights"))
    model = build_depth_model(**network.arguments())
    load_parts({name: part for name, part in model.parts().items() if name != "encoder"}, PHASE_1)
    history = train_depth(
        model, options, stage, size=stage.params.frames.size, feature_weight=options.feature_distance, inputs=[PHASE_1]
    )
    with replacing("models/depth_finetune") as out, replacing("runs/depth_finetune") as curves:
        save_parts(model.parts(), out)
        write_curves(curves, history)
    finish(stage.work)


if __name__ == "__main__":
    run_stage(main, ["frames.size", "depth_network", "depth_finetune"])
