"""Frames with their neighbours in time, for networks that learn depth beside segmentation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from semivid.data.cameras import Camera
from semivid.data.index import Frame, Index
from semivid.data.mix_samples import MixSamples
from semivid.data.store import FrameStore
from semivid.data.streams import Sample, Window
from semivid.errors import UserError

NEIGHBOURS = (-1, 1)
_SHOWN = 5


def frames_with_neighbours(index: Index, frames: Sequence[Frame]) -> list[Frame]:
    """Those of `frames`, in order, that have a frame right before and right after them in their video and split.

    The ends of a snippet drop out (Three Ways section 2, video mode). Raises UserError if none is left.
    """
    found = [f for f in frames if all(index.neighbour(f, offset) for offset in NEIGHBOURS)]
    if not found:
        raise UserError(
            f"none of {len(frames)} frames has both neighbours in time, so depth cannot be learnt beside segmentation; "
            "give the videos that the frames are from (`data.frames`), or take a method without depth"
        )
    return found


def check_video(index: Index, frames: Sequence[Frame], cameras: Collection[str], auto_mask: bool = True) -> None:
    """Raise UserError unless every frame has one of `cameras` and, without `auto_mask`, both neighbours in time.

    Labelled frames are checked, not filtered: a run on fewer labels than it is called after would compare with
    nothing. In a sample the frame itself stands for a neighbour that is missing; the auto-mask takes that for a camera
    at rest and leaves the frame out of the depth loss.
    """
    alone = [f.frame for f in frames if not all(index.neighbour(f, offset) for offset in NEIGHBOURS)]
    if len(alone) == len(frames) or (alone and not auto_mask):
        raise UserError(
            f"{len(alone)} of {len(frames)} frames lack a neighbour in time ({_some(alone)}), but learning depth "
            "beside segmentation needs both; give the videos that they are from (`data.frames`), or select other frames"
        )
    without = [f.frame for f in frames if f.camera not in cameras]
    if without:
        raise UserError(
            f"{len(without)} of {len(frames)} frames have no camera ({_some(without)}); "
            "set `data.camera` in params.yaml to a camera file"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


class NeighbourSamples(MixSamples):
    """Samples of a frame, its neighbours at offsets -1 and +1 and its camera, all in one random window.

    What `MixSamples` gives, without disparity, from the same window for the same random numbers, and

    neighbours  uint8 (2, 3, H, W) RGB: offset, channel, row, column; the frame itself where there is none
    k           float32 (3, 3): the window's intrinsics in pixels

    Pictures are cropped and flipped, colours are as they are (section 3: no jitter in segmentation training).
    """

    def __init__(
        self,
        index: Index,
        store: FrameStore,
        cameras: dict[str, Camera],
        crop: tuple[int, int],
        flip: float,
        scale: tuple[float, float] = (1.0, 1.0),
        intrinsics: str = "correct",
        labelled: Iterable[str] | None = None,
    ) -> None:
        """Frames must have passed `check_video`. labelled: see `MixSamples`.

        intrinsics: correct, or reference for the released code's erroneous camera (section 16, 1 and 2). Raises
        UserError for the latter with a random resize, which that code does not have.
        """
        super().__init__(store, crop, flip, scale, labelled=labelled)
        if intrinsics == "reference" and tuple(scale) != (1.0, 1.0):
            raise UserError(
                f"params.yaml: `train.scale` {list(scale)} cannot go with intrinsics: reference; "
                "set it to [1.0, 1.0], or intrinsics to correct"
            )
        self.index, self.cameras, self.intrinsics = index, cameras, intrinsics

    def sample(self, frame: Frame, window: Window) -> Sample:
        neighbours = [self.picture(self.index.neighbour(frame, offset) or frame, window) for offset in NEIGHBOURS]
        camera = self.cameras[frame.camera].resized(*window.resized)
        camera = camera.window(window.x, window.y, *self.crop, window.flip, self.intrinsics)
        shown = {"neighbours": np.stack(neighbours), "k": camera.matrix().astype(np.float32)}
        return super().sample(frame, window) | shown
