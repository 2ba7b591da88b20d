"""A whole params.yaml of tiny sizes, for tests: the street preset's keys with values of its own."""

import copy
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
_PRESET = yaml.safe_load((ROOT / "presets/street.yaml").read_text())
_NETWORK = {
    "encoder": "tf_efficientnet_lite0",
    "weights": "none",
    "dilated": False,
    "channels": [4, 4, 8, 8, 8],
    "batch_norm": True,
    "aspp_rates": [],
}
_STUDENT = {"steps": [2, 3, 4], "iterations": [2, 2], "batch_size": 2, "crop": [64, 32], "lr": 1e-3, "threads": 1}
_DEPTH = {"iterations": 2, "batch_size": 2, "crop": [64, 32], "milestones": [], "threads": 1}
_VALUES = {
    "render": {
        "seed": 1, "size": [128, 64], "snippets": {"train": 3, "val": 1}, "frames_per_snippet": 4,
        "annotated": [1, 3], "fps": 6.0,
    },
    "frames": {"size": [64, 32]},
    "depth_network": _NETWORK | {"pose_encoder": "tf_efficientnet_lite0", "pose_weights": "none"},
    "depth_pretrain": _DEPTH,
    "depth_finetune": _DEPTH,
    "disparity": {"feature_pool": 2, "threads": 1},
    "select": {
        "ds": {"labels": 4}, "us": _NETWORK | _STUDENT, "ds_us": _NETWORK | _STUDENT, "entropy": _NETWORK | _STUDENT,
    },
    "network": _NETWORK | {"layers": [8], "output_stride": 2},
    "train": {
        "iterations": 3, "batch_size": 2, "crop": [64, 32], "flip": 0.5, "scale": [1.0, 1.0], "evaluate_every": 2,
        "precision": "float32", "threads": 1,
    },
    "methods": {"supervised": {"lr": 1e-3, "encoder_lr": 1e-3}},
    "evaluate": {"split": "val", "batch_size": 2, "threads": 1},
    "table3": {
        "method": "supervised", "labels": [2, 4], "seeds": [7, 25], "list_seeds": {"7": 42, "25": 43, "42": 44},
        "rows": ["random", "entropy", "us", "ds", "ds_us"],
        "select": {"names": ["random"], "features": ["ds"], "student": ["us", "ds_us"], "labels": ["entropy"]},
    },
}  # fmt: skip


def _merge(block: dict, values: dict) -> dict:
    return block | {
        k: _merge(block[k], v) if isinstance(v, dict) and k in block and k != "list_seeds" else v
        for k, v in values.items()
    }


def small_params() -> dict:
    """A nest of dicts, to be changed at will."""
    return copy.deepcopy(_merge(_PRESET, _VALUES))
