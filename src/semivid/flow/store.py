"""Prepared frames together with their optical flow, each file read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from semivid.data.index import Frame
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.flow.files import read_flow, read_mask, resize_flow, resize_valid
from semivid.flow.index import FlowPair, read_flow_index


class FlowStore(FrameStore):
    """A FrameStore that also reads the flow of ``folder/index.csv``."""

    def __init__(self, folder: Path = Path("data/flow"), budget_mb: int = 2048) -> None:
        super().__init__(budget_mb)
        self.folder = folder
        self.pairs = read_flow_index(folder / "index.csv")

    def pair(self, frame: Frame) -> FlowPair:
        """The pair of `frame` and its next one; UserError if it has no flow."""
        try:
            return self.pairs[frame.frame]
        except KeyError:
            raise UserError(
                f"{frame.frame}: no flow in {self.folder / 'index.csv'} (the frame has no next one in its video, or "
                "`flow.frames` leaves it out); take it out of the frames, or set `flow.frames` to all"
            ) from None

    def flow(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Flow to the next frame, float32 (H, W, 2) in pixels of the prepared size (x, y), and where it is known.

        Raises UserError for a frame without a neighbour or a file that cannot be read.
        """
        image = self.image(frame)
        size = image.shape[1], image.shape[0]
        return self._get(Path(self.pair(frame).forward), lambda path: _Flow(path, size)).parts

    def consistent(self, frame: Frame) -> np.ndarray:
        """bool (H, W): pixels whose forward and backward flow agree. UserError if the stage flow made no such masks."""
        path = self.pair(frame).consistent
        if not path:
            raise UserError(f"{frame.frame}: no mask of consistent pixels; set `flow.backward: true`")
        return self._get(Path(path), read_mask)


class _Flow:
    """A flow field and its mask, as one thing to be kept."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        flow, valid = read_flow(path)
        if (flow.shape[1], flow.shape[0]) != size:  # of another resolution: values change with the grid
            flow, valid = resize_flow(flow, size), resize_valid(valid, size)
        self.parts = flow, valid
        self.nbytes = flow.nbytes + valid.nbytes
