"""Mixing frames: pseudo labels, masks, and images, labels and confidences mixed by them (Three Ways sections 8, 9).

A mask is bool ``(B, H, W)``; True keeps the pixel of the image itself, False shows that of its partner, which is the
next image of the batch (the first for the last). Nothing here waits for the device or loops over images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semivid.data.classes import VOID
from semivid.errors import UserError

DEPTH_THRESHOLD = (0.1, 0.4)  # mask `depth`: its threshold is drawn from here
HISTOGRAM_BINS = 50  # mask `depthhist`


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(labels int64 (B, H, W), their probabilities float (B, H, W)) of a teacher's logits (B, C, H, W)."""
    confidence, labels = logits.float().softmax(1).max(1)
    return labels, confidence


def with_ground_truth(labels: Tensor, confidence: Tensor, truth: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo labels with those of the labelled images replaced by their masks.

    A pixel of the mask is certain (confidence 1); a void one has no label (VOID) and confidence 0.

    Args:
        labels, confidence: of `pseudo_labels`.
        truth: masks of any integer type ``(B, H, W)``, VOID = 255.
        labelled: bool ``(B,)``: which images have a mask.
    """
    where = labelled.view(-1, 1, 1)
    return torch.where(where, truth.long(), labels), torch.where(where, (truth != VOID).float(), confidence)


def mix(values: Tensor, mask: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` or maps ``(B, H, W)`` of any type, each mixed with its partner by `mask`."""
    where = mask.unsqueeze(1) if values.ndim == 4 else mask
    return torch.where(where, values, values.roll(-1, 0))


def confident_share(confidence: Tensor, threshold: float = 0.968) -> Tensor:
    """Share of the batch's pixels whose confidence is at least `threshold`: one number, float scalar."""
    return (confidence >= threshold).float().mean()


# ---- masks


def draw_mask(
    kind: str,
    labels: Tensor,
    num_classes: int,
    disparity: Tensor | None,
    rng: np.random.Generator,
    margin: float | None = None,
    foreground: tuple[float, float] | None = None,
) -> Tensor:
    """A random mask for every image of a batch.

    Args:
        kind: none, class, depthmix, depth or depthhist.
        labels: int64 ``(B, H, W)``, pseudo labels with the ground truth in them.
        num_classes: how many classes there are.
        disparity: float ``(B, H, W)``, normalised to [0, 1] per image, large = near; None if `kind` needs none.
        rng: the source of all draws; a row of them per image.
        margin, foreground: of DepthMix (the paper's: 0.03 and (0, 0)), which draws one threshold per image uniformly
            between the two of `foreground`; None otherwise.

    Raises:
        UserError: `kind` is unknown, or needs a disparity that is not there.
    """
    if kind == "none":
        return torch.ones_like(labels, dtype=torch.bool)
    if kind == "class":
        draws = rng.random((len(labels), num_classes))
        return class_mask(labels, choose_classes(present_classes(labels, num_classes), _to(draws, labels)))
    if disparity is None:
        raise UserError(f"mask {kind}: the unlabelled stream carries no disparity; give its samples disparity=True")
    u = _to(rng.random(len(labels)), disparity)
    if kind == "depthmix":
        low, high = foreground
        return depthmix_mask(disparity, margin, low + (high - low) * u)
    if kind == "depth":
        low, high = DEPTH_THRESHOLD
        return depth_mask(disparity, low + (high - low) * u)
    if kind == "depthhist":
        low, high = histogram_limits(disparity)
        return depth_mask(torch.log1p(disparity), low + (high - low) * u)
    raise UserError(f"unknown mask {kind!r}; choose none, class, depthmix, depth or depthhist")


def depthmix_mask(disparity: Tensor, margin: float, foreground: float | Tensor = 0.0) -> Tensor:
    """DepthMix: an image shows where it is nearer than its partner, up to a margin, and not beyond a threshold.

    Args:
        disparity: float ``(B, H, W)`` in [0, 1], large = near; any B (the reference: 2).
        margin: how much farther the image itself may be; equal depths keep it.
        foreground: least disparity of a pixel that is kept, a number or one per image ``(B,)``.
    """
    threshold = foreground.view(-1, 1, 1) if isinstance(foreground, Tensor) else foreground
    return (disparity >= disparity.roll(-1, 0) - margin) & (disparity >= threshold)


def depth_mask(values: Tensor, threshold: Tensor) -> Tensor:
    """Keep the pixels of at least `threshold` (B,); values float ``(B, H, W)``, large = near."""
    return values >= threshold.view(-1, 1, 1)


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """bool ``(B, num_classes)``: which classes an image's labels hold; void pixels count as class 0.

    They do in the reference, where a void pixel is a row of zeros whose largest entry is the first.
    """
    present = torch.zeros(len(labels), num_classes, dtype=torch.bool, device=labels.device)
    return present.scatter_(1, _void_as_first(labels).flatten(1), True)


def choose_classes(present: Tensor, draws: Tensor) -> Tensor:
    """Half of each image's classes (rounded down), as bool ``(B, C)``: those with the smallest draws.

    present: bool ``(B, C)``. draws: float ``(B, C)`` in [0, 1); independent uniform ones make all choices equal.
    """
    ranks = draws.masked_fill(~present, 2).argsort(1).argsort(1)
    return ranks < present.sum(1, keepdim=True) // 2


def class_mask(labels: Tensor, chosen: Tensor) -> Tensor:
    """ClassMix: keep the pixels of the chosen classes, bool ``(B, C)``; labels int64 ``(B, H, W)``, void = class 0."""
    return chosen.gather(1, _void_as_first(labels).flatten(1)).view(labels.shape)


def histogram_limits(disparity: Tensor) -> tuple[Tensor, Tensor]:
    """Between which two values of log(1 + d) the mask `depthhist` draws its threshold, each ``(B,)``, the lower first.

    One is the 40 % quantile, the other the farthest (smallest) dense bin of the histogram. The specification says no
    more of this mask, which no published number uses; here a bin is dense that holds its even share of the pixels.
    """
    values = torch.log1p(disparity).flatten(1)
    count = values.shape[1]
    quantile = values.sort(1).values[:, int(0.4 * (count - 1))]
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    width = (high - low) / HISTOGRAM_BINS
    bins = ((values - low) / width.clamp_min(1e-12)).long().clamp_(max=HISTOGRAM_BINS - 1)
    counts = torch.zeros(len(values), HISTOGRAM_BINS, device=values.device).scatter_add_(
        1, bins, torch.ones_like(values)
    )
    first = (counts >= count / HISTOGRAM_BINS).int().argmax(1, keepdim=True)  # argmax: the first of the largest
    dense = (low + first * width).squeeze(1)
    return torch.minimum(quantile, dense), torch.maximum(quantile, dense)


def normalise_per_image(disparity: Tensor) -> Tensor:
    """Disparity of a network, float ``(B, H, W)`` or ``(B, 1, H, W)``, as masks want it: ``(B, H, W)``, detached.

    Each image is scaled to [0, 1] by its own minimum and maximum (section 9, online disparity: per crop); a constant
    one becomes 0, where the reference divides by 0 (section 16, 12).
    """
    values = disparity.detach().float()
    values = values.squeeze(1) if values.ndim == 4 else values
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low + (high == low))


def _void_as_first(labels: Tensor) -> Tensor:
    return labels.masked_fill(labels == VOID, 0)


def _to(draws: np.ndarray, like: Tensor) -> Tensor:
    """Draws of the host as float32 on the device of `like`, without waiting for it."""
    return torch.from_numpy(draws.astype(np.float32)).to(like.device, non_blocking=True)
