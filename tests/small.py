"""A whole params.yaml of tiny sizes, for tests: the street preset's keys with values of its own."""

import copy
import dataclasses
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
_PRESET = yaml.safe_load((ROOT / "presets/street.yaml").read_text())
_NETWORK = {
    "encoder": "tf_efficientnet_lite0",
    "weights": "none",
    "dilated": True,  # 64 x 32 pixels are too small for stride 32
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
    "flow": {"dis": {"preset": "ultrafast"}},
    "select": {
        "ds": {"labels": 4}, "us": _NETWORK | _STUDENT, "ds_us": _NETWORK | _STUDENT, "entropy": _NETWORK | _STUDENT,
    },
    "network": {"architecture": "encoder_decoder"} | _NETWORK | {"layers": [8], "output_stride": 2},
    "train": {
        "iterations": 3, "batch_size": 2, "crop": [64, 32], "flip": 0.5, "scale": [1.0, 1.0], "evaluate_every": 2,
        "precision": "float32", "threads": 1, "processes": 1,
    },
    "methods": {
        "supervised": {"lr": 1e-3, "encoder_lr": 1e-3},
        "flow_baseline": {"lr": 1e-3, "encoder_lr": 1e-3, "unlabelled_batch_size": 2},
    },
    "evaluate": {"split": "val", "batch_size": 2, "threads": 1},
    "table3": {
        "method": "supervised", "labels": [2, 4], "seeds": [7, 25], "list_seeds": {"7": 42, "25": 43, "42": 44},
        "rows": ["random", "entropy", "us", "ds", "ds_us"],
        "select": {"names": ["random"], "features": ["ds"], "student": ["us", "ds_us"], "labels": ["entropy"]},
    },
    "flow_table": {"percents": [100, 50], "seeds": [7, 25]},
    "compare": {"labels": [4], "seeds": [7]},
    "multitask_network": _NETWORK | {"pose_encoder": "tf_efficientnet_lite0", "pose_weights": "none"},
}  # fmt: skip


_VALUES["methods"] |= {
    name: {"lr": 1e-3, "encoder_lr": 1e-3} for name in _PRESET["methods"] if not name.startswith(("supervised", "flow"))
}


def _merge(block: dict, values: dict) -> dict:
    return block | {
        k: _merge(block[k], v) if isinstance(v, dict) and k in block and k != "list_seeds" else v
        for k, v in values.items()
    }


def small_params() -> dict:
    """A nest of dicts, to be changed at will."""
    return copy.deepcopy(_merge(_PRESET, _VALUES))


def write_prepared(folder: Path, size=(64, 32), train=(4, 4), val=(3,), classes=3, unlabelled=0, disparity=False):
    """A prepared data set of random pictures below `folder`, as the stages frames and masks leave it.

    train, val: frames per sequence. unlabelled: how many of the last training frames have no mask. Masks follow the
    pictures' colours, so that there is something to learn. Returns the index.
    """
    import cv2
    import numpy as np

    from semivid.data.cameras import Camera, write_cameras
    from semivid.data.classes import Classes, write_classes
    from semivid.data.index import Frame, read_index, write_index
    from semivid.depth.disparity import write_disparity

    rng = np.random.default_rng(0)
    width, height = size
    prepared = folder / "data/prepared"
    frames = []
    for split, counts in (("train", train), ("val", val)):
        for sequence, count in enumerate(counts):
            for position in range(count):
                name = f"{split}{sequence}_{position:02d}"
                image, label = prepared / f"images/{split}/{name}.png", prepared / f"labels/{split}/{name}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                label.parent.mkdir(parents=True, exist_ok=True)
                coarse = rng.integers(0, classes, (height // 8, width // 8)).astype(np.uint8)
                ids = cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST)
                noise = rng.integers(0, 60, (height, width, 3))
                cv2.imwrite(str(image), (ids[..., None] * (180 // classes) + noise).astype(np.uint8))
                ids[:2] = 255
                cv2.imwrite(str(label), ids)
                frames.append(Frame(name, split, f"s{sequence}", position, image, "cam", label))
                if disparity:
                    write_disparity(folder / f"data/disparity/{split}/{name}.png", rng.random((height, width)))
    for frame in [f for f in frames if f.split == "train"][sum(train) - unlabelled :]:
        frame.label.unlink()
        frames[frames.index(frame)] = dataclasses.replace(frame, label=None)
    write_index(prepared / "frames.csv", frames, labels=False)
    write_index(prepared / "index.csv", frames, labels=True)
    camera = Camera.of_source(2.0 * width, 3.0 * width, width / 2 + 1, height / 2 - 2, 2 * width, 2 * height)
    write_cameras(prepared / "cameras.json", {"cam": camera.resized(width, height)})
    colours = np.array([[9 * i, 20 * i, 255 - i] for i in range(classes)], np.uint8)
    write_classes(prepared / "classes.json", Classes(tuple(f"class{i}" for i in range(classes)), colours))
    return read_index(prepared / "index.csv")


def with_no_comparison(params: dict) -> dict:
    """Tables over methods of one run that no family trains: of them, only the least that the schema asks for."""
    for family in (block for block in params["compare"].values() if isinstance(block, dict)):
        family["methods"] = []
    row = f"{params['table3']['method']}-{params['table3']['rows'][0]}"
    for table in ("compare", "methods_table", "table1", "table2"):
        params[table]["rows"] = [row]
    return params


def with_random_alone(params: dict) -> dict:
    """The tables over methods on randomly selected frames alone, so that Table 3 may have any other rows."""
    families = [block for block in params["compare"].values() if isinstance(block, dict)]
    for family in families:
        family["selections"] = ["random"]
    methods = ["supervised", *(name for family in families for name in family["methods"])]
    rows = [f"{name}-random" for name in methods]
    params["compare"]["rows"] = [row for row in rows if not row.startswith("multitask")]
    for table in ("methods_table", "table1", "table2"):
        params[table]["rows"] = rows
    return params
