"""A run of this checkout with all that is needed to look at it, for commands that are no stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semivid.data.index import Classes, Index, read_classes, read_index
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.evaluation.trained import Predict, trained_network, with_weights
from semivid.models.checkpoints import read_state
from semivid.models.multitask import build_multitask_net
from semivid.pipeline.params import Params, read_params
from semivid.training.runtime import Runtime


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
    """Open ``models/RUN.safetensors`` with the params.yaml at hand.

    Raises UserError if there is no such run, or it was trained with another network or other classes.
    """
    if not Path(f"models/{run}.safetensors").exists():
        there = ", ".join(sorted(p.stem for p in Path("models").glob("*-*.safetensors"))[:8])
        raise UserError(f"models/{run}.safetensors: no such run{f'; there are {there}, ...' if there else ''}")
    params = read_params()
    runtime = Runtime(params.evaluate.threads, params.train.precision)
    classes = read_classes(Path("data/prepared/classes.json"))
    if any(key.startswith("mtl_decoder.") for key in read_state(f"models/{run}.safetensors")):
        arguments = params.multitask_network.arguments() | {"weights": "none", "pose_weights": "none"}
        predict = with_weights(build_multitask_net(len(classes.names), **arguments), run, runtime, flip)
    else:
        predict = trained_network(run, len(classes.names), params.network, runtime, flip)
    return OpenRun(
        params, classes, read_index(Path("data/prepared/index.csv")), store or FrameStore(), runtime, predict
    )
