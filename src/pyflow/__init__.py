"""Coarse-to-fine optical flow: what the Python wrapper of Ce Liu's program computes, importable in its place.

Not the program that the package index lists under this name, a manager of Python versions. Written from a
description of the algorithm (the "specification" of the comments), compiled by numba at the first call.
The method: Brox et al., "High accuracy optical flow estimation based on a theory for warping", ECCV 2004, as
implemented in C. Liu's thesis, "Beyond pixels", MIT 2009, appendix A.
"""

import math

import numpy as np

from pyflow._checks import checked_colour, checked_count, checked_images, checked_real
from pyflow._flow import levels
from pyflow._warp import warp_picture

__all__ = ["coarse2fine_flow"]


def coarse2fine_flow(
    Im1: np.ndarray,
    Im2: np.ndarray,
    alpha: float = 1,
    ratio: float = 0.5,
    minWidth: int = 40,
    nOuterFPIterations: int = 3,
    nInnerFPIterations: int = 1,
    nSORIterations: int = 20,
    colType: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense optical flow from Im1 to Im2: Im1(x, y) looks like Im2(x + vx, y + vy).

    The signature's defaults are the reference's and poor; its demonstration uses ``alpha=0.012, ratio=0.75,
    minWidth=20, nOuterFPIterations=7, nInnerFPIterations=1, nSORIterations=30, colType=0``.

    A pure function: nothing is printed, no argument is changed, equal input gives equal bits. It runs on one thread
    without the GIL and shares no state, so that threads as well as processes can work on many pairs.

    Args:
        Im1, Im2: float64 ``(height, width, channels)`` in [0, 1], of one shape, at least about minWidth / ratio
            wide. Any memory layout (copied where it is not C order). One channel: grey; three: colour; any other
            number is matched as it is, without gradients.
        alpha: weight of smoothness, above 0; not rescaled per level.
        ratio: size of one pyramid level by that of the next finer one, within (0, 1). Outside 0.4 .. 0.98 the
            pyramid uses 0.75, while the flow is still scaled by the argument, as in the reference.
        minWidth: about the width of the coarsest level, pixels: decides the largest motion that is found.
        nOuterFPIterations: warps at full size (level k has k more), at least 1.
        nInnerFPIterations: updates of the robust weights per warp, at least 1.
        nSORIterations: relaxation sweeps per update at full size (level k has 3 k more), at least 1.
        colType: 0 for RGB. 1 weighs three channels as BGR, at full size only, as in the reference; it has no effect
            on other numbers of channels.

    Returns:
        vx, vy: float64 ``(height, width)``, pixels, to the right and down, defined on the pixels of Im1;
        warpI2: float64 ``(height, width, channels)`` in [0, 1], Im2 resampled to the frame of Im1 (bicubic; where
        the flow leaves the image, Im1's own pixel).

    Raises:
        TypeError: an image that is no array, a parameter that is no number.
        ValueError: images of another dtype, number of dimensions or shape than said, of different shapes, empty, too
            narrow, many times wider than high, not finite, or far outside [0, 1]; parameters out of range; an alpha
            so small that the flow is not finite.

    Source: specification, sections 1 to 8.
    """
    alpha = checked_real(alpha, "alpha", 0, math.inf)
    ratio = checked_real(ratio, "ratio", 0, 1)
    min_width = checked_count(minWidth, "minWidth")
    outer = checked_count(nOuterFPIterations, "nOuterFPIterations")
    inner = checked_count(nInnerFPIterations, "nInnerFPIterations")
    sweeps = checked_count(nSORIterations, "nSORIterations")
    bgr = checked_colour(colType)
    first, second = checked_images(Im1, Im2, ratio, min_width)
    for _, u, v in levels(first, second, alpha, ratio, min_width, outer, inner, sweeps, bgr):
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            raise ValueError(f"the flow is not finite with alpha {alpha:g}: give a larger alpha")
    picture = warp_picture(first, second, u, v)
    return u, v, np.ascontiguousarray(picture.transpose(1, 2, 0))
