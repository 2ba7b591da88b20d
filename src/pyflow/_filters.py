"""Correlation of planes with short kernels, along rows or columns, the border repeated.

Planes are float64 arrays ``(channels, height, width)`` in C order.
"""

import numpy as np

from pyflow._compiled import compiled

DERIVATIVE = np.array([1, -8, 0, 8, -1]) / 12


@compiled
def _add_scaled(out, row, start, tap):
    # An index that starts above 0 would carry a test for negative values and not vectorise: slice first.
    shifted = row[start : start + out.size]
    for j in range(out.size):
        out[j] += tap * shifted[j]


@compiled
def _along_rows(planes, taps, out):
    channels, height, width = planes.shape
    radius = taps.size // 2
    padded = np.empty(width + 2 * radius)
    for c in range(channels):
        for i in range(height):
            row = planes[c, i]
            padded[:radius] = row[0]
            padded[radius : radius + width] = row
            padded[radius + width :] = row[width - 1]
            target = out[c, i]
            target[:] = 0.0
            for k in range(taps.size):
                if taps[k] != 0.0:
                    _add_scaled(target, padded, k, taps[k])


@compiled
def _along_columns(planes, taps, out):
    channels, height, _ = planes.shape
    radius = taps.size // 2
    for c in range(channels):
        for i in range(height):
            target = out[c, i]
            target[:] = 0.0
            for k in range(taps.size):
                if taps[k] != 0.0:
                    _add_scaled(target, planes[c, min(max(i + k - radius, 0), height - 1)], 0, taps[k])


def along_rows(planes: np.ndarray, taps: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Correlation of every row with an odd number of `taps`, into `out` (another array) or a new one."""
    out = np.empty_like(planes) if out is None else out
    _along_rows(planes, taps, out)
    return out


def along_columns(planes: np.ndarray, taps: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Correlation of every column with an odd number of `taps`, into `out` (another array) or a new one."""
    out = np.empty_like(planes) if out is None else out
    _along_columns(planes, taps, out)
    return out


def gaussian(planes: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """Gaussian blur with taps from -radius to radius (specification, section 2); radius 0 leaves all as it is."""
    if radius == 0:
        return planes
    offsets = np.arange(-radius, radius + 1)
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    taps /= taps.sum()
    return along_columns(along_rows(planes, taps), taps)
