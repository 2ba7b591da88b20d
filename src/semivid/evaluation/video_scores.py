"""A network's scores on the labelled frames of a video, and its agreement along the flow, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semivid.data.index import Classes, Frame
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.inference import segment
from semivid.evaluation.temporal import TemporalAgreement
from semivid.evaluation.trained import Predict
from semivid.flow.store import FlowStore
from semivid.training.runtime import Runtime


@dataclass(frozen=True)
class VideoScores:
    """scores: as `semivid.evaluation.confusion.scores` gives them, over `frames` frames. agreement: share of pixels
    whose class stays the same along the flow, over `pairs` pairs of frames; None without any."""

    scores: dict[str, Any]
    frames: int
    agreement: float | None
    pairs: int


def score_video(
    predict: Predict, frames: Sequence[Frame], store: FlowStore, classes: Classes, options, runtime: Runtime
) -> VideoScores:
    """Segment all `frames`, with and without masks; options: the block `evaluate`.

    Raises UserError if none of them has a mask.
    """
    scored = sum(f.label is not None for f in frames)
    if not scored:
        raise UserError(f"no frame of split {options.split!r} has a mask; check `data.masks` and `evaluate.split`")
    confusion = np.zeros((len(classes.names),) * 2, np.int64)
    agreement = TemporalAgreement(store)
    agreement.start(frames)
    for frame, predicted in segment(predict, frames, store, options.batch_size, runtime):
        agreement.add(frame, predicted)
        if frame.label is not None:
            confusion += confusion_matrix(predicted, store.label(frame), len(classes.names))
    return VideoScores(scores(confusion, classes.names), scored, agreement.share, agreement.pairs)
