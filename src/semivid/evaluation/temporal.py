"""Temporal consistency: do predictions of neighbouring frames agree along the optical flow?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from semivid.data.index import Frame
from semivid.flow.index import FlowPair
from semivid.flow.store import FlowStore


def carried_back(following: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the next frame, seen from this one: (uint8 (H, W), bool (H, W) where the target is in the picture).

    following: uint8 (H, W), predicted classes of the next frame. flow: float32 (H, W, 2), pixels (x, y), from this
    frame to the next; the nearest pixel is taken.
    """
    height, width = following.shape
    x = np.rint(np.arange(width)[None, :] + flow[..., 0]).astype(np.int64)
    y = np.rint(np.arange(height)[:, None] + flow[..., 1]).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return following[y.clip(0, height - 1), x.clip(0, width - 1)], inside


@dataclass
class TemporalAgreement:
    """Adds up, frame after frame, where the prediction of a frame and that of the next one agree along the flow.

    Only pixels count whose flow leads into the picture and, if the stage flow made such masks, agrees with the flow
    back (a pixel that is hidden in the next frame has no counterpart). A constant prediction agrees fully: read it
    beside the mIoU.
    """

    store: FlowStore
    agreeing: int = 0
    counted: int = 0
    pairs: int = 0
    _waiting: dict[str, np.ndarray] = field(default_factory=dict)
    _open: dict[str, int] = field(default_factory=dict)

    def start(self, frames: Iterable[Frame]) -> None:
        """Announce the frames whose predictions will come, in any order."""
        names = {f.frame: f for f in frames}
        self._frames = names
        self._links = [p for p in self.store.pairs.values() if p.frame in names and p.next in names]
        for pair in self._links:
            for name in (pair.frame, pair.next):
                self._open[name] = self._open.get(name, 0) + 1

    def add(self, frame: Frame, predicted: np.ndarray) -> None:
        """The prediction of one frame, uint8 (H, W); it is kept until both of its neighbours have come."""
        if frame.frame not in self._open:
            return
        self._waiting[frame.frame] = predicted
        for pair in [p for p in self._links if frame.frame in (p.frame, p.next)]:
            if pair.frame in self._waiting and pair.next in self._waiting:
                self._compare(pair)

    def _compare(self, pair: FlowPair) -> None:
        first, second = self._waiting[pair.frame], self._waiting[pair.next]
        frame = self._frames[pair.frame]
        flow, known = self.store.flow(frame)
        carried, inside = carried_back(second, flow)
        counts = inside & known & (self.store.consistent(frame) if pair.consistent else True)
        self.agreeing += int((carried == first)[counts].sum())
        self.counted += int(counts.sum())
        self.pairs += 1
        for name in (pair.frame, pair.next):
            self._open[name] -= 1
            if not self._open[name]:
                del self._waiting[name]

    @property
    def share(self) -> float | None:
        """Share of counted pixels that agree, in [0, 1]; None if no pair was compared."""
        return self.agreeing / self.counted if self.counted else None
