"""Strong augmentation of whole batches on their device: colour jitter and Gaussian blur (Three Ways section 8, 4).

The formulas are those of kornia 0.4.0, which the published numbers were made with. What is drawn is a function of
(seed, step, position in the batch), never of a generator's history.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semivid.training.rng import generator

SIGMA = (0.15, 1.15)  # of the blur, in pixels


def strong_augment(
    images: Tensor,
    seed: int,
    step: int,
    jitter: float = 0.8,
    strength: float = 0.25,
    blur: float = 0.5,
    first: int = 0,
) -> Tensor:
    """A batch with colour jitter, with blur, with both or with neither.

    Args:
        images: float ``(B, 3, H, W)`` RGB in [0, 1].
        seed, step: all that the draws depend on.
        jitter, blur: probabilities that the batch is jittered, blurred.
        first: position in the batch of the first of `images`, where they are a slice of it.
        strength: of the jitter, 0..1: brightness and hue shift by up to it, contrast and saturation scale by up to it.

    Returns:
        A tensor of the same shape in [0, 1]; `images` itself where nothing is to be done.
    """
    # All draws are made whatever the settings, so that one setting does not shift the draws of another.
    rng = generator(seed, "strong augmentation", step)
    u_jitter, u_blur = rng.random(2)
    order, sigma = rng.permutation(4), rng.uniform(*SIGMA)
    # A generator of its own, filled row by row: a row depends on its position alone, not on the size of the batch.
    factors = generator(seed, "colour jitter", step).uniform(-strength, strength, (first + len(images), 4))[first:]
    if u_jitter < jitter:
        values = torch.from_numpy(factors.T.astype(np.float32)).to(images.device, non_blocking=True)
        brightness, contrast, saturation, hue = values
        images = color_jitter(images, brightness, 1 + contrast, 1 + saturation, hue, order.tolist())
    if u_blur < blur:
        images = gaussian_blur(images, sigma)
    return images


def color_jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: list[int]
) -> Tensor:
    """Jitter each image by its own values, the result clamped to [0, 1] after each of the four operations.

    Args:
        images: float ``(B, 3, H, W)`` RGB in [0, 1].
        brightness: ``(B,)``, added. contrast: ``(B,)``, a factor. saturation: ``(B,)``, a factor of HSV's S.
        hue: ``(B,)``, a shift of HSV's H in turns (1 = 360 degrees).
        order: of the operations: 0 brightness, 1 contrast, 2 saturation, 3 hue.

    Returns:
        A new tensor like `images`.
    """
    operations = (
        lambda x: x + _per_image(brightness),
        lambda x: x * _per_image(contrast),
        lambda x: _saturate(x, _per_image(saturation)),
        lambda x: _turn_hue(x, _per_image(hue)),
    )
    for k in order:
        images = operations[k](images).clamp_(0, 1)
    return images


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur float images ``(B, C, H, W)`` by a Gaussian of `sigma` pixels, reflected at the border (not repeating it).

    The kernel is as wide as `blur_kernel_size` says; its taps beyond 6 sigma (below 1e-8) are left out.
    """
    blurred = images
    for dim in (-2, -1):
        side = images.shape[dim]
        radius = min(blur_kernel_size(side) // 2, math.ceil(6 * sigma))
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        taps /= taps.sum()
        padding = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
        padded = F.pad(blurred, padding, mode="reflect")
        # Slices, not a convolution: depthwise ones are slow on the CPU.
        blurred = padded.narrow(dim, 0, side) * float(taps[0])
        for i, tap in enumerate(taps[1:], 1):
            blurred.add_(padded.narrow(dim, i, side), alpha=float(tap))
    return blurred


def blur_kernel_size(side: int) -> int:
    """Odd width of the blur's kernel for pictures of `side` pixels: about a tenth of it (51 for 512)."""
    tenth = -(-side // 10)
    return math.floor(tenth - 0.5 + tenth % 2)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Scale S of HSV, at most to 1. H and V stay, so each channel keeps its share of the distance to V."""
    value, chroma = _value_and_chroma(images)
    most = value / chroma.clamp_min(1e-12)  # the factor that makes S = chroma / value = 1; any for grey
    return value - (value - images) * torch.minimum(factor, most)


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift H of HSV (the usual hexcone); S and V stay."""
    value, chroma = _value_and_chroma(images)
    red, green, blue = images.split(1, 1)
    is_red = value == red
    is_green = ~is_red & (value == green)
    sixths = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    # Arithmetic where a constant would do: constants that are tensors are copied to the device, which waits for it.
    sixths = sixths / chroma.clamp_min(1e-12) + ~is_red * (4 - 2 * is_green.float()) + 6 * turns
    offsets = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    k = (sixths + offsets).remainder_(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def _value_and_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    value = images.amax(1, keepdim=True)
    return value, value - images.amin(1, keepdim=True)
