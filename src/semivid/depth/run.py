"""Run one phase of depth pretraining on the prepared video: what both phases' stages share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semivid.data.index import read_cameras, read_index
from semivid.data.store import FrameStore
from semivid.data.streams import Stream, check_crop
from semivid.depth.networks import DepthModel
from semivid.depth.pretrain import DepthPretraining, mean_losses
from semivid.depth.samples import VideoSamples, frames_with_neighbours
from semivid.errors import UserError
from semivid.pipeline.fingerprint import fingerprint
from semivid.training.loop import History, fit
from semivid.training.runtime import Runtime

if TYPE_CHECKING:
    from semivid.pipeline.params import DepthTraining
    from semivid.pipeline.stage import Stage

log = logging.getLogger("semivid")
PREPARED = Path("data/prepared")
VALIDATION_FRAMES = 20  # the first of the sorted val frames, as in the reference
EVALUATIONS = 4


def train_depth(
    model: DepthModel,
    options: DepthTraining,
    stage: Stage,
    *,
    size: tuple[int, int],
    feature_weight: float | None = None,
    inputs: Sequence[str] = (),
) -> History:
    """Train `model` in place on all training frames that have both neighbours; validate on fixed val frames.

    size            (width, height) of the prepared frames
    feature_weight  None for phase 1 (encoder frozen), the weight of the ImageNet feature distance for phase 2
    inputs          further files that the result depends on, for resuming
    """
    check_crop(options.crop, size, f"{stage.name}.crop")
    runtime = Runtime(options.threads, options.precision)
    index, cameras, store = read_index(PREPARED / "frames.csv"), read_cameras(PREPARED / "cameras.json"), FrameStore()
    frames = frames_with_neighbours(index, "train")
    log.info("%d training frames with both neighbours", len(frames))
    augmented = VideoSamples(
        index, store, cameras, options.crop, options.flip, options.color_jitter, options.intrinsics
    )
    stream = Stream("video", frames, options.batch_size, options.seed, augmented)
    try:
        held_out = frames_with_neighbours(index, "val")[:VALIDATION_FRAMES]
    except UserError:
        held_out = []  # val may be single frames
    plain = VideoSamples(index, store, cameras, options.crop, intrinsics=options.intrinsics)
    count = min(options.batch_size, len(held_out))
    fixed = Stream("validation", held_out, count, options.seed, plain) if held_out else None
    validation = [fixed[i] for i in range(len(held_out) // count)] if fixed else []
    method = DepthPretraining(model, options, runtime, feature_weight)
    method.place_imagenet()
    prepared = [PREPARED / n for n in ("images", "frames.csv", "cameras.json")]
    return fit(
        method,
        [stream],
        iterations=options.iterations,
        seed=options.seed,
        runtime=runtime,
        work=stage.work,
        key=fingerprint(stage.settings, [*prepared, *inputs]),
        title=stage.name,
        workers=runtime.loaders(stage.workers),
        evaluate=(lambda m: mean_losses(m, validation)) if validation else None,
        evaluate_every=max(1, options.iterations // EVALUATIONS),
    )
