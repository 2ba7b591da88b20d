"""Disparity files: single-channel PNG, one per frame, min-max normalised per image (large = near)."""

from pathlib import Path

import cv2
import numpy as np

from semivid.errors import UserError
from semivid.pipeline.artifacts import replacing

_LARGEST = {8: 255, 16: 65535}


def normalise_disparity(disparity: np.ndarray) -> np.ndarray:
    """Scale one image's disparity to [0, 1] by its own minimum and maximum.

    Args:
        disparity: float array (H, W).

    Returns:
        float32 array (H, W); all 0 if the disparity is constant.

    Raises:
        UserError: a value is not finite.
    """
    values = np.asarray(disparity, dtype=np.float32)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("a disparity is not finite: the depth network has diverged; train it again")
    if high == low:
        return np.zeros_like(values)
    return (values - low) / (high - low)


def encode_disparity(disparity: np.ndarray, bits: int = 16) -> np.ndarray:
    """Normalise and quantise one image's disparity.

    Args:
        disparity: float array (H, W).
        bits: 8 truncates to 0..255 as the published precomputed depth does; 16 rounds to 0..65535.

    Returns:
        uint8 or uint16 array (H, W).
    """
    normalised = normalise_disparity(disparity)
    if bits == 8:
        return (normalised * np.float32(_LARGEST[8])).astype(np.uint8)
    if bits == 16:
        return np.rint(normalised.astype(np.float64) * _LARGEST[16]).astype(np.uint16)
    raise UserError(f"disparity files have 8 or 16 bits, not {bits}: correct the key that says so")


def write_disparity(path: Path, disparity: np.ndarray, bits: int = 16) -> None:
    """Write one image's disparity, normalised, as a PNG of 8 or 16 bits; atomic."""
    done, data = cv2.imencode(".png", encode_disparity(disparity, bits))
    if not done:
        raise UserError(f"cannot encode the disparity {path}")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_disparity(path: Path) -> np.ndarray:
    """Read a disparity file.

    Returns:
        float32 array (H, W) in [0, 1], large = near.

    Raises:
        UserError: the file is missing, or not a single-channel PNG of 8 or 16 bits.
    """
    data = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if data is None:
        raise UserError(f"cannot read the disparity {path}: run the stage disparity again")
    if data.ndim != 2 or data.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path} is no disparity: a single-channel PNG of 8 or 16 bits is wanted, not {data.dtype} {data.shape}"
        )
    return data.astype(np.float32) / np.float32(np.iinfo(data.dtype).max)
