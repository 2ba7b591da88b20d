"""The U-Net decoder of monodepth2 with an optional ASPP: disparities and features at five levels.

Used for depth, and as the body of the segmentation decoder, so that depth weights transfer to it.
Layout and key names: Three Ways (Hoyer et al., CVPR 2021), its published ``depth.pth``.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.precision import at_least_float32

SCALES = (0, 1, 2, 3)


class ReflectConv(nn.Module):
    """3x3 convolution with bias after reflection padding; key ``conv``."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConvBlock(nn.Module):
    """ReflectConv, batch normalisation if asked for, ELU; the convolution keeps its bias either way."""

    def __init__(self, channels_in: int, channels_out: int, batch_norm: bool):
        super().__init__()
        self.block = nn.Sequential(
            ReflectConv(channels_in, channels_out),
            nn.BatchNorm2d(channels_out) if batch_norm else nn.Identity(),
            nn.ELU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLab v3): 1x1, one dilated 3x3 per rate, image pooling, projection.

    Args:
        channels_in: channels of the input.
        channels_out: channels of every branch and of the output.
        rates: dilations of the 3x3 branches.
        dropout: probability of the dropout after the projection.
    """

    least_batch = 2  # in training; 1 where several processes share a batch

    def __init__(self, channels_in: int, channels_out: int, rates: Sequence[int], dropout: float):
        super().__init__()

        def branch(kernel: int, rate: int) -> nn.Sequential:
            padding = rate if kernel == 3 else 0
            conv = nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=rate, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))

        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *branch(1, 1))
        self.convs = nn.ModuleList([branch(1, 1), *(branch(3, rate) for rate in rates), pooling])
        self.project = nn.Sequential(
            nn.Conv2d(len(self.convs) * channels_out, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels_in, H, W)`` to ``(B, channels_out, H, W)``.

        Raises:
            UserError: training with one sample, whose pooled 1x1 map has no batch statistics.
        """
        if self.training and len(x) < self.least_batch:
            raise UserError(
                "batch size 1 cannot train an ASPP: its image pooling is batch-normalised; "
                "raise the batch size to 2 or more, or set the ASPP rates to []"
            )
        branches = [conv(x) for conv in self.convs[:-1]]
        # The pooled map is 1x1: its bilinear resize is a plain broadcast.
        branches.append(self.convs[-1](x).expand(-1, -1, *x.shape[-2:]))
        return self.project(torch.cat(branches, 1))


class DepthDecoder(nn.Module):
    """Five up-convolution levels: level i ends at the size of encoder map i-1, level 0 at full size.

    Args:
        encoder_channels: channels of the encoder's five maps.
        encoder_strides: their strides; a level upsamples where its skip map has a smaller stride.
        channels: output channels per level, listed from level 0 (full size) to level 4.
        batch_norm: batch normalisation in every ConvBlock.
        aspp: rates of the ASPP at level 4; empty for a plain ConvBlock there.
        aspp_dropout: dropout of the ASPP.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        channels: Sequence[int] = (64, 128, 128, 256, 256),
        batch_norm: bool = False,
        aspp: Sequence[int] = (6, 12, 18),
        aspp_dropout: float = 0.5,
    ):
        super().__init__()
        if not len(encoder_channels) == len(encoder_strides) == len(channels) == 5:
            raise UserError(f"a depth decoder has five levels: give 5 channels, not {list(channels)}")
        self.channels = tuple(channels)
        self.upsamples = tuple(level == 0 or encoder_strides[level] > encoder_strides[level - 1] for level in range(5))
        # One flat list in creation order, as in the published files; skips hold no weights but a place.
        parts: list[nn.Module] = []
        self._first, self._second, self._head = {}, {}, {}
        for level in (4, 3, 2, 1, 0):
            below = encoder_channels[4] if level == 4 else channels[level + 1]
            self._first[level] = len(parts)
            if level == 4 and aspp:
                parts.append(ASPP(below, channels[4], aspp, aspp_dropout))
            else:
                parts.append(ConvBlock(below, channels[level], batch_norm))
            skip = 0
            if level > 0:
                parts.append(nn.Identity())
                skip = encoder_channels[level - 1]
            self._second[level] = len(parts)
            parts.append(ConvBlock(channels[level] + skip, channels[level], batch_norm))
        for scale in SCALES:
            self._head[scale] = len(parts)
            parts.append(ReflectConv(channels[scale], 1))
        self.decoder = nn.ModuleList(parts)

    def forward(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        scales: Collection[int] = SCALES,
        levels: Collection[int] = (),
    ) -> dict[str, dict[int, Tensor]]:
        """Decode, running only the levels that the answer needs.

        Args:
            maps: the encoder's five maps, ``(B, C_i, h_i, w_i)``.
            size: height and width of the input, the size of level 0.
            scales: disparities wanted, from 0 (full size) to 3 (1/8).
            levels: features wanted, from 0 (full size) to 4.

        Returns:
            ``disp``: scale -> ``(B, 1, h, w)``, float32 in (0, 1), large = near;
            ``features``: level -> ``(B, channels[level], h, w)`` of every level that ran.

        Raises:
            UserError: the input is too small for reflection padding, or one sample trains an ASPP.
        """
        if min(maps[4].shape[-2:]) < 2:
            raise UserError(
                f"an input of {size[1]}x{size[0]} pixels is too small for this network: "
                "its coarsest map has a side below 2; give larger images or crops"
            )
        wanted = [*scales, *levels]
        x, disp, features = maps[4], {}, {}
        for level in range(4, min(wanted) - 1, -1):
            x = self.decoder[self._first[level]](x)
            if self.upsamples[level]:
                x = F.interpolate(x, size=maps[level - 1].shape[-2:] if level else size, mode="nearest")
            if level:
                x = torch.cat([x, maps[level - 1]], 1)
            x = features[level] = self.decoder[self._second[level]](x)
            if level in scales:
                disp[level] = torch.sigmoid(at_least_float32(self.decoder[self._head[level]](x)))
        return {"disp": disp, "features": features}
