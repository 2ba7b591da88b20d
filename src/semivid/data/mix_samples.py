"""The stream of frames that are mixed with each other: which frames, and what their samples hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from semivid.data.index import VOID, Frame, Index
from semivid.data.store import FrameStore
from semivid.data.streams import Sample, UnlabelledSamples, Window
from semivid.errors import UserError


class MixSamples(UnlabelledSamples):
    """Samples of frames that are mixed with each other, all parts in one random window, that of `UnlabelledSamples`.

    image      uint8 (3, H, W) RGB
    disparity  float32 (H, W) in [0, 1] per frame, large = near (with `disparity`)
    label      uint8 (H, W) train ids, 255 = void; all void for a frame without a known mask (with `labelled`)
    labelled   bool (): whether the mask is known (with `labelled`)
    """

    def __init__(
        self,
        store: FrameStore,
        crop: tuple[int, int],
        flip: float,
        scale: tuple[float, float] = (1.0, 1.0),
        disparity: bool = False,
        labelled: Iterable[str] | None = None,
    ) -> None:
        """disparity: read it from the store. labelled: names of the frames whose masks may be seen; None for no masks.

        A mask of any other frame is never read, whether it exists or not.
        """
        super().__init__(store, crop, flip, scale)
        self.disparity = disparity
        self.labelled = None if labelled is None else frozenset(labelled)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        return self.sample(frame, self.window(frame, rng))

    def sample(self, frame: Frame, window: Window) -> Sample:
        """What the frame shows in that window."""
        sample = {"image": self.picture(frame, window)}
        if self.disparity:
            sample["disparity"] = np.ascontiguousarray(window(self.store.disparity(frame)))
        if self.labelled is not None:
            known = frame.frame in self.labelled
            label = window(self.store.label(frame), nearest=True, fill=VOID) if known else None
            void = np.full(sample["image"].shape[1:], VOID, np.uint8)
            sample |= {"label": np.ascontiguousarray(label) if known else void, "labelled": np.array(known)}
        return sample


def frames_to_mix(index: Index, labelled: Sequence[Frame], which: str) -> list[Frame]:
    """Training frames for the unlabelled stream of a run that is labelled on `labelled` (Three Ways section 8).

    which: ``unlabelled``, annotated frames outside `labelled`; ``all``, these and `labelled`; ``labelled``, those
    alone; ``video``, every frame with both neighbours in time, annotated or not.
    Raises UserError if there is none, or if `which` is none of these.
    """
    subset = {f.frame for f in labelled}
    choices = {
        "unlabelled": lambda: [f for f in index.select("train", labelled=True) if f.frame not in subset],
        "all": lambda: index.select("train", labelled=True),
        "labelled": lambda: list(labelled),
        "video": lambda: [f for f in index.select("train") if index.neighbour(f, -1) and index.neighbour(f, 1)],
    }
    if which not in choices:
        raise UserError(f"no frames {which!r} to mix; choose one of {', '.join(choices)}")
    frames = choices[which]()
    if not frames:
        missing = {
            "unlabelled": "all annotated training frames are labelled in this run; mix all, or those of the video",
            "video": "no training frame has both neighbours in time; add video frames, or mix all annotated ones",
        }
        raise UserError(f"frames: {which}: {missing.get(which, 'no training frame has a mask')}")
    return frames
