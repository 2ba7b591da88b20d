"""Readers of the renderer's truth: depth, optical flow, camera poses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from semivid.errors import UserError


def _read(path: Path, channels: int) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    found = None if image is None else (image.dtype, 1 if image.ndim == 2 else image.shape[2])
    if found != (np.uint16, channels):
        what = "is missing or no picture" if found is None else f"holds {found[1]} channel(s) of {found[0]}"
        raise UserError(f"{path} {what}: expected a 16-bit PNG with {channels} channel(s)")
    return image


def read_depth(path: Path) -> np.ndarray:
    """Depth along the optical axis, float32 (h, w) metres, 0 = none (sky, beyond 256 m).

    Resolution 1/256 m.
    """
    return _read(path, 1).astype(np.float32) / 256


def read_flow(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Optical flow of a KITTI 16-bit PNG: (flow float32 (h, w, 2) pixels (x, y), valid bool (h, w)).

    In truth/flow the flow of frame t leads to frame t + 1 of the same snippet and is the projected motion
    of the surface point that the pixel's centre sees (sky: the camera's rotation only). Valid means
    non-occluded: the point lies inside frame t + 1 and is seen there, with one pixel of tolerance at
    silhouettes. Where it is not valid the flow is 0. Resolution 1/64 pixel.
    """
    code = _read(path, 3)
    valid = code[..., 0] > 0
    flow = (code[..., :0:-1].astype(np.float32) - 32768) / 64
    return np.where(valid[..., None], flow, np.float32(0)), valid


def read_poses(path: Path) -> tuple[list[str], np.ndarray]:
    """Frame names of a snippet and their poses, float64 (n, 4, 4) camera-to-world.

    Metres; axes x right, y down, z forward, for the camera and for the world; the ground is y = 0.
    """
    try:
        rows = json.loads(Path(path).read_text())["frames"]
        return [r["name"] for r in rows], np.array([r["camera_to_world"] for r in rows]).reshape(-1, 4, 4)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no pose file of street ({error}): render the data again") from error
