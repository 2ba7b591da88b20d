"""Segmentation network of Three Ways: an encoder, a depth decoder as U-Net, and a small head.

The U-Net has the layout of the depth network, so that self-supervised depth weights initialise all of it
(Three Ways, section 3.2). Layers are numbered 0..4 = encoder maps, 5..9 = decoder levels 4..0
(9 = full resolution, 8 = 1/2, 7 = 1/4).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.depth_decoder import DepthDecoder
from semivid.models.encoders import build_encoder
from semivid.models.precision import at_least_float32
from semivid.models.weights import load_encoder_weights


class SegmentationDecoder(nn.Module):
    """A U-Net, a 1x1 projection of each chosen layer, and a classifier on their concatenation.

    Args:
        unet: the U-Net, key ``unet_dec``; it keeps its disparity heads so that depth weights fit as they are.
        encoder_channels: channels of the encoder's five maps.
        num_classes: number of classes.
        layers: layers that feed the head.
        output_stride: the head works at the input size divided by this.
        projection_channels: channels of each projected layer.
        head_inter: a 3x3 convolution with batch normalisation, ReLU and dropout before the classifier.
        head_channels: its channels.
        head_dropout: its dropout.
    """

    def __init__(
        self,
        unet: DepthDecoder,
        encoder_channels: Sequence[int],
        num_classes: int,
        layers: Sequence[int] = (9,),
        output_stride: int = 1,
        projection_channels: int = 64,
        head_inter: bool = False,
        head_channels: int = 64,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        if not layers or not set(layers) <= set(range(10)) or max(layers) < 5:
            raise UserError(f"segmentation layers {list(layers)}: give numbers 0..9, one of them 5 or more")
        self.unet_dec = unet
        self.layers = tuple(layers)
        self.output_stride = output_stride
        widths = [*encoder_channels, *reversed(unet.channels)]
        self.project = nn.ModuleDict(
            {
                f"seg{layer}": nn.Sequential(nn.Conv2d(widths[layer], projection_channels, 1, bias=False))
                for layer in layers
            }
        )
        width = projection_channels * len(layers)
        if head_inter:
            self.head = nn.Sequential(
                nn.Identity(),
                nn.Conv2d(width, head_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(head_channels),
                nn.ReLU(inplace=True),
                nn.Dropout(head_dropout),
                nn.Conv2d(head_channels, num_classes, 1),
            )
        else:
            # The two placeholders keep the published key: head.2.
            self.head = nn.Sequential(nn.Identity(), nn.Identity(), nn.Conv2d(width, num_classes, 1))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits ``(B, num_classes, *size)``, float32, of the encoder's maps."""
        levels = [9 - layer for layer in self.layers if layer >= 5]
        features = self.unet_dec(maps, size, scales=(), levels=levels)["features"]
        inner = tuple(math.ceil(side / self.output_stride) for side in size)
        projected = [
            resize(self.project[f"seg{layer}"](features[9 - layer] if layer >= 5 else maps[layer]), inner)
            for layer in self.layers
        ]
        return resize(at_least_float32(self.head(torch.cat(projected, 1))), size)


class SegmentationNet(nn.Module):
    """Encoder and :class:`SegmentationDecoder`; keys ``encoder.*`` and ``segmentation.*``.

    Parameters of levels and disparity heads that the layers do not need get no gradient.
    """

    def __init__(self, encoder: nn.Module, segmentation: SegmentationDecoder):
        super().__init__()
        self.encoder = encoder
        self.segmentation = segmentation

    def forward(self, frames: Tensor) -> Tensor:
        """Logits ``(B, num_classes, H, W)`` of RGB frames ``(B, 3, H, W)`` in [0, 1], any H and W."""
        return self.segmentation(self.encoder(frames), frames.shape[-2:])

    def parameter_groups(self, encoder_lr: float, lr: float) -> list[dict]:
        """Optimiser groups: the encoder at `encoder_lr`, then everything else at `lr`."""
        return [
            {"params": list(self.encoder.parameters()), "lr": encoder_lr},
            {"params": list(self.segmentation.parameters()), "lr": lr},
        ]

    def parts(self) -> dict[str, nn.Module]:
        """Parts by their name in checkpoint files; ``depth`` is the U-Net, which takes ``depth.pth``."""
        return {"encoder": self.encoder, "depth": self.segmentation.unet_dec}


def build_segmentation_net(
    num_classes: int,
    encoder: str = "resnet101",
    dilated: bool = True,
    weights: str = "none",
    channels: Sequence[int] = (64, 128, 128, 256, 256),
    batch_norm: bool = False,
    aspp: Sequence[int] = (6, 12, 18),
    aspp_dropout: float = 0.5,
    **head,
) -> SegmentationNet:
    """A segmentation network; the defaults are those of Three Ways (its experiment 210).

    Args:
        num_classes: number of classes.
        encoder, dilated: see :func:`semivid.models.encoders.build_encoder`.
        weights: see :func:`semivid.models.weights.load_encoder_weights`.
        channels, batch_norm, aspp, aspp_dropout: see :class:`DepthDecoder`.
        head: further arguments of :class:`SegmentationDecoder` (layers, output_stride, head_inter, ...).
    """
    body = build_encoder(encoder, dilated)
    load_encoder_weights(body, weights)
    unet = DepthDecoder(body.channels, body.strides, channels, batch_norm, aspp, aspp_dropout)
    return SegmentationNet(body, SegmentationDecoder(unet, body.channels, num_classes, **head))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize (align_corners False); `x` itself where the size is right already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


build = build_segmentation_net  # what semivid.models.build looks for
