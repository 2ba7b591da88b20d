"""params.yaml: its schema, and a reader that hands a stage only the blocks it declares."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semivid.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Positive, Positive]
EncoderName = Literal["resnet18", "resnet50", "resnet101", "tf_efficientnet_lite0"]
Precision = Literal["float32", "bfloat16"]
Channels = Annotated[list[Positive], Field(min_length=5, max_length=5)]


class Block(BaseModel):
    """A block of params.yaml: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Splits(Block):
    train: str
    val: str


class Data(Block):
    name: str
    source: Literal["street", "cityscapes", "camvid", "camvid_original", "folder"]
    frames: Splits
    masks: Splits
    camera: str
    classes: str
    holdout: Annotated[float, Field(ge=0, lt=1)]


class SnippetCounts(Block):
    train: Positive
    val: Positive


class Render(Block):
    seed: int
    size: Size
    snippets: SnippetCounts
    frames_per_snippet: Positive
    annotated: list[int]
    fps: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _positions_exist(self) -> Render:
        if not self.annotated or not all(0 <= a < self.frames_per_snippet for a in self.annotated):
            raise ValueError(f"annotated: positions must lie in 0..{self.frames_per_snippet - 1}")
        return self


class Frames(Block):
    size: Size
    format: Literal["jpg", "png"]
    quality: Annotated[int, Field(ge=1, le=100)]


class Backbone(Block):
    """The keys that every encoder/decoder network has."""

    encoder: EncoderName
    weights: str
    dilated: bool
    channels: Channels
    batch_norm: bool
    aspp_rates: list[Positive]

    def backbone(self) -> dict[str, Any]:
        """Keyword arguments of the builders in semivid.models and semivid.depth.networks."""
        return {
            "encoder": self.encoder,
            "weights": self.weights,
            "dilated": self.dilated,
            "channels": self.channels,
            "batch_norm": self.batch_norm,
            "aspp": self.aspp_rates,
        }


class DepthNetwork(Backbone):
    pose_encoder: EncoderName
    pose_weights: str

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.depth.networks.build_depth_model`."""
        return self.backbone() | {"pose_encoder": self.pose_encoder, "pose_weights": self.pose_weights}


class DepthPretrain(Block):
    iterations: Positive
    batch_size: Positive
    crop: Size
    lr: Annotated[float, Field(gt=0)]
    milestones: list[Positive]
    min_depth: Annotated[float, Field(gt=0)]
    max_depth: Annotated[float, Field(gt=0)]
    auto_mask: bool
    flip: Share
    color_jitter: bool
    intrinsics: Literal["correct", "reference"]
    precision: Precision
    seed: int
    threads: Positive


class DepthFinetune(DepthPretrain):
    feature_distance: Annotated[float, Field(ge=0)]


class Disparity(Block):
    frames: Literal["annotated", "all"]
    bits: Literal[8, 16]
    feature_level: Annotated[int, Field(ge=0, le=4)]
    feature_pool: Positive
    threads: Positive


class NoOptions(Block):
    """A criterion that has nothing to set."""


class SelectDiversity(Block):
    labels: Positive


class SelectStudent(Backbone):
    steps: Annotated[list[Positive], Field(min_length=1)]
    iterations: list[Positive]
    batch_size: Positive
    crop: Size
    lr: Annotated[float, Field(gt=0)]
    threads: Positive

    @model_validator(mode="after")
    def _one_length_per_student(self) -> SelectStudent:
        if self.steps != sorted(set(self.steps)):
            raise ValueError("steps must grow")
        if len(self.iterations) != len(self.steps) - 1:
            raise ValueError(f"iterations: {len(self.steps) - 1} numbers needed, one per step but the last")
        return self


class SelectBoth(SelectStudent):
    bias: float


class Select(Block):
    random: NoOptions
    published_ds_us: NoOptions
    published_ds: NoOptions
    published_us: NoOptions
    published_ent: NoOptions
    ds: SelectDiversity
    us: SelectStudent
    ds_us: SelectBoth
    entropy: SelectStudent


class Network(Backbone):
    layers: Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(min_length=1)]
    output_stride: Positive
    head_inter: bool
    head_channels: Positive

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.models.segmentation.build_segmentation_net`."""
        head = {"layers": self.layers, "output_stride": self.output_stride, "head_inter": self.head_inter}
        return self.backbone() | head | {"projection_channels": self.head_channels, "head_channels": self.head_channels}


class Train(Block):
    iterations: Positive
    batch_size: Positive
    crop: Size
    flip: Share
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    evaluate_every: Positive
    precision: Precision
    threads: Positive


class Optimisation(Block):
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    encoder_lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["poly", "step", "constant"]
    milestones: list[Positive]
    clip: Annotated[float, Field(ge=0)]


class Methods(Block):
    supervised: Optimisation


class Evaluate(Block):
    split: Literal["train", "val"]
    batch_size: Positive
    threads: Positive


class SelectBySight(Block):
    """The table's selection criteria by what they may read: one DVC stage each."""

    names: list[str]
    features: list[Literal["ds"]]
    student: list[Literal["us", "ds_us"]]
    labels: list[Literal["entropy"]]


class Table3(Block):
    method: str
    labels: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    list_seeds: dict[str, int]
    rows: Annotated[list[str], Field(min_length=1)]
    select: SelectBySight

    @model_validator(mode="after")
    def _rows_have_a_selection(self) -> Table3:
        known = [n for group in self.select.model_dump().values() for n in group]
        if sorted(known) != sorted(self.rows):
            raise ValueError(f"rows {self.rows} and the criteria of select {known} must be the same names")
        without = [s for s in self.seeds if str(s) not in self.list_seeds]
        if without:
            raise ValueError(f'list_seeds: no entry for the seeds {without}; write "{without[0]}": 42')
        return self


class Params(Block):
    """The whole of params.yaml."""

    data: Data
    render: Render
    frames: Frames
    depth_network: DepthNetwork
    depth_pretrain: DepthPretrain
    depth_finetune: DepthFinetune
    disparity: Disparity
    select: Select
    network: Network
    train: Train
    methods: Methods
    evaluate: Evaluate
    table3: Table3


def _nearest(model: Any, location: tuple) -> str:
    """A hint for an unknown key: the nearest key that its block has."""
    for name in location[:-1]:
        field = getattr(model, "model_fields", {}).get(name)
        if field is None:
            return ""
        model = field.annotation
    near = difflib.get_close_matches(str(location[-1]), list(getattr(model, "model_fields", {})), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _explain(error: ValidationError, path: Path) -> str:
    lines = []
    for e in error.errors():
        key = ".".join(map(str, e["loc"]))
        if e["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key `{key}`{_nearest(Params, e['loc'])}")
        elif e["type"] == "missing":
            lines.append(f"{path}: key `{key}` is missing; presets/street.yaml shows every key")
        else:
            shown = "" if isinstance(e["input"], dict) else f" (found {e['input']!r})"
            lines.append(f"{path}: `{key}`: {e['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole of `path`.

    Raises UserError with one line per fault: unknown keys (with the nearest right name), missing keys,
    values out of range, file absent or not YAML.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository root or `make preset NAME=street`") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: empty or not a mapping; presets/street.yaml shows every key")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from None


def pick(params: Params, keys: tuple[str, ...]) -> dict[str, Any]:
    """The blocks named by dotted `keys` alone, so that a stage cannot read what it does not declare.

    Returns {dotted key: block or value}. Raises UserError for a key that is not there.
    """
    chosen = {}
    for key in keys:
        value: Any = params
        for part in key.split("."):
            try:
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            except (KeyError, AttributeError):
                raise UserError(f"params.yaml: no key `{key}`") from None
        chosen[key] = value
    return chosen
