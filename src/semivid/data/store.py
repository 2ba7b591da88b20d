"""Decoded frames in memory: each picture is read once and kept while the budget lasts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from semivid.data.index import Frame
from semivid.errors import UserError


class FrameStore:
    """Reads prepared frames, masks and disparities; the least recently used are dropped beyond `budget_mb`.

    Arrays are shared with the cache: do not write into them.
    """

    def __init__(self, budget_mb: int = 2048, disparity: Path | None = None) -> None:
        self._budget = budget_mb * 2**20
        self._disparity = disparity
        self._used = 0
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()

    def _get(self, path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        array = read(path)
        self._cache[path] = array
        self._used += array.nbytes
        while self._used > self._budget and len(self._cache) > 1:
            self._used -= self._cache.popitem(last=False)[1].nbytes
        return array

    def image(self, frame: Frame) -> np.ndarray:
        """uint8 (H, W, 3) RGB."""
        return self._get(frame.image, _read_rgb)

    def label(self, frame: Frame) -> np.ndarray:
        """uint8 (H, W) train ids, 255 = void. Raises UserError for a frame without a mask."""
        if frame.label is None:
            raise UserError(f"{frame.frame}: no mask, but one is needed; leave it out of the labelled frames")
        return self._get(frame.label, _read_grey)

    def disparity(self, frame: Frame) -> np.ndarray:
        """float32 (H, W) in [0, 1], large = near, normalised per frame (section 7 of Three Ways)."""
        from semivid.depth.disparity import read_disparity

        if self._disparity is None:
            raise UserError("no disparity folder was given to this store")
        return self._get(self._disparity / frame.split / f"{frame.frame}.png", read_disparity)


def _read(path: Path, flags: int) -> np.ndarray:
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise UserError(f"{path}: missing or not a picture; run the stage that makes it again")
    return picture


def _read_rgb(path: Path) -> np.ndarray:
    return cv2.cvtColor(_read(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _read_grey(path: Path) -> np.ndarray:
    return _read(path, cv2.IMREAD_GRAYSCALE)
