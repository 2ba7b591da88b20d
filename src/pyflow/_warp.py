"""Resampling along the flow: bilinear between iterations, bicubic for the returned picture.

A pixel whose target lies outside the image takes the first image's own value.
"""

import numpy as np

from pyflow._compiled import compiled
from pyflow._filters import along_columns, along_rows

CENTRAL = np.array([-0.5, 0, 0.5])


def warp(
    first: np.ndarray, second: np.ndarray, u: np.ndarray, v: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """`second` at (x + u, y + v), bilinear, planes ``(channels, height, width)`` (specification, section 4).

    Args:
        first, second: float64 planes of one shape.
        u, v: ``(height, width)``, pixels.
        out: where the result goes; None makes an array.
    """
    out = np.empty_like(first) if out is None else out
    _bilinear(first, second, u, v, out)
    return out


def warp_picture(first: np.ndarray, second: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """As `warp`, with cubic Hermite interpolation, clipped to [0, 1] (specification, section 8)."""
    slope_x = along_rows(second, CENTRAL)
    out = np.empty_like(first)
    _bicubic(first, second, slope_x, along_columns(second, CENTRAL), along_columns(slope_x, CENTRAL), u, v, out)
    return np.clip(out, 0, 1, out=out)


@compiled
def _bilinear(first, second, u, v, out):
    channels, height, width = first.shape
    for i in range(height):
        for j in range(width):
            x, y = j + u[i, j], i + v[i, j]
            # Asked this way round, a target that is not a number counts as outside and never becomes an index.
            if x >= 0 and x <= width - 1 and y >= 0 and y <= height - 1:
                x0, y0 = int(x), int(y)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                dx, dy = x - x0, y - y0
                for c in range(channels):
                    out[c, i, j] = (1 - dy) * ((1 - dx) * second[c, y0, x0] + dx * second[c, y0, x1]) + dy * (
                        (1 - dx) * second[c, y1, x0] + dx * second[c, y1, x1]
                    )
            else:
                for c in range(channels):
                    out[c, i, j] = first[c, i, j]


@compiled
def _hermite(t):
    """Weights of the values at 0 and 1 and of the slopes at 0 and 1."""
    return (
        1 - 3 * t * t + 2 * t * t * t,
        3 * t * t - 2 * t * t * t,
        t - 2 * t * t + t * t * t,
        t * t * t - t * t,
    )


@compiled
def _bicubic(first, second, slope_x, slope_y, twist, u, v, out):
    channels, height, width = first.shape
    for i in range(height):
        for j in range(width):
            x, y = j + u[i, j], i + v[i, j]
            if x >= 0 and x <= width - 1 and y >= 0 and y <= height - 1:
                x0, y0 = int(x), int(y)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                hx0, hx1, gx0, gx1 = _hermite(x - x0)
                hy0, hy1, gy0, gy1 = _hermite(y - y0)
                for c in range(channels):
                    f, fx, fy, fxy = second[c], slope_x[c], slope_y[c], twist[c]
                    out[c, i, j] = (
                        hy0 * (hx0 * f[y0, x0] + hx1 * f[y0, x1] + gx0 * fx[y0, x0] + gx1 * fx[y0, x1])
                        + hy1 * (hx0 * f[y1, x0] + hx1 * f[y1, x1] + gx0 * fx[y1, x0] + gx1 * fx[y1, x1])
                        + gy0 * (hx0 * fy[y0, x0] + hx1 * fy[y0, x1] + gx0 * fxy[y0, x0] + gx1 * fxy[y0, x1])
                        + gy1 * (hx0 * fy[y1, x0] + hx1 * fy[y1, x1] + gx0 * fxy[y1, x0] + gx1 * fxy[y1, x1])
                    )
            else:
                for c in range(channels):
                    out[c, i, j] = first[c, i, j]
