"""What a weights file holds and what it fits: `python -m semivid.models.inspect_checkpoint FILE [--tensors]`.

FILE is a .safetensors, .pth, .pt or .pkl file, or a zip or folder of such files. Nothing in it is run: tensors and
plain values alone are read. A network "fits" if the tensors load into it by the rules that training goes by.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semivid.depth.networks import build_depth_model
from semivid.errors import UserError, shown
from semivid.models.checkpoints import (
    State,
    describe,
    load_strictly,
    not_finite,
    read_contents,
    split_parts,
    trunk_name,
)
from semivid.models.deeplabv3plus import CLASSIFIER, SKIPS, DeepLabV3Plus, load_weights
from semivid.models.depth_decoder import DepthDecoder
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.models.encoders import ENCODERS, build_encoder
from semivid.models.fcn8s import FCN8s
from semivid.models.multitask import build_multitask_net
from semivid.models.pose import PoseDecoder
from semivid.models.weights import load_encoder_weights

# Channels of the five maps: by these a decoder tells what encoder it belongs to.
_MAPS = {
    (64, 64, 128, 256, 512): "resnet18",
    (64, 256, 512, 1024, 2048): "resnet50 or resnet101",
    (16, 24, 40, 112, 320): "tf_efficientnet_lite0",
}
# Where the flat list of a depth decoder has the second convolution of the levels 0 to 4.
_SECOND = (13, 11, 8, 5, 2)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_TRACELESS = "dilation, rates and output strides leave no trace in tensors; published: dilated, 6, 12, 18 and 1"
_DEEPLAB_TRACELESS = "output stride and rates leave no trace in tensors; published: 8; 12, 24 and 36"
_LONGEST = 40


class Section(NamedTuple):
    """One model: its place for the report, its parts by name, what lies beside the tensors, its path if one file."""

    where: str
    parts: dict[str, State]
    besides: dict[str, Any]
    path: Path | None = None


class Candidate(NamedTuple):
    """A network that a model could fit: its name, the options it was built with, its modules by part."""

    network: str
    options: dict[str, Any]
    modules: dict[str, nn.Module]


def inspect_checkpoint(source: Path | str, tensors: bool = False) -> list[str]:
    """The report, line by line.

    Args:
        source: a weights file, or a folder or zip of them.
        tensors: name every tensor, with its shape and type.

    Raises:
        UserError: nothing is there, or a file is broken, unsafe or without tensors; one line.
    """
    lines = [line for section in _sections(Path(source)) for line in (*_holds(section, tensors), *_fits(section))]
    return [shown(line) for line in lines]


def _sections(source: Path) -> Iterator[Section]:
    contents = read_contents(source)
    if list(contents) == [source.name]:
        (content,) = contents.values()
        parts = split_parts(content.state) or {_part_name(content.state): content.state}
        yield Section(str(source), parts, content.besides, source)
        return
    # In a folder or zip the files of parts make one model; a whole model is one by itself.
    whole = {name: parts for name, content in contents.items() if (parts := split_parts(content.state))}
    parts = {Path(name).stem: content.state for name, content in contents.items() if name not in whole}
    if parts:
        rest = {n: content.besides for n, content in contents.items() if n not in whole}
        yield Section(str(source), parts, {f"{n}: {key}": v for n, b in rest.items() for key, v in b.items()})
    for name, parts in whole.items():
        yield Section(f"{source}: {name}", parts, contents[name].besides)


def _part_name(state: State) -> str:
    """The part that a file by itself is; "network" for what is known by no part's name."""
    kind = describe(state)
    if kind.startswith(("a ResNet", "an EfficientNet")):
        return "pose_encoder" if _frames(state) > 1 else "encoder"
    known = {"a depth": "depth", "a pose": "pose", "a multi-task": "mtl_decoder", "a segmentation": "segmentation"}
    return next((name for start, name in known.items() if kind.startswith(start)), "network")


def _holds(section: Section, tensors: bool) -> Iterator[str]:
    yield f"{section.where}:"
    rows = [("part", "is", "tensors", "parameters", "type")]
    rows += [(name, describe(state), *_size(state)) for name, state in section.parts.items()]
    everything = {f"{part}.{key}": v for part, state in section.parts.items() for key, v in state.items()}
    if len(section.parts) > 1:
        rows.append(("all", "", *_size(everything)))
    a, b, c, d, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    yield from (f"  {r[0]:{a}}  {r[1]:{b}}  {r[2]:>{c}}  {r[3]:>{d}}  {r[4]}" for r in rows)
    classes = sorted({count for state in section.parts.values() if (count := number_of_classes(state))})
    if classes:
        yield f"  classes: {', '.join(map(str, classes))}"
    if spoilt := not_finite(everything):
        yield f"  infinite or not a number: {len(spoilt)} tensors, the first {spoilt[0]}"
    if section.besides:
        yield f"  besides: {', '.join(f'{key} {_brief(value)}' for key, value in section.besides.items())}"
    if tensors:
        yield from (f"  {key}  {tuple(value.shape)}  {_type(value)}" for key, value in everything.items())


def _size(state: State) -> tuple[str, str, str]:
    """Numbers of tensors and of trained parameters (no batch-norm statistics), and the types, as text."""
    trained = {key: value for key, value in state.items() if not key.endswith(_BUFFERS)}
    types = ", ".join(sorted({_type(value) for value in trained.values()}))
    return str(len(state)), f"{sum(value.numel() for value in trained.values()):,}", types


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"(tensor of {tuple(value.shape)})"
    if isinstance(value, Mapping | list | tuple | set):
        return f"({type(value).__name__} of {len(value)})"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def number_of_classes(state: Mapping[str, Tensor]) -> int | None:
    """Of a decoder with a classifier or of an FCN-8s; None for what has none."""
    if "bot_aspp.weight" in state:
        keys = [CLASSIFIER]
    elif "conv_block1.0.weight" in state:
        keys = ["classifier.6.bias"]
    elif any(key.startswith("unet_dec.") for key in state):
        keys = ["head.5.bias", "head.2.bias"]
    else:
        keys = ["seg_final_head.0.bias"]
    return next((state[key].shape[:1].numel() for key in keys if key in state), None)


def _fits(section: Section) -> Iterator[str]:
    """One line per network that the tensors load into; and why not, where their names promise it."""
    verdicts = []
    # On meta, networks take no memory, and loading compares everything but copies nothing (torch warns of that).
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for network, options, modules in _candidates(section.parts):
            told = f"    with {_told(options)}"
            try:
                for part, module in modules.items():
                    if isinstance(module, DeepLabV3Plus):
                        load_weights(module, section.parts[part], part)
                    elif section.path and len(section.parts) == 1 and part in ("encoder", "pose_encoder"):
                        load_encoder_weights(module, str(section.path))  # knows torchvision's and timm's names
                    else:
                        load_strictly(module, section.parts[part], part)
                verdicts += [f"  fits {network}", told]
            except UserError as error:
                verdicts += [f"  does not fit {network}: {error}", told]
    yield from verdicts or ["  fits none of this project's networks"]
    if any("ASPP" in verdict for verdict in verdicts):
        yield f"  ({_TRACELESS})"
    if any("architecture deeplabv3plus" in verdict for verdict in verdicts):
        yield f"  ({_DEEPLAB_TRACELESS})"


def _told(options: Mapping[str, Any]) -> str:
    shown_as = {key: value for key, value in options.items() if key != "aspp" and value is not None}
    words = [f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in shown_as.items()]
    if "aspp" in options:
        words.append(f"ASPP of {len(options['aspp'])} rates" if options["aspp"] else "no ASPP")
    return ", ".join(words)


def _candidates(parts: Mapping[str, State]) -> Iterator[Candidate]:
    """What the parts' names and shapes suggest, built on the device at hand."""
    encoder, pairs = (_encoder_name(parts.get(name, {})) for name in ("encoder", "pose_encoder"))
    whole = {"encoder": encoder, "pose_encoder": pairs if "pose" in parts else None}
    pose = ["pose_encoder", "pose"] if whole["pose_encoder"] else []
    used: set[str] = set()

    def built(network: str, options: dict[str, Any], net: nn.Module, names: list[str]) -> Candidate:
        modules = dict(net.named_children()) | (net.parts() if hasattr(net, "parts") else {})
        used.update(names)
        return Candidate(network, options, {name: modules[name] for name in names})

    if encoder and (options := _multitask(parts.get("mtl_decoder", {}))):
        net = build_multitask_net(dilated=False, **whole, **options)
        yield built("multitask_network", options | whole, net, ["encoder", "mtl_decoder", *pose])
    if encoder and (options := _segmentation(parts.get("segmentation", {}))):
        net = build_segmentation_net(encoder=encoder, dilated=False, **options)
        told = options | {"encoder": encoder}
        yield built("network.architecture encoder_decoder", told, net, ["encoder", "segmentation"])
    if encoder and (options := _decoder(parts.get("depth", {}), "decoder.")):
        net = build_depth_model(dilated=False, **whole, **options)
        yield built(
            "depth_network, and transfer to encoder_decoder or multitask",
            options | whole,
            net,
            ["encoder", "depth", *pose],
        )
    # Parts by themselves.
    if encoder and "encoder" not in used:
        module = build_encoder(encoder, dilated=False)
        yield Candidate("weights (and pose_weights) of a network", {"encoder": encoder}, {"encoder": module})
    if pairs and "pose_encoder" not in used:
        module = build_encoder(pairs, dilated=False, in_frames=_frames(parts["pose_encoder"]))
        yield Candidate("pose_weights of a network", {"pose_encoder": pairs}, {"pose_encoder": module})
    first = parts.get("pose", {}).get("net.0.weight")
    if first is not None and first.ndim == 4 and "pose" not in used:
        told = {"pose_encoder": next((name for maps, name in _MAPS.items() if maps[-1] == first.shape[1]), "unknown")}
        yield Candidate("the pose decoder of depth_network", told, {"pose": PoseDecoder(first.shape[1])})
    options = _decoder(parts.get("depth", {}), "decoder.")
    if options and "depth" not in used and (maps := _maps(parts["depth"], options)):
        decoder = DepthDecoder(maps, (2, 4, 8, 16, 32), **options)
        told = {"encoder": _MAPS[maps]} | options
        yield Candidate("the decoder of depth_network, and transfer without encoder", told, {"depth": decoder})
    network = parts.get("network", {})
    if "bot_aspp.weight" in network and (options := _deeplab(network)):
        yield Candidate("network.architecture deeplabv3plus", options, {"network": DeepLabV3Plus(**options)})
    for part in ("encoder", "network"):
        state = parts.get(part, {})
        if len(parts) == 1 and "bot_aspp.weight" not in state and (trunk := trunk_name(state)):
            told = {"trunk": trunk}
            yield Candidate("weights of network.architecture deeplabv3plus", told, {part: DeepLabV3Plus(1, trunk)})
    if "conv_block1.0.weight" in network:
        options = {"num_classes": number_of_classes(network) or 1, "frames": _frames(network)}
        yield Candidate("network.architecture fcn8s", options, {"network": FCN8s(**options)})
    elif network and describe(network) == "a VGG-16":
        from torchvision.models import vgg16

        yield Candidate("weights of network.architecture fcn8s", {"trained on": "ImageNet"}, {"network": vgg16()})
    elif "feature_encoder.convnormrelu.0.weight" in network:
        from torchvision.models import optical_flow

        small = network["feature_encoder.convnormrelu.0.weight"].shape[:1] == (32,)
        name = "raft_small" if small else "raft_large"
        yield Candidate("weights of flow.raft", {"network": name}, {"network": getattr(optical_flow, name)()})


def _encoder_name(state: State) -> str | None:
    kind = describe(state) if state else ""
    if kind.startswith("an EfficientNet"):
        return "tf_efficientnet_lite0"
    name = kind.removeprefix("a ").split(" of ")[0].lower().replace("-", "")
    return name if name in ENCODERS else None


def _frames(state: State) -> int:
    """RGB frames that the first layer sees."""
    names = ("conv1.weight", "conv_stem.weight", "_conv_stem.weight", "conv_block1.0.weight")
    first = next((v for key, v in state.items() if key.removeprefix("encoder.") in names and v.ndim == 4), None)
    return 1 if first is None else max(1, first.shape[1] // 3)


def _deeplab(state: State) -> dict[str, Any]:
    """Options of a DeepLabV3+; empty if its trunk is unknown."""
    trunk, fine = trunk_name(state), state.get("bot_fine.weight")
    if trunk is None:
        return {}
    channels = fine.shape[1:2].numel() if fine is not None else None
    skip = next((name for name, (_, wanted) in SKIPS.items() if wanted == channels), "m1")
    published_elsewhere = any(key.startswith("backbone.") for key in state)
    return {
        "trunk": trunk,
        "num_classes": number_of_classes(state) or 1,
        "skip": "m1" if trunk == "wide_resnet38" else skip,
        "align_corners": not published_elsewhere,
    }


def _decoder(state: State, prefix: str) -> dict[str, Any]:
    """Options of the depth decoder whose keys begin with `prefix`; empty if that is none."""
    weights = [state.get(f"{prefix}{index}.block.0.conv.weight") for index in _SECOND]
    if any(weight is None or weight.ndim != 4 for weight in weights):
        return {}
    branches = {key[len(prefix) :].split(".")[2] for key in state if key.startswith(f"{prefix}0.convs.")}
    return {
        "channels": [weight.shape[0] for weight in weights],
        "batch_norm": f"{prefix}2.block.1.weight" in state,
        # Two branches have no rate: 1x1 and pooling. What the rates are cannot be seen.
        "aspp": [1] * (len(branches) - 2),
    }


def _maps(state: State, options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Channels of the encoder's maps that a depth decoder reads, if they are a known encoder's."""
    first = next((v for key, v in state.items() if key.startswith("decoder.0.") and v.ndim == 4), None)
    skips = [state[f"decoder.{_SECOND[i + 1]}.block.0.conv.weight"].shape[1] for i in range(4)]
    if first is None:
        return None
    maps = (*(skip - own for skip, own in zip(skips, options["channels"][1:], strict=True)), first.shape[1])
    return maps if maps in _MAPS else None


def _segmentation(state: State) -> dict[str, Any]:
    """Options of a :class:`SegmentationDecoder`; empty if that is none."""
    projections = {key.split(".")[1]: v for key, v in state.items() if key.startswith("project.seg") and v.ndim == 4}
    layers = [int(name.removeprefix("seg")) for name in projections if name.removeprefix("seg").isdecimal()]
    body, classes = _decoder(state, "unet_dec.decoder."), number_of_classes(state)
    if not body or not classes or not layers or not set(layers) <= set(range(10)) or max(layers) < 5:
        return {}
    head = {"layers": layers, "head_inter": "head.5.bias" in state}
    head["projection_channels"] = next(iter(projections.values())).shape[0]
    if head["head_inter"] and "head.1.weight" in state:
        head["head_channels"] = state["head.1.weight"].shape[:1].numel()
    return {"num_classes": classes} | body | head


def _multitask(state: State) -> dict[str, Any]:
    """Options of a :class:`MultitaskDecoder`; empty if that is none."""
    body, classes = _decoder(state, "seg_dec.decoder."), number_of_classes(state)
    heads = [state.get(f"seg_{name}_head.0.weight") for name in ("intermediate", "final")]
    if not body or not classes or any(head is None or head.ndim != 4 for head in heads):
        return {}
    # Where two levels are equally wide, the published layers 7 and 9 come first.
    widths = {9 - level: channels for level, channels in enumerate(body["channels"])}
    side, final = (head.shape[1] for head in heads)
    pairs = [(d, f) for d in (7, 8, 6, 5) for f in (9, 8, 7, 6) if f > d and (widths[d], widths[f]) == (side, final)]
    if not pairs:
        return {}
    return {"num_classes": classes} | body | {"distillation_layer": pairs[0][0], "final_layer": pairs[0][1]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="inspect_checkpoint", description="What a weights file holds and fits.")
    parser.add_argument("file", type=Path, help="weights file, or a folder or zip of them")
    parser.add_argument("--tensors", action="store_true", help="name every tensor, with its shape and type")
    args = parser.parse_args()
    try:
        print("\n".join(inspect_checkpoint(args.file, args.tensors)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
