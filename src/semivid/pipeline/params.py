"""params.yaml: its schema, and a reader that hands a stage only the blocks it declares."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML, YAMLError

from semivid.errors import UserError, explain_yaml, shown

# Strict: YAML's true would else count as the number 1, and "on" as true.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Threads = Annotated[int, Field(strict=True, gt=0, le=1024)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # what NumPy's generators take
Switch = Annotated[bool, Field(strict=True)]
Pixels = Annotated[int, Field(strict=True, gt=0, le=2**14)]
Size = tuple[Pixels, Pixels]
Text = Annotated[
    str, Field(pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]+$")
]  # not empty, one line; DVC takes "" for the whole checkout
EncoderName = Literal["resnet18", "resnet50", "resnet101", "tf_efficientnet_lite0"]
Precision = Literal["float32", "bfloat16"]
Channels = Annotated[list[Positive], Field(min_length=5, max_length=5)]


class Block(BaseModel):
    """A block of params.yaml: unknown keys are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Block):
    """A choice that has nothing to set."""


class Splits(Block):
    train: Text
    val: Text


class Data(Block):
    name: Text
    source: Literal["street", "cityscapes", "camvid", "camvid_original", "mapillary", "folder"]
    frames: Splits
    masks: Splits
    camera: Text
    classes: Text
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


def _check_package(key: str, weights: str, encoder: str) -> None:
    if weights == "package" and encoder != "tf_efficientnet_lite0":
        raise ValueError(f"{key}: the package holds tf_efficientnet_lite0, not {encoder}; give a file, or none")


class Backbone(Block):
    """The keys that every encoder/decoder network has."""

    encoder: EncoderName
    weights: Text
    dilated: Switch
    channels: Channels
    batch_norm: Switch
    aspp_rates: list[Positive]

    @model_validator(mode="after")
    def _encoder_can_be_had(self) -> Backbone:
        if self.encoder == "resnet18" and self.dilated:
            raise ValueError("encoder resnet18 cannot be dilated; set dilated to false, or take resnet50")
        _check_package("weights", self.weights, self.encoder)
        return self

    @property
    def stride(self) -> int:
        """Of the encoder's coarsest map."""
        return 16 if self.dilated else 32

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


class FlowPyflow(Block):
    alpha: PositiveNumber
    ratio: Annotated[Number, Field(gt=0, lt=1)]
    min_width: Positive
    outer: Positive
    inner: Positive
    sor: Positive
    colour: Literal["rgb", "bgr", "grey"]


class FlowDis(Block):
    preset: Literal["ultrafast", "fast", "medium"]
    finest_scale: Annotated[int, Field(strict=True, ge=0, le=10)] | None


class FlowRaft(Block):
    network: Literal["raft_small", "raft_large"]
    weights: Text
    updates: Positive


class Flow(Block):
    method: Literal["dis", "best", "pyflow", "raft"]
    frames: Literal["annotated", "all"]
    backward: Switch
    format: Literal["png", "float16"]
    pictures: Switch
    dis: FlowDis
    best: NoOptions
    pyflow: FlowPyflow
    raft: FlowRaft


class DepthNetwork(Backbone):
    pose_encoder: EncoderName
    pose_weights: Text

    @model_validator(mode="after")
    def _pose_encoder_can_be_had(self) -> DepthNetwork:
        _check_package("pose_weights", self.pose_weights, self.pose_encoder)
        return self

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
    threads: Threads

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
    threads: Threads


class SelectDiversity(Block):
    labels: Positive


class SelectStudent(Backbone):
    steps: Annotated[list[Positive], Field(min_length=1)]
    iterations: list[Positive]
    batch_size: Positive
    crop: Size
    lr: PositiveNumber
    threads: Threads

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


class EncoderDecoder(Backbone):
    """The segmentation network of Three Ways."""

    architecture: Literal["encoder_decoder"]
    layers: Annotated[list[Annotated[int, Field(strict=True, ge=0, le=9)]], Field(min_length=1)]
    output_stride: Positive
    head_inter: Switch
    head_channels: Positive

    @model_validator(mode="after")
    def _decoder_feeds_the_head(self) -> EncoderDecoder:
        if max(self.layers) < 5 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers {self.layers}: each once, and one of them 5 or more (the decoder's)")
        return self

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.encoder

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.models.encoder_decoder.build_segmentation_net`."""
        head = {"layers": self.layers, "output_stride": self.output_stride, "head_inter": self.head_inter}
        return self.backbone() | head | {"projection_channels": self.head_channels, "head_channels": self.head_channels}


class FCN8s(Block):
    """FCN-8s on VGG16, the network of the flow consistency reference."""

    architecture: Literal["fcn8s"]
    weights: Text
    input: Literal["imagenet", "reference"]

    title: ClassVar[str] = "fcn8s"
    encoder: ClassVar[str] = "vgg16"
    stride: ClassVar[int] = 0  # padded by 100 pixels, it takes any size
    aspp_rates: ClassVar[list[int]] = []

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.models.fcn8s.build_fcn8s`."""
        return {"weights": self.weights, "input": self.input}


class Multitask(DepthNetwork):
    """The multi-task network of Three Ways: segmentation and depth that hand features to each other."""

    distillation_layer: Annotated[int, Field(strict=True, ge=5, le=8)]
    final_layer: Annotated[int, Field(strict=True, ge=6, le=9)]

    @model_validator(mode="after")
    def _exchange_before_the_head(self) -> Multitask:
        if self.final_layer <= self.distillation_layer:
            raise ValueError(
                f"final_layer {self.final_layer} must lie beyond distillation_layer {self.distillation_layer}"
            )
        return self

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"multitask {self.encoder}"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.models.multitask.build_multitask_net`."""
        layers = {"distillation_layer": self.distillation_layer, "final_layer": self.final_layer}
        return super().arguments() | layers


class Transfer(Block):
    """Which parts of a network start from a depth model, where a method does: `semivid.models.transfer`."""

    encoder: Switch
    decoder: Switch

    @model_validator(mode="after")
    def _something_is_transferred(self) -> Transfer:
        if not self.encoder and not self.decoder:
            raise ValueError("encoder and decoder are both false; set one to true, or leave the transfer out")
        return self


Network = Annotated[EncoderDecoder | FCN8s, Field(discriminator="architecture")]


def _check_steps(intervals: dict[str, int]) -> dict[str, int]:
    wrong = [key for key in intervals if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key)]
    if wrong or "0" not in intervals:
        found = f"{wrong[0]!r} is no number of steps" if wrong else 'no interval for the first steps (key "0")'
        raise ValueError(f'{found}; write for example {{"0": 100, "100": 2500}}: every 100 up to step 100, then 2500')
    return intervals


# The tags appear in the place of a fault, which `_explain` leaves out there.
Interval = Annotated[
    Annotated[Positive, Tag("[number]")] | Annotated[dict[str, Positive], AfterValidator(_check_steps), Tag("[steps]")],
    Discriminator(lambda value: "[steps]" if isinstance(value, dict) else "[number]"),
]


class Train(Block):
    iterations: Positive
    batch_size: Positive
    crop: Size
    flip: Share
    scale: tuple[PositiveNumber, PositiveNumber]
    evaluate_every: Interval
    precision: Precision
    threads: Threads
    processes: Threads

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> Train:
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided over {self.processes} processes")
        return self

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


class Supervised(Optimisation):
    """Cross entropy on labelled frames."""

    method: Literal["supervised"]


class FlowBaseline(Optimisation):
    """What the baseline and the flow consistency runs share: the steps and the optimiser."""

    momentum: Annotated[Number, Field(ge=0, lt=1)]
    reduction: Literal["mean", "sum"]
    structure: Literal["two_step", "one_step"]
    unlabelled: Literal["all", "annotated"]
    unlabelled_batch_size: Annotated[int, Field(strict=True, ge=0, le=10**9)]
    start: Annotated[int, Field(strict=True, ge=0)]


class FlowConsistency(Block):
    """The flow consistency loss."""

    weight: Number
    version: Literal["final", "january", "v2"]
    max_shift: Annotated[int, Field(strict=True, ge=1, le=16)]
    threshold: Annotated[Number, Field(ge=0)] | None
    seam: Literal["masked", "reference"]
    discard_bottom: Annotated[Number, Field(ge=0, lt=1)]
    consistent_only: Switch
    clamp: PositiveNumber | None

    @model_validator(mode="after")
    def _threshold_belongs_to_the_version(self) -> FlowConsistency:
        if self.version == "january" and self.threshold:
            raise ValueError("version january has no threshold; set threshold to null, or take version final")
        if self.version == "v2" and self.threshold == 0:
            raise ValueError("threshold 0 leaves version v2 no neighbour; set it to null for the version's own 0.5")
        return self


class PseudoLabel(Optimisation):
    """Mean teacher, ClassMix, DepthMix: pseudo labels of a moving average of the network, on mixed frames."""

    method: Literal["pseudo_label"]
    mask: Literal["none", "class", "depthmix", "depth", "depthhist"]
    margin: Annotated[Number, Field(ge=0)] | None
    foreground: tuple[Share, Share] | None
    frames: Literal["unlabelled", "all", "labelled", "video"]
    ground_truth: Switch
    consistency_weight: Annotated[Number, Field(ge=0)]
    confidence: Share
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    jitter: Share
    jitter_strength: Share
    blur: Share

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> PseudoLabel:
        depthmix = self.mask == "depthmix"
        if depthmix and None in (self.margin, self.foreground):
            raise ValueError("mask depthmix needs margin and foreground (the paper's: 0.03 and [0, 0])")
        if not depthmix and (self.margin, self.foreground) != (None, None):
            raise ValueError(f"margin and foreground belong to mask depthmix; set both to null for mask {self.mask}")
        if depthmix and self.foreground[0] > self.foreground[1]:
            raise ValueError(f"foreground {list(self.foreground)}: the smaller number comes first")
        if self.ground_truth and self.frames not in ("all", "labelled"):
            raise ValueError(
                f"ground_truth: frames {self.frames} have none; set frames to all or labelled, or turn it off"
            )
        return self

    @property
    def disparity(self) -> bool:
        """Whether the unlabelled frames need their disparity."""
        return self.mask in ("depthmix", "depth", "depthhist")


class MultitaskMethod(PseudoLabel):
    """Segmentation and depth from one network: pseudo labels on frames mixed by its own disparity."""

    method: Literal["multitask"]
    pose_lr: PositiveNumber
    depth_weight: PositiveNumber
    segmentation_weight: PositiveNumber
    min_depth: PositiveNumber
    max_depth: PositiveNumber
    auto_mask: Switch
    intrinsics: Literal["correct", "reference"]
    mixed_pass: Literal["full", "segmentation"]

    @model_validator(mode="after")
    def _depths_in_order(self) -> MultitaskMethod:
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth {self.min_depth} must be smaller than max_depth {self.max_depth}")
        return self

    def losses(self) -> dict[str, Any]:
        """Keyword arguments of `semivid.models.multitask_losses.multitask_losses`."""
        weights = {"depth_weight": self.depth_weight, "segmentation_weight": self.segmentation_weight}
        return weights | {"automask": self.auto_mask, "min_depth": self.min_depth, "max_depth": self.max_depth}


Method = Annotated[Supervised | PseudoLabel | MultitaskMethod, Field(discriminator="method")]


class Methods(Block):
    """Methods by their name in tables. Any name may be added; its key `method` says which file it is trained by."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Method] = Field(init=False)

    supervised: Supervised
    flow_baseline: FlowBaseline
    flow_consistency: FlowConsistency


ON_LABELS_ALONE = ("supervised",)
"""Methods that Table 3 can compare selections with; others have tables of their own."""


class Evaluate(Block):
    split: Literal["train", "val"]
    batch_size: Positive
    flip: Switch
    threads: Threads


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


class Family(Block):
    """Trainings that read the same things: one stage of dvc.yaml, every method on every selection."""

    methods: list[Text]
    selections: list[Text]

    @property
    def rows(self) -> list[str]:
        return [f"{method}-{selection}" for method in self.methods for selection in self.selections]


@dataclass(frozen=True)
class Trains:
    """What kind of block of `methods` a family of `compare` trains."""

    kind: type[Block]


class Compare(Block):
    """The runs that methods.csv, table1.csv and table2.csv are made of; families by what their training reads."""

    labels: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    rows: Annotated[list[Text], Field(min_length=1)]
    mix: Annotated[Family, Trains(PseudoLabel)]
    mix_depth: Annotated[Family, Trains(PseudoLabel)]
    transfer: Annotated[Family, Trains(Supervised)]
    transfer_plain: Annotated[Family, Trains(Supervised)]
    transfer_mix: Annotated[Family, Trains(PseudoLabel)]
    transfer_mix_depth: Annotated[Family, Trains(PseudoLabel)]
    flow: Annotated[Family, Trains(FlowConsistency)]
    multitask: Annotated[Family, Trains(MultitaskMethod)]

    @property
    def families(self) -> dict[str, Family]:
        return {name: block for name in type(self).model_fields if isinstance(block := getattr(self, name), Family)}


class MethodRows(Block):
    """A table over methods: its rows, METHOD-SELECTION."""

    rows: Annotated[list[Text], Field(min_length=1)]


Percent = Annotated[int, Field(strict=True, ge=1, le=100)]


class FlowTable(Block):
    """results/flow_consistency.csv."""

    rows: Annotated[list[Literal["flow_baseline", "flow_consistency"]], Field(min_length=1)]
    baseline: list[Literal["flow_baseline"]]
    consistency: list[Literal["flow_consistency"]]
    percents: Annotated[list[Percent], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def _lists_are_sets(self) -> FlowTable:
        for key in ("rows", "percents", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"flow_table.{key} {values} lists one of them twice")
        known = [*self.baseline, *self.consistency]
        if sorted(known) != sorted(self.rows):
            raise ValueError(f"rows {self.rows} and the methods of baseline and consistency {known} must be the same")
        return self


class Params(Block):
    """The whole of params.yaml."""

    data: Data
    render: Render
    frames: Frames
    depth_network: DepthNetwork
    depth_pretrain: DepthPretrain
    depth_finetune: DepthFinetune
    depth_model: Text
    disparity: Disparity
    flow: Flow
    select: Select
    network: Network
    train: Train
    methods: Methods
    evaluate: Evaluate
    table3: Table3
    flow_table: FlowTable
    transfer: Transfer
    multitask_network: Multitask
    compare: Compare
    methods_table: MethodRows
    table1: MethodRows
    table2: MethodRows

    @model_validator(mode="after")
    def _blocks_agree(self) -> Params:
        """What else only the last stage of a long run would find out."""
        wrong = []
        if self.table3.method not in ON_LABELS_ALONE:
            known = ", ".join(ON_LABELS_ALONE)
            found = self.table3.method
            wrong.append(f"`table3.method`: no method {found!r} on labelled frames alone; choose one of {known}")
        steps, loss = self.methods.flow_baseline, self.methods.flow_consistency
        if self.flow_table.consistency and steps.unlabelled_batch_size == 0:
            wrong.append(
                "`methods.flow_baseline.unlabelled_batch_size` 0 leaves flow_consistency nothing to learn from"
            )
        if steps.unlabelled_batch_size == 1 and steps.structure == "two_step" and self.network.aspp_rates:
            wrong.append("`methods.flow_baseline.unlabelled_batch_size` 1 cannot train an ASPP; raise it, or set its "
                         "`aspp_rates` to []")  # fmt: skip
        if loss.consistent_only and not self.flow.backward:
            wrong.append("`methods.flow_consistency.consistent_only` needs `flow.backward: true`")
        if steps.unlabelled == "all" and self.flow.frames == "annotated":
            wrong.append("`methods.flow_baseline.unlabelled` all needs `flow.frames: all`")
        trained: dict[str, tuple[Any, Any]] = {
            "train": (self.train, self.network),
            "depth_pretrain": (self.depth_pretrain, self.depth_network),
            "depth_finetune": (self.depth_finetune, self.depth_network),
        }
        most = max(self.table3.labels)
        for name in self.table3.rows:
            block = getattr(self.select, name)
            if isinstance(block, SelectStudent):
                trained[f"select.{name}"] = (block, block)
                if block.steps[-1] < most:
                    wrong.append(
                        f"`select.{name}.steps` end at {block.steps[-1]} frames; `table3.labels` asks for {most}"
                    )
            elif isinstance(block, SelectDiversity) and block.labels < most:
                wrong.append(f"`select.{name}.labels` is {block.labels}; `table3.labels` asks for {most}")
        size = self.frames.size
        for name, (block, network) in trained.items():
            crop = list(block.crop)
            if crop[0] > size[0] or crop[1] > size[1]:
                wrong.append(f"`{name}.crop` {crop} is larger than `frames.size` {list(size)} (width, height)")
            elif min(crop) <= network.stride:
                wrong.append(f"`{name}.crop` {crop} is too small: its encoder needs more than {network.stride} pixels")
            if block.batch_size == 1 and network.aspp_rates:
                wrong.append(f"`{name}.batch_size` 1 cannot train an ASPP; raise it, or set its `aspp_rates` to []")
        wrong = wrong or self._faults_of_the_comparison()  # which speak of Table 3's runs
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _faults_of_the_comparison(self) -> list[str]:
        """What is wrong with `compare` and the tables over its runs."""
        compare, wrong = self.compare, []
        for key, of in (("labels", self.table3.labels), ("seeds", self.table3.seeds)):
            values = getattr(compare, key)
            if repeated(values) or not set(values) <= set(of):
                why = "whose supervised runs the others are compared with"
                wrong.append(f"`compare.{key}` {values}: each once, and all among `table3.{key}` {of}, {why}")
        trained = {f"{self.table3.method}-{selection}" for selection in self.table3.rows}
        expected = []
        for name, family in compare.families.items():
            expected += family.rows if name != "multitask" else []
            for method in family.methods:
                block = getattr(self.methods, method, None)
                if fault := _unfit(name, block):
                    wrong.append(f"`compare.{name}.methods`: {method} {fault}")
                elif _reads_disparity_of_video(block) and self.disparity.frames != "all":
                    wrong.append(f"`methods.{method}.frames` video needs `disparity.frames: all`")
            for selection in family.selections if family.methods else ():
                if selection not in self.table3.rows:
                    wrong.append(
                        f"`compare.{name}.selections`: {selection} is none of `table3.rows` {self.table3.rows}"
                    )
        supervised = [row for row in compare.rows if row in trained]
        if sorted(compare.rows) != sorted(expected + supervised) or repeated(compare.rows):
            missing, odd = (
                sorted(set(expected) - set(compare.rows)),
                sorted(set(compare.rows) - set(expected) - trained),
            )
            what = f"lacks {', '.join(missing)}" if missing else f"lists {', '.join(odd)}, which no family trains"
            wrong.append(f"`compare.rows` {what if missing or odd else 'lists a row twice'}")
        for name in ("methods_table", "table1", "table2"):
            rows = getattr(self, name).rows
            odd = [row for row in rows if row not in compare.rows + compare.multitask.rows]
            if odd or repeated(rows):
                wrong.append(
                    f"`{name}.rows`: {', '.join(odd) or 'a row'} {'not in `compare.rows`' if odd else 'twice'}"
                )
        return wrong


def _reads_disparity_of_video(block: Block) -> bool:
    return isinstance(block, PseudoLabel) and block.frames == "video" and block.disparity


def repeated(values: list) -> bool:
    """Whether a list holds a value twice."""
    return len(set(values)) < len(values)


def _unfit(family: str, block: Block | None) -> str:
    """Why a method cannot be in a family of `compare`; empty if it can."""
    if block is None:
        return "has no block in `methods`"
    kinds = {name: kind for name, field in Compare.model_fields.items() for kind in _trained_by(field.metadata)}
    if type(block) is not kinds[family]:
        others = [f"`{name}`" for name, kind in kinds.items() if type(block) is kind]
        return f"is trained by another family: {', '.join(others)}" if others else "is trained by no family"
    if type(block) is not PseudoLabel:
        return ""
    wants, has = block.disparity, family.endswith("_depth")
    return "" if wants == has else f"reads {'disparities' if wants else 'no disparity'}; another family trains it"


def _trained_by(metadata: list) -> list[type[Block]]:
    return [part.kind for part in metadata if isinstance(part, Trains)]


def _follow(location: tuple) -> tuple[tuple, Any]:
    """A fault's place in the file, and the block it is in.

    Where a block has several kinds (`network`), pydantic names the kind behind the block; the file does not.
    """
    model: Any = Params
    place, kinds = [], None
    for part in location:
        if kinds:
            model, kinds = kinds.get(part), None
            continue
        place.append(part)
        if part != location[-1]:
            annotation = getattr(getattr(model, "model_fields", {}).get(part), "annotation", None)
            if annotation is None and model is Methods:
                annotation = get_args(Method)[0]
            kinds = _kinds(annotation)
            model = annotation
    return tuple(place), model


def _kinds(annotation: Any) -> dict[str, type[Block]] | None:
    """The blocks that a union chooses between, by the value of the key that chooses."""
    if get_origin(annotation) is not UnionType:
        return None
    blocks = get_args(annotation)
    for key in ("architecture", "method"):
        if all(key in getattr(block, "model_fields", {}) for block in blocks):
            return {get_args(block.model_fields[key].annotation)[0]: block for block in blocks}
    return None


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


_short = reprlib.Repr()  # YAML's aliases can nest without end
_short.maxlevel, _short.maxstring, _short.maxlong = 2, 80, 20


def _advice(error: Any) -> str:
    """What to write instead of a value of the wrong kind."""
    kind, value = error["type"], error["input"]
    if kind == "literal_error":
        return _did_you_mean(value, re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+.\deE_]+", value):
        return "; write the number without quotes"
    if kind in ("model_type", "dict_type"):
        return "; indent its keys below it"
    if kind == "string_type" and "[key]" in error["loc"]:
        return f'; write "{value}" in quotes'
    return "; write it in quotes" if kind == "string_type" and value is not None else ""


_PLAIN = {  # where pydantic speaks of Python
    "string_pattern_mismatch": "must be a text of one line, not empty",
    "string_type": "must be a text",
    "model_type": "must be a block of keys",
    "dict_type": "must be a block of keys",
    "invalid_key": "every key must be a text",
    "bool_type": "must be true or false",
}


def _chooser(error: Any) -> str:
    """The key whose value chooses between the kinds of a block."""
    return error["ctx"]["discriminator"].strip("'")


def _explain(error: ValidationError, path: Path) -> list[str]:
    lines = []
    for e in error.errors():
        place, block = _follow(e["loc"])
        key = ".".join(str(part) for part in place if not str(part).startswith("["))
        if e["type"] == "extra_forbidden":
            hint = _did_you_mean(place[-1], getattr(block, "model_fields", {}))
            lines.append(f"{path}: unknown key `{key}`{hint}")
        elif e["type"] in ("missing", "union_tag_not_found"):
            key += "" if e["type"] == "missing" else f".{_chooser(e)}"
            lines.append(f"{path}: key `{key}` is missing; presets/street.yaml shows every key")
        elif e["type"] == "union_tag_invalid":
            choice = e["ctx"]["expected_tags"]
            found = _short.repr(e["ctx"]["tag"])
            lines.append(f"{path}: `{key}.{_chooser(e)}` must be one of {choice} (found {found})")
        else:
            found = "" if isinstance(e["input"], dict | Block) else f" (found {_short.repr(e['input'])})"
            where = f"{path}: `{key}`: " if key else f"{path}: "
            message = _PLAIN.get(e["type"], e["msg"].removeprefix("Value error, "))
            lines += [f"{where}{line}{found}{_advice(e)}" for line in message.splitlines()]
    return [shown(line) for line in lines]


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
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError for values like 2001-99-99
        raise UserError(f"{path}: not valid YAML: {explain_yaml(error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: empty or not a mapping; presets/street.yaml shows every key")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_explain(error, path))) from None


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
