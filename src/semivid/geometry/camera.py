"""Pinhole cameras and rigid motion: disparity, poses, back-projection, projection.

Shapes: intrinsics K ``(3, 3)`` or ``(4, 4)``, with or without a leading batch; transforms ``(B, 4, 4)`` take
points of one camera into another; pixel (x, y) has its centre at whole numbers, x = 0..W-1.
All functions are differentiable and keep the dtype (float32 or float64) and device of their input.
"""

import torch
from torch import Tensor

MIN_DEPTH, MAX_DEPTH = 0.1, 100.0
_EPS = 1e-7


def disp_to_depth(disp: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> tuple[Tensor, Tensor]:
    """Turn a sigmoid disparity in [0, 1] into (inverse depth, depth) (monodepth2, section 3).

    Inverse depth grows linearly from 1/max_depth to 1/min_depth; the unit is that of the translations.
    """
    inverse = 1 / max_depth + (1 / min_depth - 1 / max_depth) * disp
    return inverse, 1 / inverse


def rotation_from_axisangle(axisangle: Tensor) -> Tensor:
    """Rotation matrices ``(B, 3, 3)`` of axis-angle vectors ``(B, 3)`` in radians (Rodrigues' formula)."""
    angle = axisangle.norm(dim=-1, keepdim=True)
    x, y, z = (axisangle / (angle + _EPS)).unbind(-1)
    zero = torch.zeros_like(x)
    axis = torch.stack([x, y, z], -1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    cos, sin = angle.cos().unsqueeze(-1), angle.sin().unsqueeze(-1)
    outer = axis.unsqueeze(-1) * axis.unsqueeze(-2)
    return cos * torch.eye(3, dtype=axis.dtype, device=axis.device) + sin * cross + (1 - cos) * outer


def transform_from_parameters(axisangle: Tensor, translation: Tensor, invert: bool = False) -> Tensor:
    """The transform ``(B, 4, 4)`` that rotates, then translates; or its inverse.

    Args:
        axisangle: ``(B, 3)``, radians.
        translation: ``(B, 3)``.
        invert: return the inverse motion.
    """
    rotation = rotation_from_axisangle(axisangle)
    offset = translation.unsqueeze(-1)
    if invert:
        rotation = rotation.transpose(1, 2)
        # A product and a sum instead of matmul, which autocast would do in half precision.
        offset = -(rotation * offset.transpose(1, 2)).sum(-1, keepdim=True)
    last = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(rotation), 1, 4)
    return torch.cat([torch.cat([rotation, offset], 2), last], 1)


def pixel_axes(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x ``(1, W)`` and y ``(H, 1)`` in the dtype and on the device of `like`."""
    x = torch.arange(width, dtype=like.dtype, device=like.device)
    y = torch.arange(height, dtype=like.dtype, device=like.device)
    return x.view(1, -1), y.view(-1, 1)


def backproject(depth: Tensor, inv_k: Tensor) -> Tensor:
    """Camera points ``(B, 4, H*W)`` (homogeneous, row-major pixels) of a depth map ``(B, 1, H, W)``."""
    batch, _, height, width = depth.shape
    x, y = pixel_axes(height, width, depth)
    inv_k = inv_k.expand(batch, *inv_k.shape[-2:])[:, :3, :3, None, None]
    rays = inv_k[:, :, 0] * x + inv_k[:, :, 1] * y + inv_k[:, :, 2]
    points = torch.cat([rays * depth, torch.ones_like(depth)], 1)
    return points.flatten(2)


def project(points: Tensor, k: Tensor, transform: Tensor, size: tuple[int, int]) -> Tensor:
    """Sampling grid ``(B, H, W, 2)`` of camera points ``(B, 4, H*W)`` seen by another camera.

    Args:
        points: homogeneous points in row-major pixel order.
        k: intrinsics of the other camera.
        transform: ``(B, 4, 4)`` from the points' camera to the other one.
        size: height and width of the image.

    Returns:
        (x, y) in [-1, 1] over the pixel centres (``align_corners=True``), beyond where it leaves the image.
    """
    height, width = size
    with torch.autocast(points.device.type, enabled=False):
        x, y, z = (k[..., :3, :3] @ (transform[:, :3] @ points)).unbind(1)
    return normalise_pixels(x, y, z, height, width).view(-1, height, width, 2)


def normalise_pixels(x: Tensor, y: Tensor, z: Tensor, height: int, width: int) -> Tensor:
    """Divide image coordinates by depth and scale them to [-1, 1] over pixel centres, on a last axis."""
    z = z + _EPS
    u = (x / z / (width - 1) - 0.5) * 2
    v = (y / z / (height - 1) - 0.5) * 2
    return torch.stack([u, v], -1)
