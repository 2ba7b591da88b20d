"""FCN-8s on a VGG16 (Long, Shelhamer & Darrell 2015), as in flow-consistency and its parent pytorch-semseg.

Names and shapes of all 39 tensors are those of the published ``fcn8s*.pkl`` (specification flow_consistency.md,
section 6), so that they load as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import State, load_strictly, read_state
from semivid.models.precision import at_least_float32

INPUTS = ("imagenet", "reference")
# Per channel, RGB in [0, 1]: what torchvision's ImageNet weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The first convolution pads by this, so that the 7x7 of the classifier fits any image; pools and score are cropped.
PADDING = 100
_POOL4_CROP, _POOL3_CROP, _OUT_CROP = 5, 9, 31
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class FCN8s(nn.Module):
    """VGG16 without batch normalisation, scores at stride 32, 16 and 8 added up; 134 million parameters.

    Random weights; the learned upsampling starts as bilinear interpolation of each class by itself.

    Args:
        num_classes: number of classes C.
        frames: RGB frames per sample, concatenated on the channels.
        input: what the first layer sees of RGB in [0, 1]: ``imagenet``, normalised as torchvision's weights want
            it; ``reference``, BGR as it is, which the published FCN-8s were trained with.

    Raises:
        UserError: an unknown `input`.
    """

    def __init__(self, num_classes: int, frames: int = 1, input: str = "imagenet") -> None:
        super().__init__()
        if input not in INPUTS:
            raise UserError(f"FCN-8s: unknown input {input!r}; take {' or '.join(INPUTS)}")
        self.num_classes, self.frames, self.input = num_classes, frames, input
        channels = 3 * frames
        for number, widths in enumerate(_BLOCKS, 1):
            self.add_module(f"conv_block{number}", _block(channels, widths, PADDING if number == 1 else 1))
            channels = widths[-1]
        self.classifier = nn.Sequential(
            nn.Conv2d(512, 4096, 7),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(4096, 4096, 1),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(4096, num_classes, 1),
        )
        self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        self.score_pool3 = nn.Conv2d(256, num_classes, 1)
        self.upscore2 = _bilinear_upsampling(num_classes, 4, 2)
        self.upscore4 = _bilinear_upsampling(num_classes, 4, 2)
        self.upscore8 = _bilinear_upsampling(num_classes, 16, 8)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits ``(B, C, H, W)``, at least float32, of RGB ``(B, 3 * frames, H, W)`` in [0, 1], any H and W."""
        height, width = frames.shape[-2:]
        x = self.conv_block2(self.conv_block1(self._first_layer_sees(frames)))
        pool3 = self.conv_block3(x)
        pool4 = self.conv_block4(pool3)
        score = self.upscore2(self.classifier(self.conv_block5(pool4)))
        score = self.upscore4(score + _crop(self.score_pool4(pool4), _POOL4_CROP, score.shape[-2:]))
        score = self.upscore8(score + _crop(self.score_pool3(pool3), _POOL3_CROP, score.shape[-2:]))
        return at_least_float32(_crop(score, _OUT_CROP, (height, width)))

    def _first_layer_sees(self, frames: Tensor) -> Tensor:
        if self.input == "reference":
            return frames.unflatten(1, (self.frames, 3)).flip(2).flatten(1, 2)
        # One scalar per channel instead of a buffer: the published files have none.
        channels = [(x - MEAN[c % 3]) / STD[c % 3] for c, x in enumerate(frames.unbind(1))]
        x = torch.stack(channels, 1)
        return x.contiguous(memory_format=torch.channels_last) if _is_channels_last(frames) else x

    def vgg(self) -> list[nn.Module]:
        """The five convolution blocks, which ImageNet weights fill."""
        return [getattr(self, f"conv_block{number}") for number in range(1, len(_BLOCKS) + 1)]

    def parameter_groups(self, encoder_lr: float, lr: float) -> list[dict]:
        """Optimiser groups: the convolution blocks at `encoder_lr`, then everything else at `lr`."""
        encoder = [p for block in self.vgg() for p in block.parameters()]
        own = {id(p) for p in encoder}
        return [
            {"params": encoder, "lr": encoder_lr},
            {"params": [p for p in self.parameters() if id(p) not in own], "lr": lr},
        ]


def build_fcn8s(num_classes: int, weights: str = "none", frames: int = 1, input: str = "imagenet") -> FCN8s:
    """An FCN-8s and its weights.

    Args:
        num_classes, frames, input: see :class:`FCN8s`.
        weights: ``none`` (random), or the path of one of two kinds of file, which are told apart by their tensors:
            torchvision's ImageNet VGG16 (fills all but the scores of the pools and the upsampling; the last layer
            with the first `num_classes` of ImageNet's 1000 classes, as the reference does, and the first layer
            with one frame's weights for each of several); or a whole FCN-8s, published ``.pkl`` or our own
            ``.safetensors``.

    Raises:
        UserError: no such file, a broken one, one of another architecture, number of classes or frames, or with
            values that are not finite; a published FCN-8s with an `input` that it was not trained with.
    """
    net = FCN8s(num_classes, frames, input)
    if weights == "none":
        return net
    path = Path(weights)
    state = read_state(path)
    # Another VGG is left as it is, and told by name when it is refused.
    if {key for key in state if key.startswith("features.")} == _vgg16_names().keys():
        own = net.state_dict()
        state = {key: own[key] for key in own if key.startswith(("score_", "upscore"))} | from_vgg16(
            state, num_classes, frames
        )
    elif "conv_block1.0.weight" in state and path.suffix != ".safetensors" and input != "reference":
        raise UserError(
            f"{path}: holds a published FCN-8s, which was trained on BGR in [0, 1]; set input to reference for it"
        )
    load_strictly(net, state, str(path))
    return net


def from_vgg16(state: State, num_classes: int, frames: int = 1) -> State:
    """torchvision's VGG16 tensors under FCN-8s names; unknown ones keep theirs.

    Its fully connected layers become convolutions: ``classifier.0`` (4096, 25088) is seen as (4096, 512, 7, 7),
    and of ``classifier.6`` the first `num_classes` rows are kept.
    """
    names = _vgg16_names()
    renamed = {}
    for key, value in state.items():
        if key.startswith("classifier.6.") and value.ndim:
            value = value[:num_classes]
        if key == "classifier.0.weight" and value.shape[1:] == (512 * 7 * 7,):
            value = value.unflatten(1, (512, 7, 7))
        elif key in ("classifier.3.weight", "classifier.6.weight") and value.ndim == 2:
            value = value[:, :, None, None]
        elif key == "features.0.weight" and value.ndim == 4:
            value = value.repeat(1, frames, 1, 1)
        renamed[names.get(key, key)] = value
    return renamed


def _vgg16_names() -> dict[str, str]:
    """torchvision numbers convolutions, ReLUs and pools of all blocks through; here each block begins at 0."""
    names, position = {}, 0
    for number, widths in enumerate(_BLOCKS, 1):
        for layer in range(0, 2 * len(widths), 2):
            for kind in ("weight", "bias"):
                names[f"features.{position + layer}.{kind}"] = f"conv_block{number}.{layer}.{kind}"
        position += 2 * len(widths) + 1
    return names


def _block(channels: int, widths: tuple[int, ...], padding: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU(inplace=True)]
        channels, padding = width, 1
    return nn.Sequential(*layers, nn.MaxPool2d(2, stride=2, ceil_mode=True))


def _bilinear_upsampling(channels: int, size: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that interpolates each channel bilinearly; `size` is even."""
    layer = nn.ConvTranspose2d(channels, channels, size, stride=stride, bias=False)
    half = size // 2
    line = 1 - (torch.arange(size) - (half - 0.5)).abs() / half
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = torch.outer(line, line)
    return layer


def _crop(x: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    return x[..., offset : offset + size[0], offset : offset + size[1]]


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


build = build_fcn8s  # what semivid.models.build looks for
