"""Losses on segmentation logits that several methods share."""

import torch.nn.functional as F
from torch import Tensor

from semivid.data.classes import VOID
from semivid.training.distributed import part_of_mean, summed


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | float | None = None, ignore: int = VOID) -> Tensor:
    """Cross entropy per pixel, averaged.

    With several processes, this one's part of the average over the batches of all: the parts add up to it.

    Args:
        logits: ``(B, C, h, w)``; resized bilinearly (align_corners True) where both sides
            differ from the labels'.
        labels: ``(B, H, W)`` of any integer type, class numbers or `ignore`.
        weight: None for the mean over the labelled pixels (0 if there are none); a number or ``(B, H, W)``
            multiplies each pixel's loss and takes the mean over all pixels, the ignored ones counting as 0.
        ignore: the label of pixels without one.
    """
    if logits.shape[-2] != labels.shape[-2] and logits.shape[-1] != labels.shape[-1]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=True)
    labels = labels.long()
    if weight is not None:
        return part_of_mean((weight * F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")).mean())
    total = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum")
    return total / summed((labels != ignore).sum()).clamp_min(1)
