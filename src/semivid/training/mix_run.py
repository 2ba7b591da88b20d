"""One training with pseudo labels on mixed frames: what the stages of mean teacher, ClassMix and DepthMix share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from semivid.data.mix_samples import MixSamples, frames_to_mix
from semivid.data.store import FrameStore
from semivid.data.streams import Stream
from semivid.methods.pseudo_label import build
from semivid.pipeline.stage import Stage
from semivid.training.run import labelled_frames, read_prepared, train


def train_on_mixes(
    stage: Stage,
    selection: Path,
    store: FrameStore,
    inputs: Sequence[Path] = (),
    start: Callable[[nn.Module], object] | None = None,
) -> None:
    """Train with `methods.METHOD` of params.yaml, a `PseudoLabel` block, on the first frames of `selection`.

    store: with disparities, if the method's mask reads them. inputs, start: as in `semivid.training.run.train`; the
    teacher begins as a copy of what `start` makes.
    Raises UserError if there are no frames to mix.
    """
    args, options, shared = stage.args, getattr(stage.params.methods, stage.args.method), stage.params.train
    data = read_prepared(store)
    labelled = labelled_frames(data, selection, args.labels)
    known = [f.frame for f in labelled] if options.ground_truth else None
    samples = MixSamples(store, shared.crop, shared.flip, shared.scale, options.disparity, known)
    frames = frames_to_mix(data.index, labelled, options.frames)
    train(
        stage,
        data,
        labelled,
        lambda student, runtime: build(student, options, shared, runtime, args.seed),
        [Stream("unlabelled", frames, shared.batch_size, args.seed, samples)],
        [selection, *inputs],
        start,
    )
