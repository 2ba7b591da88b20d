"""Cross entropies of the flow-consistency reference (specification flow_consistency.md, section 5).

They differ from :func:`semivid.training.losses.cross_entropy` in the reduction: `sum` is a sum over all pixels of
the batch, so that a learning rate for it is that for the mean divided by the number of pixels (section 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from semivid.data.classes import VOID
from semivid.errors import UserError
from semivid.models.precision import at_least_float32


def cross_entropy2d(
    logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, ignore: int = VOID, reduction: str = "sum"
) -> Tensor:
    """Cross entropy over the labelled pixels.

    Args:
        logits: ``(B, C, h, w)``; resized bilinearly (align_corners False) where they are smaller in both sides.
        labels: ``(B, H, W)`` of any integer type, class numbers or `ignore`.
        weight: ``(C,)``, what a pixel of each class counts; None for 1.
        ignore: the label of pixels without one (the reference's own files say 250).
        reduction: ``sum``, or ``mean``: that divided by the sum of the pixels' weights.

    Returns:
        A scalar, at least float32; 0 without a labelled pixel.

    Raises:
        UserError: the logits are larger than the labels, or smaller in one side only; an unknown reduction.
    """
    if reduction not in ("sum", "mean"):
        raise UserError(f"cross entropy: unknown reduction {reduction!r}; take sum or mean")
    logits, labels = _fitted(logits, labels), labels.long()
    if weight is not None:
        weight = weight.to(logits)
    total = F.cross_entropy(logits, labels, weight, ignore_index=ignore, reduction="sum")
    if reduction == "sum":
        return total
    known = labels != ignore
    count = known.sum() if weight is None else weight[labels[known]].sum()
    return total / count.clamp_min(1 if weight is None else 1e-30)


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, k: int, *, ignore: int = VOID) -> Tensor:
    """Mean over the images of the mean of their `k` largest pixel losses; pixels without a label count as 0.

    Args:
        logits, labels, ignore: see :func:`cross_entropy2d`.
        k: from 1 to H W.

    Raises:
        UserError: `k` is not among the numbers of pixels, or the sizes do not fit.
    """
    if not 1 <= k <= labels[0].numel():
        raise UserError(f"bootstrapped cross entropy: k = {k}; an image has 1 to {labels[0].numel()} pixels")
    losses = F.cross_entropy(_fitted(logits, labels), labels.long(), ignore_index=ignore, reduction="none")
    return losses.flatten(1).topk(k).values.mean()


def multi_scale_cross_entropy(outputs: Sequence[Tensor], labels: Tensor, *, scale: float = 0.4, **options) -> Tensor:
    """The sum of ``scale**i`` times the cross entropy of output i.

    Args:
        outputs: logits of several heads, the main one first, each as in :func:`cross_entropy2d`.
        labels: ``(B, H, W)``.
        options: of :func:`cross_entropy2d`.
    """
    return sum(scale**i * cross_entropy2d(logits, labels, **options) for i, logits in enumerate(outputs))


def _fitted(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits in at least float32 and of the labels' size."""
    logits = at_least_float32(logits)
    have, want = tuple(logits.shape[-2:]), tuple(labels.shape[-2:])
    if have == want:
        return logits
    if have[0] >= want[0] or have[1] >= want[1]:
        raise UserError(
            f"cross entropy: logits of {have} for labels of {want} (H, W); they must be of one size, or the logits "
            "smaller in both sides"
        )
    return F.interpolate(logits, size=want, mode="bilinear", align_corners=False)
