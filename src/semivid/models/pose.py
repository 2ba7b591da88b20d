"""Camera motion between two frames of a video (monodepth2's separate pose network)."""

import torch
from torch import Tensor, nn

from semivid.geometry.camera import transform_from_parameters
from semivid.models.precision import at_least_float32

POSE_SCALE = 0.01  # of what the last convolution puts out


class PoseDecoder(nn.Module):
    """Four convolutions and a global mean over the last encoder map; keys ``net.0`` .. ``net.3``.

    Args:
        channels_in: channels of the encoder's last map.
    """

    def __init__(self, channels_in: int = 512):
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Conv2d(channels_in, 256, 1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 12, 1),
            ]
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Axis-angle (radians) and translation, each ``(B, 2, 1, 3)``, of a map ``(B, channels_in, h, w)``.

        Two poses are predicted, as in the published weights; only index 0 is meant to be used.
        """
        x = features
        for conv in self.net[:-1]:
            x = torch.relu(conv(x))
        x = POSE_SCALE * at_least_float32(self.net[-1](x)).mean((2, 3)).view(-1, 2, 1, 6)
        return x[..., :3], x[..., 3:]


class PoseNet(nn.Module):
    """An encoder of frame pairs and a :class:`PoseDecoder`; keys ``pose_encoder.*`` and ``pose.*``.

    Args:
        pose_encoder: an encoder built with ``in_frames=2``.
    """

    def __init__(self, pose_encoder: nn.Module):
        super().__init__()
        self.pose_encoder = pose_encoder
        self.pose = PoseDecoder(pose_encoder.channels[-1])

    def forward(self, earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        """Axis-angle (radians) and translation, each ``(B, 2, 1, 3)``, of two frames ``(B, 3, H, W)``."""
        return self.pose(self.pose_encoder(torch.cat([earlier, later], 1))[-1])

    def transform(self, frame: Tensor, neighbour: Tensor, offset: int) -> Tensor:
        """The transform ``(B, 4, 4)`` from the camera of `frame` to that of `neighbour`, `offset` frames on.

        The network sees every pair in time order; the motion from an earlier neighbour is inverted.
        """
        pair = (neighbour, frame) if offset < 0 else (frame, neighbour)
        axisangle, translation = self(*pair)
        return transform_from_parameters(axisangle[:, 0, 0], translation[:, 0, 0], invert=offset < 0)
