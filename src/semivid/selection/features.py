"""The depth teacher's pooled features, as the disparity stage wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open


def read_features(path: Path) -> tuple[list[str], np.ndarray]:
    """(names of the training frames in ascending order, features float32 (N, C, h, w)) of `path`."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["frames"]), file.get_tensor("features")
