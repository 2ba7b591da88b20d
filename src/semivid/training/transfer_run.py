"""One training on labelled frames from the weights of a depth model: what the stages of both models share."""

from __future__ import annotations

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.methods.supervised import build
from semivid.models.transfer import transfer_depth
from semivid.pipeline.stage import Stage
from semivid.training.run import labelled_frames, read_prepared, train


def train_from_depth(stage: Stage, depth: Path) -> None:
    """Train with `methods.METHOD` of params.yaml, a `Supervised` block; `transfer` says which parts `depth` gives.

    Raises UserError if the depth model is missing or does not fit the network.
    """
    args, p = stage.args, stage.params
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    options, parts = getattr(p.methods, args.method), p.transfer.model_dump()
    data = read_prepared(FrameStore())
    train(
        stage,
        data,
        labelled_frames(data, selection, args.labels),
        lambda student, runtime: build(student, options, p.train, runtime),
        inputs=[selection, depth],
        start=lambda student: transfer_depth(student, depth, **parts),
    )
