"""Multi-task network of Three Ways: segmentation and depth from one encoder, with an exchange between them.

The network of experiment 212 (paper section 3.2; specification three_ways.md section 4, "Multi-task decoder"), after
PAD-Net: two decoders of the depth network's layout, attention gates between them, an auxiliary and a final
classifier. Its parts have the keys of the published model, so that this loads as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import load_strictly, read_parts
from semivid.models.depth_decoder import SCALES, DepthDecoder
from semivid.models.encoder_decoder import resize
from semivid.models.encoders import build_encoder
from semivid.models.pose import PoseNet
from semivid.models.precision import at_least_float32
from semivid.models.weights import load_encoder_weights

POSE_LR = 1e-6


class Outputs(NamedTuple):
    """What one pass of a :class:`MultitaskNet` gives.

    logits       final class logits ``(B, C, H, W)``, at least float32
    side_logits  those of the auxiliary classifier, ``(B, C, h, w)`` at the distillation level (H/4, W/4 as published)
    disp         scale -> disparity ``(B, 1, H / 2^s, W / 2^s)``, at least float32, in (0, 1), large = near
    encoder      the encoder's five maps
    transforms   offset -> ``(B, 4, 4)`` from this camera to that of the neighbour
    """

    logits: Tensor
    side_logits: Tensor
    disp: dict[int, Tensor]
    encoder: list[Tensor]
    transforms: dict[int, Tensor]


class TaskDecoder(DepthDecoder):
    """A depth decoder that can be stopped between two levels; keys and arguments are the same."""

    def run(self, x: Tensor, maps: Sequence[Tensor], size: tuple[int, int], levels: Collection[int]) -> list[Tensor]:
        """The features of each of `levels`, consecutive and falling, from those of the level before them.

        Args:
            x: features of the level before, or the encoder's last map before level 4.
            maps: the encoder's five maps.
            size: height and width of level 0.
        """
        features = []
        for level in levels:
            x = self.decoder[self._first[level]](x)
            if self.upsamples[level]:
                x = F.interpolate(x, size=maps[level - 1].shape[-2:] if level else size, mode="nearest")
            if level:
                x = torch.cat([x, maps[level - 1]], 1)
            x = self.decoder[self._second[level]](x)
            features.append(x)
        return features

    def disparity(self, scale: int, features: Tensor) -> Tensor:
        """Disparity ``(B, 1, h, w)`` in (0, 1) from the features of the level of that number."""
        return torch.sigmoid(at_least_float32(self.decoder[self._head[scale]](features)))


class Gate(nn.Module):
    """What one task hands to the other: ``conv(x) * sigmoid(attention(x))``, both 3x3 without bias.

    The attention starts at zero weights, so that everything is handed over by half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.attention = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.attention.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, h, w)`` to the same shape."""
        return self.conv(x) * torch.sigmoid(self.attention(x))


class MultitaskDecoder(nn.Module):
    """Two decoders that exchange features half-way; keys ``depth_dec``, ``seg_dec``, ``sa_*``, ``seg_*_head.0``.

    Args:
        depth_dec, seg_dec: decoders of the same sizes.
        num_classes: number of classes C.
        distillation_layer: layer whose features are exchanged, 5..8 (9 = full resolution, 7 = a quarter).
        final_layer: layer of the final classifier, beyond the exchange and at most 9.

    Raises:
        UserError: layers outside of these ranges.
    """

    def __init__(
        self,
        depth_dec: TaskDecoder,
        seg_dec: TaskDecoder,
        num_classes: int,
        distillation_layer: int = 7,
        final_layer: int = 9,
    ) -> None:
        super().__init__()
        if not 5 <= distillation_layer < final_layer <= 9:
            raise UserError(
                f"multi-task network: distillation_layer {distillation_layer} and final_layer {final_layer}; "
                "give 5 to 8, and a larger one up to 9"
            )
        # Layers 5..9 are the levels 4..0.
        self.exchange, self.final = 9 - distillation_layer, 9 - final_layer
        self.depth_dec, self.seg_dec = depth_dec, seg_dec
        width = seg_dec.channels[self.exchange]
        self.sa_depth, self.sa_seg = Gate(width), Gate(width)
        self.seg_intermediate_head = nn.Sequential(nn.Conv2d(width, num_classes, 1))
        self.seg_final_head = nn.Sequential(nn.Conv2d(seg_dec.channels[self.final], num_classes, 1))

    def forward(
        self, maps: Sequence[Tensor], size: tuple[int, int], scales: Collection[int] = SCALES
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Final logits, auxiliary logits and disparities of the encoder's maps, as :class:`Outputs` describes them.

        Args:
            maps: the encoder's five maps.
            size: height and width of the input.
            scales: disparities wanted; depth levels that none of them needs are left out.

        Raises:
            UserError: the input is too small for reflection padding, or one sample trains an ASPP.
        """
        if min(maps[4].shape[-2:]) < 2:
            raise UserError(
                f"an input of {size[1]}x{size[0]} pixels is too small for this network: "
                "its coarsest map has a side below 2; give larger images or crops"
            )
        before = range(4, self.exchange - 1, -1)
        depth = dict(zip(before, self.depth_dec.run(maps[4], maps, size, before), strict=True))
        seg = self.seg_dec.run(maps[4], maps, size, before)[-1]
        side_logits = at_least_float32(self.seg_intermediate_head(seg))

        # Both gates read what was there before either sum.
        after = range(self.exchange - 1, self.final - 1, -1)
        final = self.seg_dec.run(seg + self.sa_depth(depth[self.exchange]), maps, size, after)[-1]
        after = range(self.exchange - 1, min([*scales, self.exchange]) - 1, -1)
        if after:
            continued = self.depth_dec.run(depth[self.exchange] + self.sa_seg(seg), maps, size, after)
            depth |= dict(zip(after, continued, strict=True))
        disp = {scale: self.depth_dec.disparity(scale, depth[scale]) for scale in sorted(scales, reverse=True)}
        logits = resize(at_least_float32(self.seg_final_head(final)), size)
        return logits, side_logits, disp


class MultitaskNet(nn.Module):
    """Encoder, :class:`MultitaskDecoder` and, where depth is trained, a pose network.

    Keys ``encoder.*``, ``pose_net.*`` and ``mtl_decoder.*``; the segmentation decoder's disparity heads hold weights
    that nothing uses, as in the published files, and get no gradient.

    Args:
        encoder: encoder of one frame.
        mtl_decoder: its decoder.
        pose_net: network of frame pairs; None for inference and for teachers.
    """

    def __init__(self, encoder: nn.Module, mtl_decoder: MultitaskDecoder, pose_net: PoseNet | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pose_net = pose_net
        self.mtl_decoder = mtl_decoder

    def forward(self, frames: Tensor) -> Tensor:
        """Final logits ``(B, C, H, W)``, at least float32, of RGB frames ``(B, 3, H, W)`` in [0, 1], any H and W."""
        return self.outputs(frames, scales=()).logits

    def outputs(
        self, frame: Tensor, neighbours: Mapping[int, Tensor] | None = None, scales: Collection[int] = SCALES
    ) -> Outputs:
        """Everything that the losses need.

        Args:
            frame: ``(B, 3, H, W)`` RGB in [0, 1].
            neighbours: offset in time (-1, 1, ...) -> frame of the same shape.
            scales: disparities wanted, from 0 (full size) to 3 (1/8).

        Raises:
            UserError: neighbours for a network without pose, too small an input, or one sample trains an ASPP.
        """
        if neighbours and self.pose_net is None:
            raise UserError("this multi-task network has no pose network: build it with a pose encoder to train depth")
        maps = self.encoder(frame)
        logits, side_logits, disp = self.mtl_decoder(maps, frame.shape[-2:], scales)
        transforms = {
            offset: self.pose_net.transform(frame, neighbour, offset)
            for offset, neighbour in (neighbours or {}).items()
        }
        return Outputs(logits, side_logits, disp, maps, transforms)

    def without_pose(self) -> MultitaskNet:
        """The same encoder and decoder (not copied) without pose: what a teacher is a copy of, and averages."""
        return MultitaskNet(self.encoder, self.mtl_decoder)

    def parameter_groups(self, encoder_lr: float, lr: float, pose_lr: float = POSE_LR) -> list[dict]:
        """Optimiser groups: the encoder at `encoder_lr`, decoders and heads at `lr`, and the pose network.

        The depth decoder trains at `lr` like the rest (section 16, defect 10: the reference's advertised 1e-3 for it
        appears in the run's name only).
        """
        groups = [
            {"params": list(self.encoder.parameters()), "lr": encoder_lr},
            {"params": list(self.mtl_decoder.parameters()), "lr": lr},
        ]
        if self.pose_net is not None:
            groups.append({"params": list(self.pose_net.parameters()), "lr": pose_lr})
        return groups

    def parts(self) -> dict[str, nn.Module]:
        """Parts by their name in whole-model files (see :mod:`semivid.models.checkpoints`)."""
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "mtl_decoder": self.mtl_decoder}
        if self.pose_net is not None:
            parts |= {"pose_encoder": self.pose_net.pose_encoder, "pose": self.pose_net.pose}
        return parts


def build_multitask_net(
    num_classes: int,
    encoder: str = "resnet101",
    dilated: bool = True,
    weights: str = "none",
    channels: Sequence[int] = (64, 128, 128, 256, 256),
    batch_norm: bool = False,
    aspp: Sequence[int] = (6, 12, 18),
    aspp_dropout: float = 0.5,
    pose_encoder: str | None = "resnet18",
    pose_weights: str = "none",
    distillation_layer: int = 7,
    final_layer: int = 9,
) -> MultitaskNet:
    """A multi-task network; the defaults are those of Three Ways (its experiment 212).

    Args:
        num_classes: number of classes.
        encoder, dilated: see :func:`semivid.models.encoders.build_encoder`.
        weights, pose_weights: see :func:`semivid.models.weights.load_encoder_weights`.
        channels, batch_norm, aspp, aspp_dropout: see :class:`DepthDecoder`; both decoders have them.
        pose_encoder: encoder of frame pairs; None for a network without pose.
        distillation_layer, final_layer: see :class:`MultitaskDecoder`.
    """
    body = build_encoder(encoder, dilated)
    load_encoder_weights(body, weights)
    pose_net = None
    if pose_encoder is not None:
        pairs = build_encoder(pose_encoder, dilated=False, in_frames=2)
        load_encoder_weights(pairs, pose_weights)
        pose_net = PoseNet(pairs)
    depth_dec, seg_dec = (
        TaskDecoder(body.channels, body.strides, channels, batch_norm, aspp, aspp_dropout) for _ in range(2)
    )
    decoder = MultitaskDecoder(depth_dec, seg_dec, num_classes, distillation_layer, final_layer)
    return MultitaskNet(body, decoder, pose_net)


def load_multitask_net(source: Path | str, pose: bool = False, **options) -> MultitaskNet:
    """The multi-task network of a whole-model file, with the file's number of classes; in training mode.

    Args:
        source: the published ``best_model_without_opt.pkl``, a folder or zip with it, or a file that a run of this
            project saved (see :func:`semivid.models.checkpoints.load_parts`).
        pose: load the pose network too; without it, one in the file is ignored.
        options: further arguments of :func:`build_multitask_net`, where they are not the published ones.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    wanted = ["encoder", "mtl_decoder", *(["pose_encoder", "pose"] if pose else [])]
    parts = {name: (where, state) for name, where, state in read_parts(source, wanted)}
    where, decoder = parts["mtl_decoder"]
    if "seg_final_head.0.bias" not in decoder:
        raise UserError(f"{where}: its part mtl_decoder lacks seg_final_head.0.bias; give a whole multi-task model")
    classes = decoder["seg_final_head.0.bias"].numel()
    if not pose:
        options["pose_encoder"] = None
    net = build_multitask_net(classes, **options)
    for name, module in net.parts().items():
        where, state = parts[name]
        load_strictly(module, state, where)
    return net


build = build_multitask_net  # what semivid.models.build looks for
