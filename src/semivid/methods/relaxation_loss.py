"""Losses of NVIDIA's video propagation and label relaxation (CVPR 2019; nvidia_segmentation.md, section 5).

plain           cross entropy, the mean over all labelled pixels of the batch (5.1)
image_weighted  cross entropy in which the rare classes of an image count more, a mean per image (5.2)
relaxed         at a boundary any class of the neighbourhood will do: -log of the sum of their probabilities (5.3, 5.4)

Everything is computed on the batch and its device, in at least float32 and in log space, so that it is finite for any
finite logits. Values are this process's part: those of several processes add up to that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semivid.data.classes import VOID
from semivid.errors import UserError
from semivid.models.precision import at_least_float32
from semivid.training.distributed import gathered, part_of_mean, summed
from semivid.training.losses import cross_entropy

HISTOGRAMS = ("image", "batch")
NORMALISATIONS = ("own", "batch")
REDUCTIONS = ("sum", "mean")


# ---- targets


def relaxed_targets(
    labels: Tensor, classes: int, *, border: int = 1, strict: Sequence[int] = (), void: int = VOID
) -> Tensor:
    """Which classes a pixel may have: uint8 (B, C + 1, H, W), 1 where allowed, the last channel for void (5.3).

    Class c is allowed at a pixel if it occurs in the (2 `border` + 1)^2 pixels around it; outside the picture is void.

    Args:
        labels: integers (B, H, W), 0 .. C - 1 or `void`.
        classes: C.
        border: how many pixels a label reaches over its boundary; 0 for one class per pixel.
        strict: classes whose own pixels are not relaxed (their neighbours are, towards them too).
        void: label of pixels without one.

    Raises:
        UserError: a void id or a strict class that cannot be, and, on the CPU, labels that are no classes. On a GPU
            a look at the labels would hold up every step; masks are checked when they are prepared.
    """
    own = _one_hot(labels, classes, void)
    _check_strict(strict, classes)
    allowed = own
    for axis in (-1, -2):
        before, allowed = allowed, allowed.clone()
        size = allowed.shape[axis]
        for shift in range(1, min(border, size) + 1):
            left, right = (t.narrow(axis, 0, size - shift) for t in (before, allowed))
            right |= before.narrow(axis, shift, size - shift)
            allowed.narrow(axis, shift, size - shift).logical_or_(left)
            allowed[:, -1].narrow(axis, shift - 1, 1).fill_(True)
            allowed[:, -1].narrow(axis, size - shift, 1).fill_(True)
    if strict:
        pure = torch.stack([own[:, c] for c in strict]).any(0)
        allowed = torch.where(pure[:, None], own, allowed)
    return allowed.to(torch.uint8)


def hard_targets(labels: Tensor, classes: int, *, void: int = VOID) -> Tensor:
    """One class per pixel, stored as 2 on label boundaries: uint8 (B, C + 1, H, W), after the relaxation (5.3).

    On a boundary is a pixel of which one of the four neighbours within the picture has another label, void included.
    Arguments and errors as in :func:`relaxed_targets`.
    """
    own = _one_hot(labels, classes, void)
    edge = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for axis in (1, 2):
        size = labels.shape[axis] - 1
        differs = labels.narrow(axis, 1, size) != labels.narrow(axis, 0, size)
        edge.narrow(axis, 1, size).logical_or_(differs)
        edge.narrow(axis, 0, size).logical_or_(differs)
    return own.to(torch.uint8) << edge[:, None].to(torch.uint8)


def _one_hot(labels: Tensor, classes: int, void: int) -> Tensor:
    """bool (B, C + 1, H, W), the last channel for void."""
    _check_labels(labels, classes, void)
    ids = labels.to(torch.int16).masked_fill(labels == void, classes)
    return ids[:, None] == torch.arange(classes + 1, dtype=torch.int16, device=labels.device)[:, None, None]


# ---- losses


def relaxed_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    bound: float = 1.0,
    histogram: str = "image",
    normalisation: str = "own",
    hard: bool = False,
    reduction: str = "sum",
) -> Tensor:
    """Minus the log of the allowed classes' summed probability, weighted and averaged per image (5.4).

    At a pixel with n allowed classes A (void not among them) it is mean_{c in A} w_c * -log sum_{k in A} p_k, and 0
    without any; of an image the sum over its pixels, divided by the number of pixels with one plus 1.

    Args:
        logits: (B, C, H, W).
        targets: uint8 (B, C + 1, H, W) of :func:`relaxed_targets` or :func:`hard_targets`.
        bound: B in the class weight w_c = 1 + B (1 - h_c), where h_c is the class's share of all entries of the
            targets, void's included.
        histogram: ``image``, shares of each image; ``batch``, of the whole batch.
        normalisation: ``own``, n of the image itself. ``batch`` is the reference's error: each image's loss is summed
            over the n of every image in the batch, so that it is about B times larger and depends on the others'
            boundaries. Published networks were trained so, with batches of 2.
        hard: `targets` are those of :func:`hard_targets`: boundary pixels count twice.
        reduction: ``sum`` over the images, as the reference, or ``mean``, which does not grow with the batch.

    Returns:
        A scalar of at least float32, >= 0.

    Raises:
        UserError: targets of another size than the logits, or an unknown option.
    """
    _check_options(bound, histogram, reduction)
    _check_normalisation(normalisation)
    if (logits.shape[0], logits.shape[1] + 1, *logits.shape[2:]) != tuple(targets.shape):
        raise UserError(
            f"relaxed loss: targets {tuple(targets.shape)} for logits {tuple(logits.shape)}; they need one channel "
            "more, for void, and the same pixels: bring logits and masks to one size"
        )
    logits = at_least_float32(logits)
    weight = _class_weights(targets.sum((2, 3)), bound, histogram, logits.dtype)[:, :-1]
    count = targets[:, :-1].sum(1)
    valid, count = count > 0, count.clamp_min(1)
    allowed = targets[:, :-1] > 0
    # Selected, not multiplied: 0 times the log of a probability that underflows is not a number. Pixels without an
    # allowed class have all of them, so that their gradient, which does not count, is finite.
    log_p = F.log_softmax(logits, 1).masked_fill(~(allowed | ~valid[:, None]), -torch.inf).logsumexp(1)
    factor = count.to(logits.dtype) if hard else 1 / count.to(logits.dtype)
    if normalisation == "batch":
        factor = gathered(factor).sum(0)
    pixels = factor * torch.einsum("bc,bchw->bhw", weight.expand(len(logits), -1), allowed.to(logits.dtype)) * -log_p
    return _reduced((pixels * valid).sum((1, 2)) / (valid.sum((1, 2)) + 1), reduction)


def image_weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    bound: float = 1.0,
    histogram: str = "image",
    reduction: str = "sum",
    void: int = VOID,
) -> Tensor:
    """Cross entropy with weights w_c = 1 + B (1 - h_c): per image the weighted mean over its labelled pixels (5.2).

    h_c is the class's share of the labelled pixels; void does not count, whatever its id (the reference counts a void
    id of C as class C - 1). An image without a labelled pixel gives 0.

    Args:
        logits: (B, C, H, W).
        labels: integers (B, H, W), 0 .. C - 1 or `void`.
        bound, histogram, reduction: see :func:`relaxed_loss`; the mean per image stays with the histogram of a batch.
        void: label of pixels without one.

    Returns:
        A scalar of at least float32, >= 0.

    Raises:
        UserError: labels of another size, a void id that cannot be, an unknown option, labels that are no classes
            (on the CPU, see :func:`relaxed_targets`).
    """
    _check_options(bound, histogram, reduction)
    _check_size(logits, labels)
    logits, classes = at_least_float32(logits), logits.shape[1]
    counts = _one_hot(labels, classes, void)[:, :-1].sum((2, 3))
    weight = _class_weights(counts, bound, histogram, logits.dtype).expand(len(logits), -1)
    ids = labels.long().masked_fill(labels == void, classes)
    weight = F.pad(weight, (0, 1)).gather(1, ids.flatten(1)).view(labels.shape)
    losses = weight * F.cross_entropy(logits, ids, ignore_index=classes, reduction="none")
    total = weight.sum((1, 2))
    return _reduced(losses.sum((1, 2)) / total.masked_fill(total == 0, 1), reduction)


def _class_weights(counts: Tensor, bound: float, histogram: str, dtype: torch.dtype) -> Tensor:
    """1 + B (1 - share) of the classes that occur, 1 of the others: (B, n) of counts (B, n); (1, n) for a batch."""
    if histogram == "batch":
        counts = summed(counts.sum(0, keepdim=True))
    share = counts.to(dtype) / counts.sum(1, keepdim=True).clamp_min(1).to(dtype)
    return 1 + bound * (1 - share) * (counts > 0)


def _reduced(per_image: Tensor, reduction: str) -> Tensor:
    return per_image.sum() if reduction == "sum" else part_of_mean(per_image.mean())


# ---- losses with their options


@dataclass(frozen=True)
class PlainLoss:
    """Mean cross entropy over the labelled pixels. void: label of pixels without one."""

    void: int = VOID

    def __call__(self, logits: Tensor, labels: Tensor, step: int) -> Tensor:
        """Scalar, of logits (B, C, H, W) and integer labels (B, H, W); the step does not matter."""
        _check_size(logits, labels)
        _check_labels(labels, logits.shape[1], self.void)
        return cross_entropy(at_least_float32(logits), labels, ignore=self.void)


@dataclass(frozen=True)
class ImageWeightedLoss:
    """See :func:`image_weighted_cross_entropy`."""

    bound: float = 1.0
    histogram: str = "image"
    reduction: str = "sum"
    void: int = VOID

    def __post_init__(self) -> None:
        _check_options(self.bound, self.histogram, self.reduction)

    def __call__(self, logits: Tensor, labels: Tensor, step: int) -> Tensor:
        """Scalar, of logits (B, C, H, W) and integer labels (B, H, W); the step does not matter."""
        options = {"bound": self.bound, "histogram": self.histogram, "reduction": self.reduction, "void": self.void}
        return image_weighted_cross_entropy(logits, labels, **options)


@dataclass(frozen=True)
class RelaxedLoss:
    """See :func:`relaxed_targets` and :func:`relaxed_loss`.

    relax_steps: relaxed targets in the steps 0 .. relax_steps - 1, :func:`hard_targets` from then on; None for relaxed
    ones to the end. The reference's ``rlx_off_epoch`` E is still relaxed itself: with epochs of N steps, (E + 1) N.
    """

    border: int = 1
    strict: tuple[int, ...] = ()
    relax_steps: int | None = None
    bound: float = 1.0
    histogram: str = "image"
    normalisation: str = "own"
    reduction: str = "sum"
    void: int = VOID

    def __post_init__(self) -> None:
        _check_options(self.bound, self.histogram, self.reduction)
        if self.border < 0:
            raise UserError(f"relaxed loss: border {self.border}; give 0 or more pixels")
        if self.relax_steps is not None and self.relax_steps < 0:
            raise UserError(f"relaxed loss: relax_steps {self.relax_steps}; give 0 or more, or none to relax always")
        if self.normalisation not in NORMALISATIONS:
            raise UserError(
                f"relaxed loss: no normalisation {self.normalisation!r}; take {' or '.join(NORMALISATIONS)}"
            )

    def __call__(self, logits: Tensor, labels: Tensor, step: int) -> Tensor:
        """Scalar, of logits (B, C, H, W) and integer labels (B, H, W) in `step`, counted from 0."""
        _check_size(logits, labels)
        classes = logits.shape[1]
        _check_strict(self.strict, classes)  # also where they play no part any more
        hard = self.relax_steps is not None and step >= self.relax_steps
        if hard:
            targets = hard_targets(labels, classes, void=self.void)
        else:
            targets = relaxed_targets(labels, classes, border=self.border, strict=self.strict, void=self.void)
        return relaxed_loss(
            logits,
            targets,
            bound=self.bound,
            histogram=self.histogram,
            normalisation=self.normalisation,
            hard=hard,
            reduction=self.reduction,
        )


LOSSES = {"plain": PlainLoss, "image_weighted": ImageWeightedLoss, "relaxed": RelaxedLoss}


# ---- checks


def _check_options(bound: float, histogram: str, reduction: str) -> None:
    if not 0 <= bound < float("inf"):
        raise UserError(f"loss: bound {bound} of the class weights; give a number from 0")
    if histogram not in HISTOGRAMS:
        raise UserError(f"loss: no histogram {histogram!r}; take {' or '.join(HISTOGRAMS)}")
    if reduction not in REDUCTIONS:
        raise UserError(f"loss: no reduction {reduction!r}; take {' or '.join(REDUCTIONS)}")


def _check_normalisation(normalisation: str) -> None:
    if normalisation not in NORMALISATIONS:
        raise UserError(f"relaxed loss: no normalisation {normalisation!r}; take {' or '.join(NORMALISATIONS)}")


def _check_strict(strict: Sequence[int], classes: int) -> None:
    if wrong := [c for c in strict if not 0 <= c < classes]:
        raise UserError(f"relaxed loss: strict class {wrong[0]} is none of 0..{classes - 1}; correct the list")


def _check_size(logits: Tensor, labels: Tensor) -> None:
    if (logits.shape[0], *logits.shape[2:]) != tuple(labels.shape):
        raise UserError(
            f"loss: labels {tuple(labels.shape)} for logits {tuple(logits.shape)}; bring both to one number of images, "
            "rows and columns"
        )


def _check_labels(labels: Tensor, classes: int, void: int) -> None:
    if not classes <= void <= 255:
        raise UserError(f"loss: void id {void} is not in {classes}..255, beyond the {classes} classes; correct it")
    if labels.device.type == "cpu":
        wrong = (labels != void) & ((labels < 0) | (labels >= classes))
        if wrong.any():
            raise UserError(
                f"loss: label {int(labels[wrong][0])} is neither a class (0..{classes - 1}) nor void ({void}); "
                "do the masks and the network belong together?"
            )
