"""The settings that are measured: those of the presets."""

from __future__ import annotations

from pathlib import Path

from semivid.pipeline.params import Params, read_params

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ROOT / "presets/classes/cityscapes19.yaml"
CASES = ("street", "camvid", "cityscapes")

# The published setting (Three Ways, sections 4, 8 and 12), as far as it is measured.
_PUBLISHED = {
    "frames": {"size": (1024, 512), "format": "jpg", "quality": 98},
    "network": {
        "encoder": "resnet101", "weights": "none", "dilated": True, "channels": [64, 128, 128, 256, 256],
        "batch_norm": False, "aspp_rates": [6, 12, 18], "layers": [9], "output_stride": 1, "head_inter": False,
    },
    "train": {"batch_size": 2, "crop": (512, 512)},
    "supervised": {"optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "weight_decay": 5e-4, "clip": 10.0},
    "depth_pretrain": {"batch_size": 4, "crop": (512, 512)},
}


def settings(case: str) -> Params:
    """The whole preset; the published setting where presets/cityscapes.yaml is absent."""
    path = ROOT / f"presets/{case}.yaml"
    if path.exists() or case != "cityscapes":
        return read_params(path)
    raw = read_params(ROOT / "presets/street.yaml").model_dump()
    for block, values in _PUBLISHED.items():
        (raw["methods"]["supervised"] if block == "supervised" else raw[block]).update(values)
    return Params.model_validate(raw)


def source_size(params: Params) -> tuple[int, int]:
    """(width, height) of the source frames: twice the size that training works at, as in all three data sets."""
    return params.frames.size[0] * 2, params.frames.size[1] * 2


def network_arguments(params: Params) -> dict:
    """Arguments of `build_segmentation_net`; random weights and no dropout, so that both versions agree."""
    return params.network.arguments() | {"weights": "none", "aspp_dropout": 0.0}
