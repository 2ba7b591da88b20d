"""Phase 2 of depth pretraining: from phase 1's decoder and pose network, with the encoder trained too."""

from __future__ import annotations

import torch

from semivid.depth.networks import build_depth_model
from semivid.depth.run import train_depth
from semivid.models.checkpoints import load_parts, save_parts
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage
from semivid.training.loop import finish, write_curves
from semivid.training.rng import torch_seed

PHASE_1 = "models/depth_pretrain"


def finetune(stage: Stage, name: str, feature_weight: float) -> None:
    """Write the depth model ``models/NAME`` and its curves ``runs/NAME``.

    feature_weight: of the distance to the ImageNet encoder's features (Three Ways section 3.1); 0 leaves it out.
    """
    options, network = stage.params.depth_finetune, stage.params.depth_network
    torch.manual_seed(torch_seed(options.seed, "depth weights"))
    model = build_depth_model(**network.arguments())
    load_parts({part: module for part, module in model.parts().items() if part != "encoder"}, PHASE_1)
    size = stage.params.frames.size
    history = train_depth(model, options, stage, size=size, feature_weight=feature_weight, inputs=[PHASE_1])
    with replacing(f"models/{name}") as out, replacing(f"runs/{name}") as curves:
        save_parts(model.parts(), out)
        write_curves(curves, history)
    finish(stage.work)
