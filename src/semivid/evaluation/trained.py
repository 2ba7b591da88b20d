"""A trained network, ready to segment whole frames, and what its scores must say of how they were made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from semivid.evaluation.inference import flip_averaged
from semivid.models.build import build_network
from semivid.models.checkpoints import load_strictly, read_state
from semivid.pipeline.params import Block
from semivid.training.runtime import Runtime

Predict = Callable[[torch.Tensor], torch.Tensor]


def trained_network(run: str, num_classes: int, options, runtime: Runtime, flip: bool = False) -> Predict:
    """Class logits float32 (B, C, H, W) of RGB frames float (B, 3, H, W) in [0, 1], by ``models/RUN.safetensors``.

    options: the block `network`. flip: logits averaged with those of the mirrored frame.
    Raises UserError if the file is missing or belongs to another network.
    """
    return with_weights(build_network(num_classes, options, trained=True), run, runtime, flip)


def with_weights(network: torch.nn.Module, run: str, runtime: Runtime, flip: bool = False) -> Predict:
    """The same for a network at hand. Raises UserError as `trained_network` does."""
    weights = Path(f"models/{run}.safetensors")
    load_strictly(network, read_state(weights), str(weights))
    runtime.place(network).eval()

    def predict(images: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            return network(images).float()

    return flip_averaged(predict) if flip else predict


def protocol(params, frames: int, network: Block | None = None) -> dict[str, str | int]:
    """How numbers were made; runs that differ in it never share a table.

    params: data.name, frames.size, network, train, evaluate. frames: how many were evaluated. network: its block, if
    not `network`.
    """
    network, train, evaluate = network or params.network, params.train, params.evaluate
    return {
        "data": params.data.name,
        "network": network.title,
        "encoder_weights": Path(network.weights).name,
        "size": "x".join(map(str, params.frames.size)),
        "crop": "x".join(map(str, train.crop)),
        "batch_size": train.batch_size,
        "evaluation": "last, flip" if evaluate.flip else "last",
        "eval_split": evaluate.split,
        "n_eval_frames": frames,
    }
