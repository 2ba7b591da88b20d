"""Training samples of consecutive frames of a video, for networks that predict a frame from those around it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from semivid.data.index import Frame, Index
from semivid.data.store import FrameStore
from semivid.data.streams import Sample, Window
from semivid.errors import UserError
from semivid.flow.estimators import Estimator


def sequences(index: Index, frames: Sequence[Frame], length: int, every: int = 1) -> list[Frame]:
    """The first frames of runs of `length` consecutive frames (specification sdc_propagation, section 6, FrameLoader).

    A run never crosses the end of a video, a gap in it or the border of a split. Of n frames without a gap the runs
    begin at 0, every, 2 every, ..., ``(n - length + 1) // every`` of them, as in the reference, which thus leaves out
    the last one where the division has a remainder.

    Args:
        frames: those that may be in a run, of any splits and videos.
        every: distance of the runs' beginnings.

    Raises:
        UserError: no video has so many consecutive frames, or `length` or `every` is too small.
    """
    if length < 2 or every < 1:
        raise UserError(f"sequences of {length} frames, every {every}: give at least 2 frames and every at least 1")
    wanted = {f.frame for f in frames}
    found = []
    for frame in sorted(frames, key=lambda f: (f.split, f.sequence, f.position)):
        before = index.neighbour(frame, -1)
        if before is not None and before.frame in wanted:
            continue
        clip = [frame]
        while (following := index.neighbour(clip[-1], 1)) is not None and following.frame in wanted:
            clip.append(following)
        found += [clip[i * every] for i in range(max(0, len(clip) - length + 1) // every)]
    if not found:
        raise UserError(
            f"none of {len(frames)} frames begins {length} consecutive frames of one video and split, so motion cannot "
            "be learnt from them; give the videos that they are from (`data.frames`)"
        )
    return found


class SequenceSamples:
    """Samples of consecutive frames from a first one on, all in one random window.

    frames  uint8 (length, 3, H, W) RGB, oldest first, or youngest first if the sample is reversed
    flows   float32 (inputs - 1, 2, H, W) pixels, right and down: between the first `inputs` of these frames, each on
            the later one's pixels into the earlier one; only with an `estimator`
    """

    def __init__(
        self,
        index: Index,
        store: FrameStore,
        length: int,
        crop: tuple[int, int],
        flip: float = 0.0,
        reverse: float = 0.5,
        estimator: Estimator | None = None,
        inputs: int | None = None,
    ) -> None:
        """
        Args:
            length: frames of a sample; first frames must be from `sequences` with the same length.
            crop: (width, height) of the window.
            flip, reverse: probabilities of a mirror image and of the reverse order in time.
            estimator: of `semivid.flow.estimators`; sees the frames as they are in the sample.
            inputs: how many of the frames have flows between them; None: all.
        """
        self.index, self.store, self.length, self.crop = index, store, length, crop
        self.flip, self.reverse, self.estimator = flip, reverse, estimator
        self.inputs = length if inputs is None else inputs

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        frames = [self.index.neighbour(frame, offset) for offset in range(self.length)]
        images = [self.store.image(f) for f in frames]
        if any(i.shape != images[0].shape for i in images):
            raise UserError(f"{frame.frame} and the frames after it differ in size; bring a video's frames to one size")
        window = Window(images[0].shape[1::-1], self.crop, rng, self.flip)
        backwards = rng.random() < self.reverse
        pictures = [np.ascontiguousarray(window(i)) for i in (images[::-1] if backwards else images)]
        sample = {"frames": np.stack([p.transpose(2, 0, 1) for p in pictures])}
        if self.estimator:
            flows = [self.estimator(later, earlier) for earlier, later in pairwise(pictures[: self.inputs])]
            sample["flows"] = np.stack([f.transpose(2, 0, 1) for f in flows])
        return sample
