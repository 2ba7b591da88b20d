"""From coarse to fine: the main loop over the pyramid (specification, section 5)."""

from collections.abc import Iterator

import numpy as np

from pyflow._features import features
from pyflow._pyramid import level_count, pyramid, resized
from pyflow._solver import solve
from pyflow._warp import warp


def levels(
    first: np.ndarray,
    second: np.ndarray,
    alpha: float,
    ratio: float,
    min_width: int,
    outer: int,
    inner: int,
    sweeps: int,
    bgr: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first image, u, v) of every pyramid level, the coarsest first, once it is solved.

    Args:
        first, second: float64 planes ``(channels, height, width)`` in [0, 1].
        bgr: the full size is BGR; the other levels are read as RGB all the same, as the reference reads them.
    """
    count = level_count(first.shape[2], ratio, min_width)
    pairs = list(zip(pyramid(first, ratio, count), pyramid(second, ratio, count), strict=True))
    flow = None
    for k in reversed(range(count)):
        image = pairs[k][0]
        f1, f2 = (features(plane, bgr and k == 0) for plane in pairs[k])
        if flow is None:
            u, v = np.zeros((2, *image.shape[1:]))
            warped = f2
        else:
            # The argument, not the ratio of the pyramid nor the true quotient of both sizes.
            u, v = resized(flow, image.shape[1:]) / ratio
            warped = warp(f1, f2, u, v)
        u, v = solve(f1, f2, warped, u, v, alpha, outer + k, inner, sweeps + 3 * k)
        yield image, u, v
        flow = np.stack([u, v])
