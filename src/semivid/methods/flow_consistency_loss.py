"""The Flow Consistency Loss: neighbouring pixels that move differently are to be of different classes.

For every pixel with class probabilities p, over its neighbours with probabilities q (without gradient) at most
m rows and columns away, of which the ring at distance s holds 8 s (specification flow_consistency.md, section 4):

    loss = sum over pixels, neighbours, classes of   w(flow, neighbour's flow) / (8 s)  q log(p + 1e-10)

It is the *negative* of a cross entropy: minimising it drives p away from q. Three versions of w and sign:

==========  ==========================================  ====  =============================================
final       \\|F - F'\\| where that exceeds a threshold    +     repels neighbours of different motion
january     \\|F - F'\\|                                  +     the same, over 5 x 5 pixels (section 12)
v2          max(0, 1 - \\|F - F'\\| / threshold)          -     attracts neighbours of equal motion
==========  ==========================================  ====  =============================================
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from semivid.errors import UserError
from semivid.models.precision import at_least_float32


class Version(NamedTuple):
    """What a version of the loss takes where nothing else is asked for; the threshold is in pixels."""

    max_shift: int
    threshold: float


VERSIONS = {"final": Version(1, 0.2), "january": Version(2, 0.0), "v2": Version(1, 0.5)}
EPSILON = 1e-10
# Logits that are worked on at a time on a CPU: what fits its cache; all at once takes twice as long.
_BAND = 2**19

Shift = tuple[int, int]


def flow_consistency_loss(
    logits: Tensor,
    flow: Tensor,
    *,
    version: str = "final",
    max_shift: int | None = None,
    threshold: float | None = None,
    valid: Tensor | None = None,
    clamp: float | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The loss without its weight lambda (the reference multiplies the sum by 0.01, its January version by 10).

    Args:
        logits: ``(B, C, H, W)``, floating point; half precision is computed in float32.
        flow: ``(B, 2, H, W)``, u to the right and v down, in pixels of the logits' grid; gets no gradient.
        version: ``final``, ``january`` or ``v2``.
        max_shift: m >= 1, how far neighbours reach; None for the version's own (1, 2, 1).
        threshold: in pixels; None for the version's own (0.2, none, 0.5).
        valid: bool ``(B, H, W)``; pairs count where both pixels are valid. Flow of other pixels is not looked at.
            None is the reference's rule, for parity: a neighbour whose flow is exactly 0 does not count, but such
            a centre does. So a region whose flow was set to 0 repels its border: the seam (section 13, defect 3).
        clamp: upper limit of w in pixels, against outliers of a failed flow (defect 16); None for no limit.
        reduction: ``sum`` over all pixels of the batch, or ``mean``: that divided by B H W, invalid ones included.

    Returns:
        A scalar, float32 (float64 for such logits): <= 0 but for v2, 0 where no pair counts.

    Raises:
        UserError: shapes do not fit, the flow of a valid pixel is infinite or not a number, or an option is wrong.
    """
    weights = pair_weights(
        flow, version=version, max_shift=max_shift, threshold=threshold, valid=valid, clamp=clamp, size=_size(logits)
    )
    if reduction not in ("sum", "mean"):
        raise UserError(f"flow consistency: unknown reduction {reduction!r}; take sum or mean")
    loss = _PairedLogLikelihood.apply(logits, weights)
    if version == "v2":
        loss = -loss
    return loss if reduction == "sum" else loss / max(weights[next(iter(weights))].numel(), 1)


def pair_weights(
    flow: Tensor,
    *,
    version: str = "final",
    max_shift: int | None = None,
    threshold: float | None = None,
    valid: Tensor | None = None,
    clamp: float | None = None,
    size: tuple[int, int, int] | None = None,
) -> dict[Shift, Tensor]:
    """Weights of all pairs of neighbours, as :func:`flow_consistency_loss` uses them and with its arguments.

    Args:
        size: (B, H, W) that the flow must have; None takes any.

    Returns:
        (a, b) -> ``(B, H, W)``: at (y, x) the weight w / (8 s) of its neighbour at (y - a, x - b), 0 where that
        lies outside of the image; s = max(|a|, |b|). float32, or as the flow if that is float64.

    Raises:
        UserError: see :func:`flow_consistency_loss`.
    """
    reach, threshold = _options(version, max_shift, threshold, clamp)
    flow, counts = _checked(flow, valid, size)
    u, v = flow.unbind(1)
    weights = {}
    for shift in _half_of_the_shifts(reach):
        here, there = _overlap(shift, u.shape[-2:])
        difference = torch.sqrt((u[here] - u[there]).square_().add_((v[here] - v[there]).square_()))
        if version == "v2":
            weight = (1 - difference / threshold).clamp_(min=0)
        else:
            weight = difference.masked_fill_(difference <= threshold, 0)
        if clamp is not None:
            weight.clamp_(max=clamp)
        weight.div_(8 * max(map(abs, shift)))
        # The difference is the same seen from either pixel; who of the two counts as a neighbour is not.
        back = (-shift[0], -shift[1])
        weights[shift], weights[back] = torch.zeros_like(u), torch.zeros_like(u)
        seen_from_here, seen_from_there = counts[there], counts[here]
        if valid is not None:
            seen_from_here = seen_from_there = seen_from_here & seen_from_there
        weights[shift][here] = weight * seen_from_here
        weights[back][there] = weight * seen_from_there
    return weights


class _PairedLogLikelihood(torch.autograd.Function):
    """sum over pairs of weight * q' log(p + eps), q' constant, with its gradient in closed form.

    With D = sum over the neighbours of weight * q' and g = D / (p + eps), the gradient to the logits is
    p (g - sum over classes of p g). Bands of rows keep everything within the CPU's cache, and nothing of the
    size of the logits is kept but the gradient.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, weights: dict[Shift, Tensor]) -> Tensor:
        batch, classes, height, width = logits.shape
        reach = max((a for a, _ in weights), default=0)
        rows = max(8, _BAND // max(batch * classes * width, 1)) if logits.device.type == "cpu" else max(height, 1)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        sums = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # Neighbours lie up to `reach` rows beyond the band.
            first, last = max(top - reach, 0), min(bottom + reach, height)
            q = torch.softmax(at_least_float32(logits[:, :, first:last]), 1)
            p = q[:, :, top - first : bottom - first]
            d = torch.zeros_like(p)
            for (a, b), weight in weights.items():
                up, down = max(top, a), min(bottom, height + a)
                left, right = max(0, b), min(width, width + b)
                if up < down and left < right:
                    d[:, :, up - top : down - top, left:right].addcmul_(
                        weight[:, None, up:down, left:right],
                        q[:, :, up - a - first : down - a - first, left - b : right - b],
                    )
            shifted = p + EPSILON
            sums.append(torch.log(shifted).mul_(d).sum())
            if gradient is not None:
                pg = d.div_(shifted).mul_(p)
                gradient[:, :, top:bottom] = pg.addcmul_(p, pg.sum(1, keepdim=True), value=-1)
        ctx.save_for_backward(gradient)
        return torch.stack(sums).sum() if sums else at_least_float32(logits).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, outer: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else (gradient * outer).to(gradient.dtype), None


def _half_of_the_shifts(reach: int) -> list[Shift]:
    """One of each pair of opposite shifts (a, b), 0 <= a <= reach, |b| <= reach."""
    return [(a, b) for a in range(reach + 1) for b in range(-reach, reach + 1) if (a, b) > (0, 0)]


def _overlap(shift: Shift, size: torch.Size) -> tuple[tuple[slice | type(...), ...], ...]:
    """Indices of all pixels that have a neighbour at minus `shift` (a >= 0) inside, and of those neighbours."""
    (a, b), (height, width) = shift, size
    left, right = max(0, b), max(min(width, width + b), max(0, b))
    here = (..., slice(a, height), slice(left, right))
    there = (..., slice(0, max(height - a, 0)), slice(left - b, right - b))
    return here, there


def _size(logits: Tensor) -> tuple[int, int, int]:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise UserError(
            f"flow consistency: logits {tuple(logits.shape)} of {logits.dtype}; wanted are floats (B, C, H, W)"
        )
    return logits.shape[0], logits.shape[2], logits.shape[3]


def _options(version: str, max_shift: int | None, threshold: float | None, clamp: float | None) -> Version:
    if version not in VERSIONS:
        raise UserError(f"flow consistency: unknown version {version!r}; take one of {', '.join(VERSIONS)}")
    own = VERSIONS[version]
    chosen = Version(
        own.max_shift if max_shift is None else max_shift, own.threshold if threshold is None else threshold
    )
    if chosen.max_shift < 1:
        raise UserError(f"flow consistency: max_shift {max_shift}: neighbours are at least 1 pixel away")
    if version == "january" and chosen.threshold != 0:
        raise UserError("flow consistency: version january has no threshold; leave it out, or take version final")
    if not chosen.threshold >= 0 or (version == "v2" and chosen.threshold == 0):
        raise UserError(f"flow consistency: threshold {threshold}: a positive number of pixels is wanted")
    if clamp is not None and not clamp > 0:
        raise UserError(f"flow consistency: clamp {clamp}: a positive number of pixels is wanted")
    return chosen


def _checked(flow: Tensor, valid: Tensor | None, size: tuple[int, int, int] | None) -> tuple[Tensor, Tensor]:
    """The flow without gradient, and bool (B, H, W): which pixels count as neighbours."""
    if flow.ndim != 4 or flow.shape[1] != 2 or not flow.is_floating_point():
        raise UserError(f"flow consistency: flow {tuple(flow.shape)} of {flow.dtype}; wanted are floats (B, 2, H, W)")
    grid = (flow.shape[0], *flow.shape[2:])
    if size is not None and grid != size:
        raise UserError(
            f"flow consistency: flow of (B, H, W) = {grid} does not fit logits of {size}; "
            "resize it to their grid, its values with it (semivid.flow.files.resize_flow)"
        )
    flow = at_least_float32(flow.detach())
    if valid is not None:
        if tuple(valid.shape) != grid or valid.dtype != torch.bool:
            raise UserError(
                f"flow consistency: valid {tuple(valid.shape)} of {valid.dtype}; wanted is bool (B, H, W) = {grid}"
            )
        # Invalid flow may hold anything; not-a-number would survive a multiplication by 0.
        flow = flow.masked_fill(~valid[:, None], 0)
    if not torch.isfinite(flow).all():
        raise UserError(
            "flow consistency: the flow holds values that are infinite or not a number; "
            "compute it again, or mark them as invalid"
        )
    return flow, (flow != 0).any(1) if valid is None else valid
