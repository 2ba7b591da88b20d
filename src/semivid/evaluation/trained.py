"""A trained network, ready to segment whole frames, and what its scores must say of how they were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from semivid.data.index import Classes, Index, read_classes, read_index
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.evaluation.inference import flip_averaged
from semivid.models.build import build_network
from semivid.models.checkpoints import load_strictly, read_state
from semivid.pipeline.params import Block, Params, read_params
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


@dataclass(frozen=True)
class OpenRun:
    """A trained network with all that is needed to look at it: parameters, classes, frames, device."""

    params: Params
    classes: Classes
    index: Index
    store: FrameStore
    runtime: Runtime
    predict: Predict


def open_run(run: str, flip: bool = False, store: FrameStore | None = None) -> OpenRun:
    """Open ``models/RUN.safetensors`` with the params.yaml at hand; for commands that are no stages.

    Raises UserError if there is no such run, or it was trained with another network or other classes.
    """
    if not Path(f"models/{run}.safetensors").exists():
        there = ", ".join(sorted(p.stem for p in Path("models").glob("*-*.safetensors"))[:8])
        raise UserError(f"models/{run}.safetensors: no such run{f'; there are {there}, ...' if there else ''}")
    params = read_params()
    runtime = Runtime(params.evaluate.threads, params.train.precision)
    classes = read_classes(Path("data/prepared/classes.json"))
    predict = trained_network(run, len(classes.names), params.network, runtime, flip)
    return OpenRun(
        params, classes, read_index(Path("data/prepared/index.csv")), store or FrameStore(), runtime, predict
    )


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
