"""Losses of self-supervised depth (monodepth2) and of the depth students that choose frames (Three Ways).

Images are RGB in [0, 1], disparities sigmoid outputs in (0, 1). Losses are computed in float32 or better,
also under autocast: photometric differences are too small for half precision.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from semivid.geometry.camera import MAX_DEPTH, MIN_DEPTH, disp_to_depth
from semivid.geometry.warp import Reprojection, sample
from semivid.models.encoder_decoder import resize
from semivid.models.precision import at_least_float32

SSIM_WEIGHT = 0.85
SMOOTHNESS_WEIGHT = 1e-3
NOISE = 1e-5
_C1, _C2 = 0.01**2, 0.03**2


class _Box(torch.autograd.Function):
    """Mean over 3x3 windows, ``(B, C, H + 2, W + 2)`` to ``(B, C, H, W)``.

    Sums of shifted views take a third of the time of avg_pool2d on a CPU; the gradient is the same filter.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        rows = (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :])
        return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).mul_(1 / 9)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Box.apply(F.pad(gradient, (2, 2, 2, 2)))


def _reflect(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


class Photometric:
    """Photometric distance of images to one fixed image, whose own window statistics are computed once.

    ``0.85 mean_c clamp((1 - SSIM) / 2, 0, 1) + 0.15 mean_c |a - b|`` per pixel (monodepth2, equation 3),
    with SSIM over 3x3 windows and biased variances.

    Args:
        target: ``(B, C, H, W)`` in [0, 1].
    """

    def __init__(self, target: Tensor):
        self.target = target
        self._padded = _reflect(target)
        self._mean = _Box.apply(self._padded)
        self._variance = _Box.apply(self._padded**2) - self._mean**2

    def dissimilarity(self, image: Tensor) -> Tensor:
        """``clamp((1 - SSIM) / 2, 0, 1)`` per pixel and channel, ``(B, C, H, W)``."""
        padded = _reflect(image)
        mean = _Box.apply(padded)
        mean_sq, cross = mean**2, mean * self._mean
        variance = _Box.apply(padded**2) - mean_sq
        covariance = _Box.apply(padded * self._padded) - cross
        numerator = (2 * cross + _C1) * (2 * covariance + _C2)
        denominator = (mean_sq + self._mean**2 + _C1) * (variance + self._variance + _C2)
        return ((1 - numerator / denominator) / 2).clamp(0, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Distance per pixel, ``(B, 1, H, W)`` in [0, 1]."""
        absolute = (image - self.target).abs().mean(1, keepdim=True)
        structure = self.dissimilarity(image).mean(1, keepdim=True)
        return SSIM_WEIGHT * structure + (1 - SSIM_WEIGHT) * absolute


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural dissimilarity ``clamp((1 - SSIM) / 2, 0, 1)`` per pixel and channel, ``(B, C, H, W)``."""
    return Photometric(b).dissimilarity(a)


def photometric(a: Tensor, b: Tensor) -> Tensor:
    """Photometric distance ``(B, 1, H, W)`` of two images ``(B, C, H, W)``; see :class:`Photometric`."""
    return Photometric(b)(a)


def smoothness(disp: Tensor, image: Tensor) -> Tensor:
    """Edge-aware smoothness of a disparity, as it is (monodepth2, equation 5, without the normalisation).

    Args:
        disp: ``(B, 1, H, W)``.
        image: ``(B, C, H, W)`` of the same size; its gradients switch the penalty off.

    Returns:
        A scalar: the mean of \\|dx d\\| exp(-mean_c \\|dx I\\|) plus that of the vertical term.
    """

    def term(axis: int) -> Tensor:
        edge = torch.diff(image, dim=axis).abs().mean(1, keepdim=True)
        return (torch.diff(disp, dim=axis).abs() * torch.exp(-edge)).mean()

    return term(3) + term(2)


def mean_normalised(disp: Tensor) -> Tensor:
    """A disparity ``(B, 1, H, W)`` divided by its mean over each image, so that shrinking it wins nothing."""
    return disp / (disp.mean((2, 3), keepdim=True) + 1e-7)


def monodepth_loss(
    disparities: Mapping[int, Tensor],
    target: Tensor,
    sources: Mapping[int, Tensor],
    transforms: Mapping[int, Tensor],
    k: Tensor,
    automask: bool = True,
    generator: torch.Generator | None = None,
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
) -> dict[str, Tensor]:
    """Self-supervised depth loss over scales (monodepth2, equations 1 to 6).

    Every scale's disparity is resized to the image and warps the full-size neighbours; per pixel the best of
    the warped neighbours counts, or, with the auto-mask, none where an un-warped neighbour fits better still
    (a static scene, an object that moves along). The scale-s image of the smoothness term is an area average.

    Args:
        disparities: scale -> ``(B, 1, h, w)`` in (0, 1).
        target: current frame, ``(B, 3, H, W)`` in [0, 1], without colour augmentation.
        sources: offset -> neighbouring frame, as `target`.
        transforms: offset -> ``(B, 4, 4)`` from the current camera to the neighbour's.
        k: intrinsics in pixels of `target`, ``(3, 3)``, ``(4, 4)`` or with a leading batch.
        automask: leave out pixels that an un-warped neighbour explains best.
        generator: source of the noise (1e-5) that breaks ties of the auto-mask; None adds none, and an
            un-warped neighbour then wins ties.
        min_depth, max_depth: depths of disparity 1 and 0.

    Returns:
        ``loss``: mean over scales, with gradient; ``loss/s``: that of scale s, detached;
        ``warped/s``: fraction of pixels that a warped neighbour explains best, detached.
    """
    target = at_least_float32(target).contiguous()
    size = target.shape[-2:]
    offsets = list(sources)
    with torch.autocast(target.device.type, enabled=False):
        images = [at_least_float32(sources[offset]).contiguous() for offset in offsets]
        distance = Photometric(target)
        # Neither the identity distances nor the rays depend on the scale.
        identity = torch.cat([distance(image) for image in images], 1).detach() if automask else None
        views = [Reprojection(k, at_least_float32(transforms[offset]), size) for offset in offsets]
        result, losses = {}, []
        for scale, disp in disparities.items():
            disp = at_least_float32(disp)
            _, depth = disp_to_depth(resize(disp, size), min_depth, max_depth)
            candidates = [distance(sample(image, view.grid(depth))) for image, view in zip(images, views, strict=True)]
            if identity is not None:
                candidates.insert(0, identity + _noise(identity, generator))
            best, winner = torch.cat(candidates, 1).min(1)
            small = F.adaptive_avg_pool2d(target, disp.shape[-2:])
            smooth = smoothness(mean_normalised(disp), small)
            loss = best.mean() + SMOOTHNESS_WEIGHT / 2**scale * smooth
            losses.append(loss)
            result[f"loss/{scale}"] = loss.detach()
            first_warped = len(images) if automask else 0
            result[f"warped/{scale}"] = (winner >= first_warped).float().mean()
        return {"loss": torch.stack(losses).mean(), **result}


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor | float:
    if generator is None:
        return 0.0
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return NOISE * noise.to(like.device)


def feature_distance(features: Tensor, reference: Tensor) -> Tensor:
    """Distance of encoder features to those of a frozen ImageNet encoder (Three Ways, equation 2).

    The root of the summed squares over the whole batch: no mean. Its gradient is 0 where both are equal.
    """
    return torch.linalg.vector_norm(at_least_float32(features) - at_least_float32(reference))


def berhu(prediction: Tensor, target: Tensor, keep_rows: float = 1.0, log: bool = False) -> Tensor:
    """Reverse Huber distance of two disparity maps: L1 for small errors, squared for large ones.

    Args:
        prediction: ``(B, 1, H, W)``.
        target: the same shape.
        keep_rows: errors in rows from ``floor(keep_rows * H)`` on count as 0 (0.9 leaves out the own car).
        log: compare log(1 + x) instead of x.

    Returns:
        The mean over all pixels of e where e <= C, else (e^2 + C^2) / (2 C), with C = 0.2 max(e) over the
        batch, held constant in the gradient.
    """
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    if log:
        prediction, target = torch.log1p(prediction), torch.log1p(target)
    error = (target - prediction).abs()
    rows = torch.arange(error.shape[-2], device=error.device).view(-1, 1)
    # The tiny term undoes the rounding of products like 0.29 * 100.
    error = error * (rows < math.floor(keep_rows * error.shape[-2] + 1e-9))
    # At error 0 everywhere C would divide by zero.
    threshold = (0.2 * error.detach().max()).clamp_min(torch.finfo(error.dtype).tiny)
    large = (error**2 + threshold**2) / (2 * threshold)
    return torch.where(error <= threshold, error, large).mean()
