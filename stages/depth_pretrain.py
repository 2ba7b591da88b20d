"""Depth pretraining, phase 1: decoder and pose network, the encoder frozen at its ImageNet weights."""

import torch

from semivid.depth.networks import build_depth_model
from semivid.depth.run import train_depth
from semivid.models.checkpoints import save_parts
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.loop import finish, write_curves
from semivid.training.rng import torch_seed


def main(stage: Stage) -> None:
    options, network = stage.params.depth_pretrain, stage.params.depth_network
    torch.manual_seed(torch_seed(options.seed, "depth weights"))
    model = build_depth_model(**network.arguments())
    model.start_from(options.initial_disparity, options.initial_motion)
    history = train_depth(model, options, stage, size=stage.params.frames.size)
    parts = {name: part for name, part in model.parts().items() if name != "encoder"}  # phase 2 starts from ImageNet
    with replacing("models/depth_pretrain") as out, replacing("runs/depth_pretrain") as curves:
        save_parts(parts, out)
        write_curves(curves, history)
    finish(stage.work)


if __name__ == "__main__":
    run_stage(main, ["frames.size", "depth_network", "depth_pretrain"])
