"""Losses of the SDC network's training and the scores of its frames (specification sdc_propagation, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from semivid.models.precision import at_least_float32
from semivid.propagation.flownet2 import RGB_MAX

COLOR, GRADIENT, SMOOTHNESS = 0.7, 0.2, 0.1


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences along x ``(..., H, W - 1)`` and y ``(..., H - 1, W)``."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def color_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of frames ``(B, 3, H, W)`` in 0..255, as a share of 255."""
    return (prediction - target).abs().mean() / RGB_MAX


def gradient_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean difference of the edges' strengths, ``||dx I| - |dx T||`` and the same along y, added.

    Frames ``(B, 3, H, W)`` in 0..255; in grey levels: unlike the colour loss it is not divided by 255, as published.
    """
    edges = zip(_differences(prediction), _differences(target), strict=True)
    along_x, along_y = ((own.abs() - true.abs()).abs().mean() for own, true in edges)
    return along_x + along_y


def smoothness_loss(motion: Tensor) -> Tensor:
    """Mean absolute differences of a motion field ``(B, 2, H, W)`` in pixels, along x and y, added."""
    along_x, along_y = (d.abs().mean() for d in _differences(motion))
    return along_x + along_y


def sdc_losses(
    prediction: Tensor,
    target: Tensor,
    motion: Tensor,
    color: float = COLOR,
    gradient: float = GRADIENT,
    smoothness: float = SMOOTHNESS,
) -> dict[str, Tensor]:
    """The loss of a predicted frame, and what it is made of.

    Args:
        prediction: the warped frame ``(B, 3, H, W)``, 0..255.
        target: the true frame, of the same shape.
        motion: ``(B, 2, H, W)`` in pixels.
        color, gradient, smoothness: weights; the published ones are 0.7, 0.2, 0.1.

    Returns:
        Scalars color, color_gradient, flow_smoothness, and loss, their weighted sum.
    """
    prediction, target, motion = (at_least_float32(x) for x in (prediction, target, motion))
    parts = {
        "color": color_loss(prediction, target),
        "color_gradient": gradient_loss(prediction, target),
        "flow_smoothness": smoothness_loss(motion),
    }
    weights = (color, gradient, smoothness)
    return {"loss": sum(w * part for w, part in zip(weights, parts.values(), strict=True)), **parts}


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each 8-bit frame, ``(B,)`` float64; infinite for equal frames.

    prediction, target: ``(B, 3, H, W)`` in 0..255. Predictions are rounded and clipped as a picture file would hold
    them (the reference cuts off the fraction, which costs up to one level).
    """
    error = (as_picture(prediction).double() - as_picture(target).double()).square().mean((1, 2, 3))
    return 10 * torch.log10(RGB_MAX**2 / error)


def interpolation_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels of the colours' distance, ``(B,)`` float64, grey levels; frames as in `psnr`."""
    difference = as_picture(prediction).double() - as_picture(target).double()
    return difference.square().sum(1).sqrt().mean((1, 2))


def as_picture(frame: Tensor) -> Tensor:
    """A frame in 0..255 as uint8, rounded and clipped."""
    return frame if frame.dtype == torch.uint8 else frame.detach().round().clamp(0, RGB_MAX).to(torch.uint8)
