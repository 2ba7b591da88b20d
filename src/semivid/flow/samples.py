"""Samples with flow for training: whatever moves the pixels moves and rescales their flow too."""

from __future__ import annotations

import numpy as np

from semivid.data.index import Frame
from semivid.data.streams import Sample, UnlabelledSamples, Window
from semivid.flow.store import FlowStore


class FlowSamples(UnlabelledSamples):
    """Samples {image, flow: float32 (2, H, W) in pixels of the window (x, y), valid: bool (H, W)}.

    discard_bottom: share of the picture's rows, from its lower edge, that are not valid (the car's own bonnet).
    consistent_only: pixels whose forward and backward flow disagree are not valid. The same window as
    `UnlabelledSamples` with the same random numbers.
    """

    def __init__(
        self,
        store: FlowStore,
        crop: tuple[int, int],
        flip: float,
        scale: tuple[float, float] = (1.0, 1.0),
        discard_bottom: float = 0.0,
        consistent_only: bool = False,
    ) -> None:
        super().__init__(store, crop, flip, scale)
        self.store: FlowStore = store
        self.discard_bottom, self.consistent_only = discard_bottom, consistent_only

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        window = self.window(frame, rng)
        flow, valid = self.store.flow(frame)
        valid = valid & self.store.consistent(frame) if self.consistent_only else valid.copy()
        if self.discard_bottom:
            valid[int((1 - self.discard_bottom) * len(valid)) :] = False
        shown = window(valid.view(np.uint8), nearest=True).astype(bool)
        return {
            "image": self.picture(frame, window),
            "flow": np.ascontiguousarray(move_flow(window, flow).transpose(2, 0, 1)),
            "valid": np.ascontiguousarray(shown),
        }


def move_flow(window: Window, flow: np.ndarray) -> np.ndarray:
    """Flow float32 (H, W, 2) of a whole picture as seen in a window of it: resized, mirrored and cropped.

    Resizing multiplies u by the ratio of the widths and v by that of the heights; a mirror image changes u's sign
    (flow_consistency section 13, 5). What lies beyond the picture is 0.
    """
    height, width = flow.shape[:2]
    factors = np.array([window.resized[0] / width, window.resized[1] / height], np.float32)
    moved = window(flow) * factors
    if window.flip:
        moved[..., 0] *= -1
    return moved
