"""Entropy sampling: choose frames on which a segmentation network is undecided (active learning baseline).

Source: the baseline of Hoyer et al. (CVPR 2021), Table 3; frames are chosen by `uncertainty.highest`.
"""

import math

import torch

EPSILON = 1e-30
"""Keeps log2 finite at probability 0; it vanishes against any other probability."""


def pixel_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy per pixel, normalised by that of the uniform distribution.

    Args:
        probabilities: float tensor (..., C, H, W), summing to 1 over C.

    Returns:
        float tensor (..., H, W) in [0, 1]: -sum_c p log2(p + 1e-30) / log2(C).
    """
    classes = probabilities.shape[-3]
    return -(probabilities * (probabilities + EPSILON).log2()).sum(dim=-3) / math.log2(classes)


def entropy_score(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean normalised entropy of each image.

    Args:
        probabilities: float tensor (B, C, H, W), softmax over C.

    Returns:
        float64 tensor (B,) in [0, 1] on the same device; large = undecided.
    """
    return pixel_entropy(probabilities).mean(dim=(-2, -1), dtype=torch.float64)
