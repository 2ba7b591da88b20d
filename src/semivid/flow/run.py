"""One training with the flow consistency loss: what its stages, of shares or of numbers of labels, share."""

from __future__ import annotations

from pathlib import Path

from semivid.data.streams import Stream
from semivid.flow.samples import FlowSamples
from semivid.flow.store import FlowStore
from semivid.flow.unlabelled import unlabelled_frames
from semivid.methods.flow_consistency import build
from semivid.pipeline.stage import Stage
from semivid.training.run import labelled_frames, read_prepared, train

FLOW = Path("data/flow")


def train_with_flow(stage: Stage, selection: Path, labels: int | None) -> None:
    """Train on the first `labels` frames of the list at `selection` (None: all), and on the flow of all others.

    Raises UserError if there are no unlabelled frames.
    """
    options, methods = stage.params.train, stage.params.methods
    steps, loss = methods.flow_baseline, methods.flow_consistency
    data = read_prepared(FlowStore(FLOW))
    samples = FlowSamples(
        data.store, options.crop, options.flip, options.scale, loss.discard_bottom, loss.consistent_only
    )
    frames = unlabelled_frames(data.index, steps.unlabelled)
    train(
        stage,
        data,
        labelled_frames(data, selection, labels),
        lambda student, runtime: build(student, steps, loss, options, runtime),
        [Stream("unlabelled", frames, steps.unlabelled_batch_size, stage.args.seed, samples)],
        [selection, FLOW],
    )
