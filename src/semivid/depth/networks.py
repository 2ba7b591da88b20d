"""The networks of self-supervised depth as one module: encoder, depth decoder and, for training, pose."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from semivid.models.depth_decoder import SCALES, DepthDecoder
from semivid.models.encoders import build_encoder
from semivid.models.pose import POSE_SCALE, PoseNet
from semivid.models.weights import load_encoder_weights


class DepthModel(nn.Module):
    """Encoder and depth decoder, with a pose network where the model is to be trained on video.

    Args:
        encoder: encoder of one frame.
        depth: its depth decoder.
        pose_net: network of frame pairs; None for inference and for depth students.
    """

    def __init__(self, encoder: nn.Module, depth: DepthDecoder, pose_net: PoseNet | None = None):
        super().__init__()
        self.encoder = encoder
        self.depth = depth
        self.pose_net = pose_net

    def forward(
        self,
        frame: Tensor,
        neighbours: Mapping[int, Tensor] | None = None,
        scales: Collection[int] = SCALES,
        levels: Collection[int] = (),
    ) -> dict:
        """Disparities and features of a frame, and the camera motion to its neighbours.

        Args:
            frame: ``(B, 3, H, W)`` RGB in [0, 1].
            neighbours: offset in time (-1, 1, ...) -> frame of the same shape; needs a pose network.
            scales, levels: what to decode, see :meth:`DepthDecoder.forward`.

        Returns:
            ``disp``: scale -> ``(B, 1, h, w)`` in (0, 1);
            ``features``: level -> decoder map;
            ``encoder``: the encoder's five maps;
            ``transforms``: offset -> ``(B, 4, 4)`` from this camera to the neighbour's.
        """
        maps = self.encoder(frame)
        output = self.depth(maps, frame.shape[-2:], scales, levels)
        transforms = {
            offset: self.pose_net.transform(frame, neighbour, offset)
            for offset, neighbour in (neighbours or {}).items()
        }
        return {**output, "encoder": maps, "transforms": transforms}

    def start_from(self, disparity: float, motion: float) -> None:
        """Shift the biases of the untrained disparity and pose heads, so that training starts in a good place.

        Disparity and motion start near 0.5 and 0; a pose network at rest and a depth that fits it is a bad
        minimum that short trainings do not leave. At 0.5 and 0 nothing changes.

        Args:
            disparity: mean disparity in (0, 1) to start from.
            motion: forward translation per frame, in the unit of depth, to start from.
        """
        with torch.no_grad():
            for head in self.depth.decoder[-len(SCALES) :]:  # the disparity heads are the decoder's last parts
                head.conv.bias += math.log(disparity / (1 - disparity))
            if self.pose_net is not None:
                # Seen from the later camera, points come nearer: translation 2 (z) of pose 0 is negative.
                self.pose_net.pose.net[-1].bias[5] -= motion / POSE_SCALE

    def parts(self) -> dict[str, nn.Module]:
        """Parts by their name in checkpoint files (see :mod:`semivid.models.checkpoints`)."""
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "depth": self.depth}
        if self.pose_net is not None:
            parts |= {"pose_encoder": self.pose_net.pose_encoder, "pose": self.pose_net.pose}
        return parts


def build_depth_model(
    encoder: str = "resnet101",
    dilated: bool = True,
    weights: str = "none",
    channels: Sequence[int] = (64, 128, 128, 256, 256),
    batch_norm: bool = False,
    aspp: Sequence[int] = (6, 12, 18),
    aspp_dropout: float = 0.5,
    pose_encoder: str | None = "resnet18",
    pose_weights: str = "none",
) -> DepthModel:
    """A depth model; the defaults are those of Three Ways (decoder ``dec6``).

    Args:
        encoder, dilated: see :func:`semivid.models.encoders.build_encoder`.
        weights, pose_weights: see :func:`semivid.models.weights.load_encoder_weights`.
        channels, batch_norm, aspp, aspp_dropout: see :class:`DepthDecoder`.
        pose_encoder: encoder of frame pairs; None for a model without pose.
    """
    body = build_encoder(encoder, dilated)
    load_encoder_weights(body, weights)
    depth = DepthDecoder(body.channels, body.strides, channels, batch_norm, aspp, aspp_dropout)
    if pose_encoder is None:
        return DepthModel(body, depth)
    pairs = build_encoder(pose_encoder, dilated=False, in_frames=2)
    load_encoder_weights(pairs, pose_weights)
    return DepthModel(body, depth, PoseNet(pairs))
