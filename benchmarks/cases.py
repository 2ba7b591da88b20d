"""The settings that are measured: those of the presets."""

from __future__ import annotations

from pathlib import Path

from semivid.pipeline.params import Params, read_params

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ROOT / "presets/classes/cityscapes19.yaml"
CASES = ("street", "camvid", "cityscapes")


def settings(case: str) -> Params:
    """The whole preset."""
    return read_params(ROOT / f"presets/{case}.yaml")


def source_size(params: Params) -> tuple[int, int]:
    """(width, height) of the source frames: twice the size that training works at, as in all three data sets."""
    return params.frames.size[0] * 2, params.frames.size[1] * 2


def network_arguments(params: Params) -> dict:
    """Arguments of `build_segmentation_net`; random weights and no dropout, so that both versions agree."""
    return params.network.arguments() | {"weights": "none", "aspp_dropout": 0.0}
