"""How good a learnt depth is, against a truth: error after scale alignment, correlation, direction of motion."""

from __future__ import annotations

import numpy as np


def depth_errors(inverse_depth: np.ndarray, truth: np.ndarray, farthest: float = 80.0) -> dict[str, float]:
    """Compare one frame's predicted inverse depth with the true depth.

    inverse_depth  float (H, W), positive, of unknown scale
    truth          float (H, W), metres; 0 = unknown, beyond `farthest` is left out
    Returns abs_rel = mean |d - t| / t with d scaled by the median ratio, as usual for monocular depth (Eigen et
    al. 2014), and correlation = Pearson's, of inverse depths.
    """
    valid = (truth > 0) & (truth < farthest)
    predicted, true = 1 / inverse_depth[valid], truth[valid]
    predicted = predicted * np.median(true) / np.median(predicted)
    return {
        "abs_rel": float(np.mean(np.abs(predicted - true) / true)),
        "correlation": float(np.corrcoef(inverse_depth[valid], 1 / true)[0, 1]),
    }


def direction_agreement(predicted: np.ndarray, true: np.ndarray) -> float:
    """Cosine between two translations (3,), whose scales may differ; 1 = the same direction."""
    return float(predicted @ true / (np.linalg.norm(predicted) * np.linalg.norm(true) + 1e-12))
