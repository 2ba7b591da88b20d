"""params.yaml: its schema, and a reader that hands a stage only the blocks it declares."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from semivid.errors import UserError

# Strict: YAML's true would else count as the number 1, and "on" as true.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[int, Field(strict=True, gt=0)]
Seed = Annotated[int, Field(strict=True, ge=0)]
Switch = Annotated[bool, Field(strict=True)]
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
    holdout: Annotated[Number, Field(ge=0, lt=1)]


class SnippetCounts(Block):
    train: Positive
    val: Positive


class Render(Block):
    seed: Seed
    size: Size
    snippets: SnippetCounts
    frames_per_snippet: Positive
    annotated: list[Annotated[int, Field(strict=True)]]
    fps: PositiveNumber

    @model_validator(mode="after")
    def _positions_exist(self) -> Render:
        if not self.annotated or not all(0 <= a < self.frames_per_snippet for a in self.annotated):
            raise ValueError(f"annotated: positions must lie in 0..{self.frames_per_snippet - 1}")
        return self


class Frames(Block):
    size: Size
    format: Literal["jpg", "png"]
    quality: Annotated[int, Field(strict=True, ge=1, le=100)]


class Backbone(Block):
    """The keys that every encoder/decoder network has."""

    encoder: EncoderName
    weights: str
    dilated: Switch
    channels: Channels
    batch_norm: Switch
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


class DepthTraining(Block):
    """What both phases of depth pretraining have."""

    iterations: Positive
    batch_size: Positive
    crop: Size
    lr: PositiveNumber
    pose_lr: PositiveNumber
    milestones: list[Positive]
    min_depth: PositiveNumber
    max_depth: PositiveNumber
    auto_mask: Switch
    encoder_statistics: Literal["moving", "fixed"]
    flip: Share
    color_jitter: Switch
    intrinsics: Literal["correct", "reference"]
    precision: Precision
    seed: Seed
    threads: Positive

    @model_validator(mode="after")
    def _depths_in_order(self) -> DepthTraining:
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth {self.min_depth} must be smaller than max_depth {self.max_depth}")
        return self


class DepthPretrain(DepthTraining):
    initial_disparity: Annotated[Number, Field(gt=0, lt=1)]
    initial_motion: Annotated[Number, Field(ge=0)]


class DepthFinetune(DepthTraining):
    feature_distance: Annotated[Number, Field(ge=0)]


class Disparity(Block):
    frames: Literal["annotated", "all"]
    bits: Literal[8, 16]
    feature_level: Annotated[int, Field(strict=True, ge=0, le=4)]
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
    lr: PositiveNumber
    threads: Positive

    @model_validator(mode="after")
    def _one_length_per_student(self) -> SelectStudent:
        if self.steps != sorted(set(self.steps)):
            raise ValueError("steps must grow")
        if len(self.iterations) != len(self.steps) - 1:
            raise ValueError(f"iterations: {len(self.steps) - 1} numbers needed, one per step but the last")
        return self


class SelectBoth(SelectStudent):
    bias: Number


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
    layers: Annotated[list[Annotated[int, Field(strict=True, ge=0, le=9)]], Field(min_length=1)]
    output_stride: Positive
    head_inter: Switch
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
    scale: tuple[PositiveNumber, PositiveNumber]
    evaluate_every: Positive
    precision: Precision
    threads: Positive

    @model_validator(mode="after")
    def _scales_in_order(self) -> Train:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)}: the smaller number comes first")
        return self


class Optimisation(Block):
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: PositiveNumber
    encoder_lr: PositiveNumber
    weight_decay: Annotated[Number, Field(ge=0)]
    schedule: Literal["poly", "step", "constant"]
    milestones: list[Positive]
    clip: Annotated[Number, Field(ge=0)]


class Methods(Block):
    supervised: Optimisation


class Evaluate(Block):
    split: Literal["train", "val"]
    batch_size: Positive
    threads: Positive


class SelectBySight(Block):
    """The table's selection criteria by what they may read: one DVC stage each."""

    names: list[Literal["random", "published_ds_us", "published_ds", "published_us", "published_ent"]]
    features: list[Literal["ds"]]
    student: list[Literal["us", "ds_us"]]
    labels: list[Literal["entropy"]]


class Table3(Block):
    method: str
    labels: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    list_seeds: dict[str, Seed]
    rows: Annotated[list[str], Field(min_length=1)]
    select: SelectBySight

    @model_validator(mode="after")
    def _rows_have_a_selection(self) -> Table3:
        for key in ("rows", "labels", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"table3.{key} {values} lists one of them twice")
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

    @model_validator(mode="after")
    def _blocks_agree(self) -> Params:
        """What else only the last stage of a long run would find out."""
        wrong = []
        methods = list(type(self.methods).model_fields)
        if self.table3.method not in methods:
            wrong.append(f"`table3.method`: no method {self.table3.method!r}; choose one of {', '.join(methods)}")
        crops = {"train": self.train, "depth_pretrain": self.depth_pretrain, "depth_finetune": self.depth_finetune}
        most = max(self.table3.labels)
        for name in self.table3.rows:
            block = getattr(self.select, name)
            if isinstance(block, SelectStudent):
                crops[f"select.{name}"] = block
                if block.steps[-1] < most:
                    wrong.append(
                        f"`select.{name}.steps` end at {block.steps[-1]} frames; `table3.labels` asks for {most}"
                    )
            elif isinstance(block, SelectDiversity) and block.labels < most:
                wrong.append(f"`select.{name}.labels` is {block.labels}; `table3.labels` asks for {most}")
        size = self.frames.size
        wrong += [
            f"`{name}.crop` {list(block.crop)} is larger than `frames.size` {list(size)} (width, height)"
            for name, block in crops.items()
            if block.crop[0] > size[0] or block.crop[1] > size[1]
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


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
            where = f"{path}: `{key}`: " if key else f"{path}: "
            lines += [f"{where}{line}{shown}" for line in e["msg"].removeprefix("Value error, ").splitlines()]
    return "\n".join(lines)


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole of `path`.

    Raises UserError with one line per fault: unknown keys (with the nearest right name), missing keys,
    values out of range, file absent or not YAML.
    """
    try:
        # DVC's own reader, so that a stage sees the values that DVC saw (YAML 1.2: no octal 010, no duplicate keys).
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository root or `make preset NAME=street`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (YAMLError, ValueError) as error:  # its constructors raise ValueError for values like 2001-99-99
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
