"""DeepLabV3+ (Chen et al. 2018) as in NVIDIA's semantic-segmentation (Zhu et al. 2019) and in semisup-semseg.

Names and shapes of all tensors are those of the published files, so that they load as they are; specification
nvidia_segmentation.md, section 6, and s4gan_mlmt.md, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import State, describe, load_strictly, read_state, trunk_name
from semivid.models.precision import at_least_float32
from semivid.models.trunks.resnets import DILATIONS, SKIPS, resnet, seresnext
from semivid.models.trunks.trunk import Trunk
from semivid.models.trunks.wide_resnet import wide_resnet38

TRUNKS = ("wide_resnet38", "seresnext50", "seresnext101", "resnet50", "resnet101")
# Per channel, RGB in [0, 1]: what the published networks and all ImageNet files of these trunks were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATES = (12, 24, 36)
CLASSIFIER = "final.6.weight"
# An input below has no pixel left after the stem of an SE-ResNeXt, which does not pad.
SMALLEST = 3
# What ImageNet files hold beyond the trunk.
_CLASSIFIERS = ("fc.", "last_linear.", "bn_out.", "classifier.")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling at stride 8: 1x1, three dilated 3x3 and image pooling, 256 channels each.

    Args:
        channels: channels of the input.
        rates: dilations of the 3x3 branches.
    """

    least_batch = 2  # in training; 1 where several processes share a batch

    def __init__(self, channels: int, rates: Sequence[int]):
        super().__init__()
        kernels = ((1, 1), *((3, rate) for rate in rates))
        self.features = nn.ModuleList([_conv_bn_relu(channels, 256, kernel, rate) for kernel, rate in kernels])
        self.img_conv = _conv_bn_relu(channels, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, 256 * (2 + len(rates)), H, W)``: image pooling first, then as stored.

        Raises:
            UserError: training with one sample, whose pooled 1x1 map has no batch statistics.
        """
        if self.training and len(x) < self.least_batch:
            raise UserError(
                "batch size 1 cannot train a DeepLabV3+: the image pooling of its ASPP is batch-normalised; "
                "raise the batch size to 2 or more"
            )
        # The pooled map is 1x1: its bilinear resize is a plain broadcast. Without its copy in the layout of the
        # others, their concatenation would not be in channels_last.
        pooled = self.img_conv(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return torch.cat([pooled.contiguous(memory_format=_layout(x)), *(branch(x) for branch in self.features)], 1)


class DeepLabV3Plus(nn.Module):
    """Trunk, ASPP and a decoder that joins the ASPP's answer with a finer map of the trunk; random weights.

    Args:
        num_classes: number of classes C.
        trunk: one of :data:`TRUNKS`.
        output_stride: stride of the last map: 8, or 16 (not with ``wide_resnet38``).
        skip: the finer map: ``m1``, at stride 4 (``wide_resnet38``: 2), or ``m2``, at stride 8 (not with that trunk).
        rates: dilations of the ASPP, in pixels of the last map.
        align_corners: how the ASPP's answer is enlarged to the skip's size; NVIDIA's networks true, that of
            semisup-semseg false. The logits are enlarged with true in both.

    Raises:
        UserError: an unknown trunk, or one of the options is not to be had with it.
    """

    def __init__(
        self,
        num_classes: int,
        trunk: str = "seresnext50",
        output_stride: int = 8,
        skip: str = "m1",
        rates: Sequence[int] = RATES,
        align_corners: bool = True,
    ):
        super().__init__()
        stages, self.fine, fine_channels, channels = _build_trunk(trunk, output_stride, skip)
        self.num_classes, self.trunk, self.align_corners = num_classes, trunk, align_corners
        self.stages = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.aspp = ASPP(channels, rates)
        self.bot_fine = nn.Conv2d(fine_channels, 48, 1, bias=False)
        self.bot_aspp = nn.Conv2d(256 * (2 + len(rates)), 256, 1, bias=False)
        self.final = nn.Sequential(
            *_conv_bn_relu(48 + 256, 256, 3),
            *_conv_bn_relu(256, 256, 3),
            nn.Conv2d(256, num_classes, 1, bias=False),
        )
        # As the reference: beside a WideResNet only the last layers.
        for part in (
            (self.final,) if trunk == "wide_resnet38" else (self.aspp, self.bot_fine, self.bot_aspp, self.final)
        ):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits ``(B, C, H, W)``, at least float32, of RGB ``(B, 3, H, W)`` in [0, 1], any H and W from 3.

        Normalised inside as ImageNet's weights, and with them all published files, want it: :data:`MEAN`, :data:`STD`.

        Raises:
            UserError: a frame of fewer than 3 rows or columns; training with one sample (see :class:`ASPP`).
        """
        size = frames.shape[-2:]
        if min(size) < SMALLEST:
            raise UserError(f"an input of {size[1]}x{size[0]} pixels is too small for a DeepLabV3+: give 3x3 or more")
        x, fine = _normalised(frames), None
        for name in self.stages:
            x = getattr(self, name)(x)
            if name == self.fine:
                fine = x
        x = _resize(self.bot_aspp(self.aspp(x)), fine.shape[-2:], self.align_corners)
        x = self.final(torch.cat([self.bot_fine(fine), x], 1))
        return _resize(at_least_float32(x), size, align_corners=True)

    def parameter_groups(self, encoder_lr: float, lr: float) -> list[dict]:
        """Optimiser groups: the trunk at `encoder_lr`, then everything else at `lr`; the reference has equal rates."""
        trunk = [p for name in self.stages for p in getattr(self, name).parameters()]
        own = {id(p) for p in trunk}
        return [
            {"params": trunk, "lr": encoder_lr},
            {"params": [p for p in self.parameters() if id(p) not in own], "lr": lr},
        ]


def build(
    num_classes: int,
    trunk: str = "seresnext50",
    weights: str = "none",
    new_classifier: bool = False,
    output_stride: int = 8,
    skip: str = "m1",
    rates: Sequence[int] = RATES,
    align_corners: bool = True,
) -> DeepLabV3Plus:
    """A DeepLabV3+ and its weights.

    Args:
        num_classes, trunk, output_stride, skip, rates, align_corners: see :class:`DeepLabV3Plus`.
        weights: ``none`` (random), or the path of a file: see :func:`load_weights`.
        new_classifier: the last layer keeps its random start, whatever the file holds for it.

    Raises:
        UserError: no such file, a broken one, or one that does not fit; a published network with an `align_corners`
            that it was not trained with.
    """
    net = DeepLabV3Plus(num_classes, trunk, output_stride, skip, rates, align_corners)
    if weights == "none":
        return net
    state = read_state(weights)
    trained_with = not any(key.startswith("backbone.") for key in state)
    # Our own exports are no published files: they fit either way.
    if "bot_aspp.weight" in state and Path(weights).suffix != ".safetensors" and align_corners != trained_with:
        raise UserError(
            f"{weights}: holds {describe(state)} that was trained with align_corners {str(trained_with).lower()}; "
            "set it so"
        )
    load_weights(net, state, weights, new_classifier)
    return net


def load_weights(net: DeepLabV3Plus, state: State, where: str, new_classifier: bool = False) -> None:
    """Fill a network, in place, from one of two kinds of file, which are told apart by their tensors.

    Args:
        net: the network.
        state: a whole DeepLabV3+: published by NVIDIA, by semisup-semseg (its trunk's names begin with ``backbone.``;
            a start for training alone, for its input was normalised otherwise, and differently for each data set), or
            our own. Or its trunk with an ImageNet classifier, which is ignored: torchvision's or timm's ResNets,
            Cadene's SE-ResNeXts (timm's ``legacy_``), ``wider_resnet38.pth.tar``; the rest keeps its random start.
        where: the file's name, for errors.
        new_classifier: the last layer keeps its random start too.

    Raises:
        UserError: another trunk or number of classes, names or shapes that differ, values that are not finite.
    """
    found = trunk_name(state)
    if found and found != net.trunk:
        raise UserError(
            f"{where}: holds {describe(state)}, but this network's trunk is {net.trunk}; "
            f"set trunk to {found} or take another file"
        )
    own = net.state_dict()
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    if "bot_aspp.weight" in state:
        if new_classifier:
            state[CLASSIFIER] = own[CLASSIFIER]
        elif CLASSIFIER in state and state[CLASSIFIER].shape[0:1] != own[CLASSIFIER].shape[0:1]:
            raise UserError(
                f"{where}: holds {describe(state)}, this network has {net.num_classes}; "
                "set new_classifier to true to train another last layer, or take another file"
            )
    elif found:
        load_strictly(nn.ModuleDict({name: getattr(net, name) for name in net.stages}), _from_imagenet(state), where)
        return
    load_strictly(net, state, where)


def _from_imagenet(state: State) -> State:
    """A classification network's tensors without its classifier; torchvision's stem becomes ``layer0``."""
    stem = {"conv1": "layer0.0", "bn1": "layer0.1"}
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if not key.startswith(_CLASSIFIERS):
            renamed[f"{stem.get(first, first)}.{rest}"] = value
    return renamed


def _build_trunk(name: str, output_stride: int, skip: str) -> Trunk:
    if name not in TRUNKS:
        raise UserError(f"unknown trunk {name!r}: take one of {', '.join(TRUNKS)}")
    if skip not in SKIPS:
        raise UserError(f"unknown skip {skip!r}: take {' or '.join(SKIPS)}")
    if output_stride not in DILATIONS:
        raise UserError(f"output_stride {output_stride}: a DeepLabV3+ has {' or '.join(map(str, DILATIONS))}")
    if name == "wide_resnet38":
        if (output_stride, skip) != (8, "m1"):
            raise UserError(
                f"trunk wide_resnet38 has output_stride 8 and skip m1, not {output_stride} and {skip}; "
                "change them or take another trunk"
            )
        return wide_resnet38()
    return (resnet if name.startswith("resnet") else seresnext)(name, output_stride, skip)


def _conv_bn_relu(channels: int, width: int, kernel: int, rate: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _normalised(frames: Tensor) -> Tensor:
    # One scalar per channel instead of a buffer: the published files have none.
    channels = [(x - mean) / std for x, mean, std in zip(frames.unbind(1), MEAN, STD, strict=True)]
    return torch.stack(channels, -1).movedim(-1, 1).contiguous(memory_format=_layout(frames))


def _resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
