"""Diversity sampling (DS): choose frames that lie far apart in the space of depth features.

Source: Hoyer et al., "Three Ways to Improve Semantic Segmentation with Self-Supervised Depth Estimation"
(CVPR 2021), section 3.4: iterative farthest-point sampling, with the uncertainty of a depth student as a
bonus of each candidate (DS+US).
"""

from collections.abc import Sequence

import numpy as np

from semivid.errors import UserError

POOL = (4, 8)
"""Grid (rows, columns) to which a feature map is pooled before frames are compared."""

UNCERTAINTY_WEIGHT = 1000.0
"""Published weight of the depth error in DS+US: errors are near 0.005, distances near 20."""


def pool_features(features: np.ndarray, grid: tuple[int, int] = POOL) -> np.ndarray:
    """Average a feature map over a grid of cells (adaptive average pooling).

    Args:
        features: float array (..., C, H, W).
        grid: rows and columns (h, w) of the result.

    Returns:
        float32 array (..., C, h, w). Cell i of n spans [floor(i * size / n), ceil((i + 1) * size / n)), so
        neighbouring cells overlap where the size is not a multiple of the grid.
    """
    rows, columns = (_cells(size, cells) for size, cells in zip(features.shape[-2:], grid, strict=True))
    pooled = np.empty((*features.shape[:-2], *grid), dtype=np.float32)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            cell = features[..., top:bottom, left:right]
            pooled[..., i, j] = cell.mean(axis=(-2, -1), dtype=np.float64)
    return pooled


def _cells(size: int, cells: int) -> list[tuple[int, int]]:
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


def normalise_features(features: np.ndarray) -> np.ndarray:
    """Bring every channel to mean 0 and standard deviation 1 over all frames and positions.

    Args:
        features: float array (N, C, h, w), N frames.

    Returns:
        float32 array (N, C, h, w). The standard deviation is the unbiased one (n - 1); a channel that is
        constant becomes 0, so that it does not count.

    Raises:
        UserError: a value is not finite.
    """
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1))
        raise UserError(
            f"features of {len(bad)} frames are not finite (first at position {bad[0]}): the depth network "
            "that makes them has diverged; train it again with a lower learning rate"
        )
    mean = features.mean(axis=(0, 2, 3), dtype=np.float64, keepdims=True)
    std = features.std(axis=(0, 2, 3), dtype=np.float64, ddof=1, keepdims=True)
    # One channel at a time: a float64 copy of all features of a large data set would take twice their room.
    normalised = np.empty(features.shape, dtype=np.float32)
    for c in range(features.shape[1]):
        centre, scale = mean[0, c, 0, 0], std[0, c, 0, 0]
        constant = scale <= 1e-7 * abs(centre)  # up to float32 rounding
        normalised[:, c] = 0.0 if constant else (features[:, c] - centre) / scale
    return normalised


def distance_matrix(features: np.ndarray, block: int = 512) -> np.ndarray:
    """Euclidean distances between all pairs of frames.

    Args:
        features: float array (N, ...), flattened per frame.
        block: rows of the matrix that are worked on at once.

    Returns:
        float64 array (N, N): symmetric, diagonal 0, exactly 0 between equal frames. Memory: the features once
        in float64, the matrix, and one block of rows (2975 frames of 8192 values: about 0.3 GB).
    """
    flat = np.ascontiguousarray(features.reshape(len(features), -1), dtype=np.float64)
    squares = np.einsum("nd,nd->n", flat, flat)
    distance = np.zeros((len(flat), len(flat)))
    for start in range(0, len(flat), block):
        rows = slice(start, start + block)
        sums = squares[rows, None] + squares[None, start:]
        squared = sums - 2.0 * (flat[rows] @ flat[start:].T)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab loses its digits where a and b nearly agree; those few are redone.
        for i, j in zip(*np.nonzero(squared < 1e-6 * sums), strict=True):
            squared[i, j] = np.sum((flat[start + i] - flat[start + j]) ** 2)
        distance[rows, start:] = np.sqrt(squared)
    upper = np.triu(distance, 1)
    return upper + upper.T


def add_uncertainty(
    distance: np.ndarray, error: np.ndarray, labelled: Sequence[int], weight: float = UNCERTAINTY_WEIGHT
) -> np.ndarray:
    """Distances of DS+US: D'[i, j] = D[i, j] + weight * e_j, where j is the candidate.

    Args:
        distance: float array (N, N).
        error: float array (N,), depth error of each frame; entries of labelled frames are not read.
        labelled: positions of the frames chosen so far; they get no bonus.
        weight: factor of the error.

    Returns:
        float array (N, N), not symmetric, diagonal 0.

    Raises:
        UserError: an unlabelled frame's error is not finite.
    """
    bonus = np.asarray(error, dtype=np.float64).copy()
    bonus[list(labelled)] = 0.0
    if not np.isfinite(bonus).all():
        raise UserError(
            f"depth errors of {np.count_nonzero(~np.isfinite(bonus))} frames are not finite: the depth "
            "student has diverged; train it with a lower learning rate"
        )
    combined = distance + weight * bonus[None, :]
    np.fill_diagonal(combined, 0.0)
    return combined


def farthest_point(distance: np.ndarray, chosen: Sequence[int], add: int) -> tuple[list[int], list[float]]:
    """Iterative farthest-point sampling.

    Repeats: for each frame j that is not chosen, take the minimum over the chosen frames i of distance[i, j];
    add the j whose minimum is largest (the first one on ties).

    Args:
        distance: float array (N, N); row = chosen frame, column = candidate. Need not be symmetric.
        chosen: positions of the frames that are chosen already, at least one.
        add: number of frames to add.

    Returns:
        The added positions in order of choice, and for each its distance to the frames chosen before it.

    Raises:
        UserError: fewer than `add` frames are left.
        ValueError: `chosen` is empty.
    """
    if not len(chosen):
        raise ValueError("farthest_point needs at least one chosen frame to measure distances from")
    left = len(distance) - len(set(chosen))
    if add > left:
        raise UserError(
            f"cannot add {add} frames to {len(set(chosen))} chosen ones: only {left} of {len(distance)} "
            "are left; lower the number of labels"
        )
    nearest = distance[list(chosen)].min(axis=0)
    # Chosen frames are excluded by name: with equal frames (distance 0) the arg-max alone could repeat one.
    nearest[list(chosen)] = -np.inf
    added, distances = [], []
    for _ in range(add):
        best = int(np.argmax(nearest))
        added.append(best)
        distances.append(float(nearest[best]))
        np.minimum(nearest, distance[best], out=nearest)
        nearest[best] = -np.inf
    return added, distances
