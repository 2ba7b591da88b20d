"""WideResNet-38 ("A2") of stride 8, with pre-activated blocks (Wu, Shen & van den Hengel 2016).

Specifications nvidia_segmentation.md, section 6, and s4gan_mlmt.md, section 3.2. Names are those of the published
``wider_resnet38.pth.tar``, without its last batch normalisation and classifier.
"""

from collections import OrderedDict

from torch import Tensor, nn

from semivid.models.trunks.trunk import Trunk

# Blocks, channels of their convolutions, stride of the first block, dilation, dropout before the last convolution.
_MODULES = {
    "mod2": (3, (128, 128), 1, 1, 0.0),
    "mod3": (3, (256, 256), 1, 1, 0.0),
    "mod4": (6, (512, 512), 2, 1, 0.0),
    "mod5": (3, (512, 1024), 1, 2, 0.0),
    "mod6": (1, (512, 1024, 2048), 1, 4, 0.3),
    "mod7": (1, (1024, 2048, 4096), 1, 4, 0.5),
}


def wide_resnet38() -> Trunk:
    """The trunk: 4096 channels at stride 8; the skip is mod2, 128 channels at stride 2."""
    conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    stages: dict[str, nn.Module] = {"mod1": nn.Sequential(OrderedDict(conv1=conv1))}
    channels = 64
    for name, (count, widths, stride, dilation, dropout) in _MODULES.items():
        if name in ("mod2", "mod3"):
            stages[f"pool{name[-1]}"] = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = OrderedDict()
        for number in range(1, count + 1):
            first = number == 1
            blocks[f"block{number}"] = Block(channels, widths, stride if first else 1, dilation, dropout)
            channels = widths[-1]
        stages[name] = nn.Sequential(blocks)
    return Trunk(stages, "mod2", 128, channels)


class Block(nn.Module):
    """A pre-activated residual block: ``convs(a) + shortcut`` with ``a = ReLU(BN(x))``, nothing after the sum.

    The shortcut is ``proj_conv(a)`` where channels or stride change, and the raw ``x`` elsewhere.

    Args:
        channels: channels of the input.
        widths: channels of the convolutions: two of 3x3, or 1x1, 3x3 and 1x1.
        stride: of the first 3x3 and of the projection.
        dilation: of every 3x3.
        dropout: probability, per whole map, before the last convolution.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], stride: int, dilation: int, dropout: float):
        super().__init__()
        kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
        strides = (stride, 1) if len(widths) == 2 else (1, stride, 1)
        self.bn1 = _activation(channels)
        self.convs = nn.Sequential()
        into = channels
        for n, (out, kernel, step) in enumerate(zip(widths, kernels, strides, strict=True), 1):
            if n > 1:
                self.convs.add_module(f"bn{n}", _activation(into))
            if n == len(widths) and dropout:
                self.convs.add_module("dropout", nn.Dropout2d(dropout))
            rate = dilation if kernel == 3 else 1
            conv = nn.Conv2d(into, out, kernel, step, padding=rate * (kernel // 2), dilation=rate, bias=False)
            self.convs.add_module(f"conv{n}", conv)
            into = out
        self.proj_conv = nn.Conv2d(channels, into, 1, stride, bias=False) if (channels, 1) != (into, stride) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, widths[-1], ceil(H / stride), ceil(W / stride))``."""
        active = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(active)
        return self.convs(active) + shortcut


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
