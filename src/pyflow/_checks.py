"""Bad arguments, said in one line: what, and what to do."""

import math
import operator
from typing import SupportsIndex

import numpy as np

from pyflow._pyramid import level_count, pyramid_ratio

# Resampling may overshoot [0, 1] a little; 0 to 255 is another unit.
_LOWEST, _HIGHEST = -1.0, 2.0


def checked_images(first: object, second: object, ratio: float, min_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Both images as new planes ``(channels, height, width)`` in C order; ValueError or TypeError as in the API."""
    planes = _planes(first, "Im1"), _planes(second, "Im2")
    if first.shape != second.shape:
        raise ValueError(
            f"Im1 has shape {first.shape} and Im2 {second.shape}: both must be (height, width, channels) of one size"
        )
    width = first.shape[1]
    if level_count(width, ratio, min_width) < 1:
        raise ValueError(
            f"images of width {width} are too narrow for minWidth {min_width} and ratio {ratio:g}, which need "
            f"{_needed_width(ratio, min_width)}: enlarge them or lower minWidth"
        )
    return planes


def _planes(image: object, name: str) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is {type(image).__name__}: give a numpy array (height, width, channels) of float64")
    if image.dtype != np.float64:
        raise ValueError(
            f"{name} has dtype {image.dtype}: give float64 in [0, 1], for example {name}.astype(float)"
            + (" / 255" if image.dtype.kind in "ui" else "")
        )
    if image.ndim != 3:
        advice = f"; a grey image is {name}[:, :, None]" if image.ndim == 2 else ""
        raise ValueError(f"{name} has shape {image.shape}: give (height, width, channels){advice}")
    if image.size == 0:
        raise ValueError(f"{name} has shape {image.shape} and no pixels: give an image")
    planes = np.array(image.transpose(2, 0, 1), dtype=np.float64, order="C")
    low, high = planes.min(), planes.max()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values: replace them, for example by numpy.nan_to_num({name})")
    if low < _LOWEST or high > _HIGHEST:
        raise ValueError(f"{name} has values from {low:g} to {high:g}: scale it to [0, 1], 8-bit images by 1 / 255")
    return planes


def _needed_width(ratio: float, min_width: int) -> int:
    # The logarithms round: try from just below the exact answer.
    width = max(math.ceil(min_width / pyramid_ratio(ratio)) - 2, min_width)
    while level_count(width, ratio, min_width) < 1:
        width += 1
    return width


def checked_real(value: object, name: str, above: float, below: float) -> float:
    """`value` as a float within (above, below)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}: give a number") from None
    if not above < number < below:
        bounds = f"above {above:g}" + (f" and below {below:g}" if math.isfinite(below) else " and finite")
        raise ValueError(f"{name} is {value!r}: give a number {bounds}")
    return number


def checked_count(value: SupportsIndex, name: str) -> int:
    """`value` as an int of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}: give a whole number") from None
    if number < 1:
        raise ValueError(f"{name} is {number}: give at least 1")
    return number


def checked_colour(value: SupportsIndex) -> bool:
    """Whether `colType` asks for the weights of BGR."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"colType is {value!r}: give 0 or 1") from None
    if number not in (0, 1):
        raise ValueError(f"colType is {number}: give 0 (RGB, or one channel) or 1 (one channel, or BGR)")
    return number == 1
