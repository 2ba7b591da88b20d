"""The image pyramid and bilinear resizing (specification, sections 2 and 5)."""

import math

import numpy as np

from pyflow._compiled import compiled
from pyflow._filters import gaussian

LOWEST_RATIO, HIGHEST_RATIO, USUAL_RATIO = 0.4, 0.98, 0.75


def pyramid_ratio(ratio: float) -> float:
    """The ratio of the pyramid: the argument, or 0.75 where that is below 0.4 or above 0.98."""
    return ratio if LOWEST_RATIO <= ratio <= HIGHEST_RATIO else USUAL_RATIO


def level_count(width: int, ratio: float, min_width: int) -> int:
    """Number of pyramid levels of an image so wide; 0 or less where it is too narrow for one."""
    return int(math.log(min_width / width) / math.log(pyramid_ratio(ratio)))


def pyramid(image: np.ndarray, ratio: float, count: int) -> list[np.ndarray]:
    """`count` levels of float64 planes ``(channels, height, width)``, the image itself first.

    The first few levels are made from the image, the later ones from the level a quarter or so larger in scale:
    that bounds the blur's radius. Radii are truncated as the reference truncates them.

    Raises:
        ValueError: a level would have no row left (an image many times wider than high).
    """
    ratio = pyramid_ratio(ratio)
    base = 1 / ratio - 1
    direct = int(math.log(0.25) / math.log(ratio))
    levels = [image]
    for i in range(1, count):
        source = levels[max(i - direct, 0)]
        sigma = base * min(i, direct)
        scale = ratio**i if i <= direct else ratio**i * image.shape[2] / source.shape[2]
        height, width = int(source.shape[1] * scale), int(source.shape[2] * scale)
        if min(height, width) < 1:
            raise ValueError(
                f"images of {image.shape[2]} x {image.shape[1]} pixels have no row left at level {i} of the pyramid: "
                "crop their width, or raise minWidth"
            )
        levels.append(_resampled(gaussian(source, sigma, int(3 * sigma)), (height, width), scale, scale))
    return levels


def resized(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Planes ``(channels, h, w)`` resampled bilinearly to `size` = (height, width), each axis by its own scale."""
    return _resampled(planes, size, size[0] / planes.shape[1], size[1] / planes.shape[2])


def _resampled(planes: np.ndarray, size: tuple[int, int], scale_y: float, scale_x: float) -> np.ndarray:
    out = np.empty((planes.shape[0], *size))
    _interpolate(
        planes, *_neighbours(size[0], scale_y, planes.shape[1]), *_neighbours(size[1], scale_x, planes.shape[2]), out
    )
    return out


def _neighbours(count: int, scale: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of both neighbours and the weight of the second, for `count` samples along an axis of `size` pixels."""
    position = np.arange(1, count + 1) / scale - 1
    first = np.trunc(position)
    weight = np.clip(position - first, 0, 1)
    near, far = (np.clip(first + step, 0, size - 1).astype(np.uintp) for step in (0, 1))
    return near, far, weight


@compiled
def _interpolate(planes, upper, lower, down, left, right, across, out):
    for c in range(planes.shape[0]):
        for i in range(upper.size):
            above, below, target = planes[c, upper[i]], planes[c, lower[i]], out[c, i]
            dy = down[i]
            for j in range(left.size):
                dx = across[j]
                target[j] = (1 - dy) * ((1 - dx) * above[left[j]] + dx * above[right[j]]) + dy * (
                    (1 - dx) * below[left[j]] + dx * below[right[j]]
                )
