"""Warping: see a neighbouring frame from the current camera, given the current frame's depth."""

import torch
import torch.nn.functional as F
from torch import Tensor

from semivid.geometry.camera import normalise_pixels, pixel_axes


def sample(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of ``(B, C, H, W)`` at a grid ``(B, h, w, 2)`` in [-1, 1]; the border is repeated."""
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


class Reprojection:
    """Pixels of one camera as seen by another: everything that does not depend on depth, computed once.

    Back-projecting pixel p to depth d, moving and projecting it gives ``K (R d K^-1 p + t)``, which is
    ``d M p + K t`` with ``M = K R K^-1``: one multiplication and one addition per depth map.

    Args:
        k: intrinsics ``(3, 3)``, ``(4, 4)`` or with a leading batch, in pixels of the image size.
        transform: ``(B, 4, 4)`` from the camera with the depth to the other one.
        size: height and width of the images.
    """

    def __init__(self, k: Tensor, transform: Tensor, size: tuple[int, int]):
        self.size = size
        with torch.autocast(transform.device.type, enabled=False):
            k = k[..., :3, :3].to(transform)
            matrix = (k @ transform[:, :3, :3] @ torch.linalg.inv(k))[..., None, None]
            self._offset = (k @ transform[:, :3, 3:])[..., None]
        x, y = pixel_axes(*size, transform)
        self._rays = matrix[:, :, 0] * x + matrix[:, :, 1] * y + matrix[:, :, 2]

    def grid(self, depth: Tensor) -> Tensor:
        """Sampling grid ``(B, H, W, 2)`` in [-1, 1] of a depth map ``(B, 1, H, W)``."""
        return normalise_pixels(*(depth * self._rays + self._offset).unbind(1), *self.size)


def warp(image: Tensor, depth: Tensor, k: Tensor, transform: Tensor) -> Tensor:
    """Resample the other camera's `image` at the pixels of the camera with the depth.

    Args:
        image: ``(B, C, H, W)`` of the other camera.
        depth: ``(B, 1, H, W)`` of this camera, positive.
        k: intrinsics of both, in pixels.
        transform: ``(B, 4, 4)`` from this camera to the other.

    Returns:
        ``(B, C, H, W)``: what this camera would see; differentiable in depth, transform and image.
    """
    return sample(image, Reprojection(k, transform, depth.shape[-2:]).grid(depth))
