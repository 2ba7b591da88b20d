"""FlowNet2 (Ilg et al., CVPR 2017; specification sdc_propagation, sections 3, 4 and 13) in plain PyTorch.

The keys are those of the published ``FlowNet2_checkpoint.pth.tar``. Its three CUDA layers (correlation, resampling,
channel norm) are functions here that run on any device. Flows are backward motion fields in pixels, channel 0 to the
right and channel 1 down: ``out(x, y) = source(x + dx, y + dy)``.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import load_strictly, read_state
from semivid.models.precision import at_least_float32

STRIDE = 64  # six halvings: sides must be multiples of it
RGB_MAX = 255.0
_SCALE = 20.0  # `div_flow`: what the networks' flows are divided by in training
_DISPLACEMENT = 20
_SLOPE = 0.1


# ---- the three layers


def resample2d(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Backward warp, ``out(x, y) = image(x + dx, y + dy)``; the border is repeated (specification, section 3).

    Zero motion gives back the image bit for bit, motion by whole pixels shifts it exactly. That, and halves that go up
    in ``nearest``, is why this is not ``grid_sample``, whose coordinates are rounded on their way through [-1, 1].

    Args:
        image: ``(B, C, H, W)``; of any type for ``nearest``, float for ``bilinear``.
        flow: ``(B, 2, H, W)`` pixels: to the right, down.
        mode: ``bilinear``, or ``nearest``, the pixel at ``floor(x + dx + 0.5)``.

    Returns:
        ``(B, C, H, W)``, of the image's type for ``nearest``, else float32 or wider; for ``bilinear`` differentiable in
        flow and image. A flow that is not a number gives values that are none in ``bilinear``.

    Raises:
        UserError: sizes differ, or an unknown mode.
    """
    batch, channels, height, width = image.shape
    if flow.shape != (batch, 2, height, width):
        raise UserError(
            f"a flow {tuple(flow.shape)} cannot warp an image {tuple(image.shape)}: give (B, 2, H, W) of the same size"
        )
    flow = at_least_float32(flow)
    x = flow[:, 0] + torch.arange(width, device=flow.device, dtype=flow.dtype)
    y = flow[:, 1] + torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]

    def index(whole: Tensor, size: int) -> Tensor:
        return whole.detach().nan_to_num(0.0).clamp(0, size - 1).long()

    def picked(column: Tensor, row: Tensor) -> Tensor:
        where = (row * width + column).view(batch, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, where).view(image.shape)

    if mode == "nearest":
        flat = image.reshape(batch, channels, -1)
        return picked(index((x + 0.5).floor(), width), index((y + 0.5).floor(), height))
    if mode != "bilinear":
        raise UserError(f"a warp is bilinear or nearest, not {mode!r}")
    flat = at_least_float32(image).reshape(batch, channels, -1)
    left, top = x.detach().floor(), y.detach().floor()
    alpha, beta = (x - left)[:, None], (y - top)[:, None]  # of the true coordinates, wherever they are
    x0, x1 = index(left, width), index(left + 1, width)
    y0, y1 = index(top, height), index(top + 1, height)
    out = (1 - alpha) * (1 - beta) * picked(x0, y0)
    out = out + alpha * (1 - beta) * picked(x1, y0)
    out = out + (1 - alpha) * beta * picked(x0, y1)
    return out + alpha * beta * picked(x1, y1)


def correlation(first: Tensor, second: Tensor, displacement: int = _DISPLACEMENT, stride: int = 2) -> Tensor:
    """How alike each pixel of `first` is to those around it in `second` (specification, section 3).

    With ``n = displacement // stride`` and ``i, j`` from -n to n, channel ``(j + n) (2n + 1) + (i + n)`` is the mean
    over the channels of ``first(y, x) second(y + stride j, x + stride i)``; `second` is zero beyond its border.

    Computed as products of matrices, one for each row of displacements and each remainder of the columns by the
    stride; the wanted values are a band of each product, which is read through its strides. Beside the result this
    needs memory for one such product, not for 441 shifted maps.

    Args:
        first, second: ``(B, C, H, W)``.
        displacement: largest displacement in pixels, a multiple of `stride`.

    Returns:
        ``(B, (2n + 1)^2, H, W)``, float32 or wider, also under autocast.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = at_least_float32(first), at_least_float32(second)
        batch, channels, height, width = first.shape
        around = 2 * (displacement // stride) + 1
        second = F.pad(second, (displacement,) * 4).permute(0, 2, 3, 1)
        first = first.permute(0, 2, 3, 1) / channels
        out = first.new_empty(batch, height, width, around, around)
        for remainder in range(min(stride, width)):
            rows = first[:, :, remainder::stride].contiguous()  # (B, H, w, C)
            columns = second[:, :, remainder::stride].transpose(2, 3).contiguous()  # (B, H + 2d, C, l)
            count, length = rows.shape[2], columns.shape[3]
            for j in range(around):
                product = rows @ columns[:, j * stride : j * stride + height]  # (B, H, w, l)
                product = product.contiguous()
                step = product.stride()
                band = product.as_strided(
                    (batch, height, count, around), (step[0], step[1], length + 1, 1), product.storage_offset()
                )
                out[:, :, remainder::stride, j] = band
    return out.flatten(3).permute(0, 3, 1, 2).contiguous()


def channel_norm(x: Tensor) -> Tensor:
    """Length of each pixel's vector of channels, ``(B, C, H, W)`` to ``(B, 1, H, W)``; its gradient at 0 is NaN."""
    return at_least_float32(x).square().sum(1, keepdim=True).sqrt()


def padded(image: Tensor) -> Tensor:
    """An image ``(B, C, H, W)``, mirrored at the bottom and to the right up to multiples of 64 (section 2).

    Raises:
        UserError: a side is too short for that (below 33 pixels).
    """
    height, width = image.shape[-2:]
    right, bottom = -width % STRIDE, -height % STRIDE
    if right >= width or bottom >= height:
        raise UserError(
            f"images of {width}x{height} are too small for the SDC and FlowNet2 networks: "
            "give frames of at least 33 pixels a side"
        )
    return F.pad(image, (0, right, 0, bottom), mode="reflect") if right or bottom else image


# ---- building blocks


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and LeakyReLU 0.1; the size is divided by the stride, rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2), nn.LeakyReLU(_SLOPE, inplace=True)
    )


def deconvolution(inputs: int, outputs: int) -> nn.Sequential:
    """Transposed convolution to twice the size, and LeakyReLU 0.1."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(_SLOPE, inplace=True))


class _Pyramid(nn.Module):
    """What the five networks have in common: a flow at the coarsest level, refined from level to level."""

    def _add_decoder(
        self, top: int, levels: dict[int, tuple[int, int]], inter: dict[int, int] | None = None, bias: bool = True
    ) -> None:
        """Add the decoder's layers.

        top: channels of the coarsest features. levels, from coarse to fine: {level: (channels of the encoder's
        features, channels of the deconvolution)}. inter: channels of the layers between features and flow, if any.
        bias: whether the enlargement of a flow has one.
        """
        features, inputs, predicted = top, {}, {max(levels) + 1: top}
        for level, (skip, up) in levels.items():
            inputs[level] = features
            features = skip + up + 2
            predicted[level] = inter[level] if inter else features
        for level, (_, up) in levels.items():
            self.add_module(f"deconv{level}", deconvolution(inputs[level], up))
        if inter:
            for level, (skip, up) in levels.items():
                layer = nn.Conv2d(skip + up + 2, inter[level], 3, 1, 1)
                self.add_module(f"inter_conv{level}", nn.Sequential(layer))
        for level, channels in predicted.items():
            self.add_module(f"predict_flow{level}", nn.Conv2d(channels, 2, 3, 1, 1))
        for level in levels:
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=bias))
        self._levels, self._inter = tuple(levels), inter is not None

    def _refine(self, top: Tensor, skips: dict[int, Tensor]) -> Tensor:
        """The flow at the finest level, from the coarsest features and the encoder's by level."""
        flow, features = getattr(self, f"predict_flow{self._levels[0] + 1}")(top), top
        for level in self._levels:
            up = getattr(self, f"upsampled_flow{level + 1}_to_{level}")(flow)
            features = torch.cat([skips[level], getattr(self, f"deconv{level}")(features), up], 1)
            shown = getattr(self, f"inter_conv{level}")(features) if self._inter else features
            flow = getattr(self, f"predict_flow{level}")(shown)
        return flow

    def _add_coarse(self) -> None:
        """The encoder's levels 4, 5 and 6, which C, S and SD share."""
        for level, (inputs, outputs) in {4: (256, 512), 5: (512, 512), 6: (512, 1024)}.items():
            self.add_module(f"conv{level}", convolution(inputs, outputs, 3, 2))
            self.add_module(f"conv{level}_1", convolution(outputs, outputs))

    def _flow2(self, level2: Tensor, level3: Tensor) -> Tensor:
        level4 = self.conv4_1(self.conv4(level3))
        level5 = self.conv5_1(self.conv5(level4))
        return self._refine(self.conv6_1(self.conv6(level5)), {5: level5, 4: level4, 3: level3, 2: level2})


_LEVELS = {5: (512, 512), 4: (512, 256), 3: (256, 128), 2: (128, 64)}


class FlowNetC(_Pyramid):
    """Two frames ``(B, 6, H, W)`` to a flow ``(B, 2, H/4, W/4)`` / 20; the frames' features are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(3, 64, 7, 2)
        self.conv2 = convolution(64, 128, 5, 2)
        self.conv3 = convolution(128, 256, 5, 2)
        self.conv_redir = convolution(256, 32, 1)
        self.conv3_1 = convolution(473, 256)
        self._add_coarse()
        self._add_decoder(1024, _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        first2 = self.conv2(self.conv1(x[:, :3]))
        first, second = self.conv3(first2), self.conv3(self.conv2(self.conv1(x[:, 3:])))
        matches = F.leaky_relu(correlation(first, second), _SLOPE, inplace=True)
        return self._flow2(first2, self.conv3_1(torch.cat([self.conv_redir(first), matches.to(first.dtype)], 1)))


class FlowNetS(_Pyramid):
    """Frames, warped frame, flow and error ``(B, 12, H, W)`` to a flow ``(B, 2, H/4, W/4)`` / 20."""

    def __init__(self, inputs: int = 12) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, 64, 7, 2)
        self.conv2 = convolution(64, 128, 5, 2)
        self.conv3 = convolution(128, 256, 5, 2)
        self.conv3_1 = convolution(256, 256)
        self._add_coarse()
        self._add_decoder(1024, _LEVELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        level2 = self.conv2(self.conv1(x))
        return self._flow2(level2, self.conv3_1(self.conv3(level2)))


class FlowNetSD(_Pyramid):
    """Two frames ``(B, 6, H, W)`` to a flow ``(B, 2, H/4, W/4)`` x 20; made for small displacements."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = convolution(6, 64)
        self.conv1 = convolution(64, 64, 3, 2)
        self.conv1_1 = convolution(64, 128)
        self.conv2 = convolution(128, 128, 3, 2)
        self.conv2_1 = convolution(128, 128)
        self.conv3 = convolution(128, 256, 3, 2)
        self.conv3_1 = convolution(256, 256)
        self._add_coarse()
        self._add_decoder(1024, _LEVELS, {5: 512, 4: 256, 3: 128, 2: 64})

    def forward(self, x: Tensor) -> Tensor:
        level2 = self.conv2_1(self.conv2(self.conv1_1(self.conv1(self.conv0(x)))))
        return self._flow2(level2, self.conv3_1(self.conv3(level2)))


class FlowNetFusion(_Pyramid):
    """First frame, both flows, their lengths and errors ``(B, 11, H, W)`` to the flow ``(B, 2, H, W)`` in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = convolution(11, 64)
        self.conv1 = convolution(64, 64, 3, 2)
        self.conv1_1 = convolution(64, 128)
        self.conv2 = convolution(128, 128, 3, 2)
        self.conv2_1 = convolution(128, 128)
        self._add_decoder(128, {1: (128, 32), 0: (64, 16)}, {1: 32, 0: 16})

    def forward(self, x: Tensor) -> Tensor:
        level0 = self.conv0(x)
        level1 = self.conv1_1(self.conv1(level0))
        return self._refine(self.conv2_1(self.conv2(level1)), {1: level1, 0: level0})


# ---- the whole


class FlowNet2(nn.Module):
    """The five networks, stacked. 162,518,834 parameters; only for use: train it elsewhere and load the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flownetc = FlowNetC()
        self.flownets_1 = FlowNetS()
        self.flownets_2 = FlowNetS()
        self.flownets_d = FlowNetSD()
        self.flownetfusion = FlowNetFusion()

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow float32 ``(B, 2, H, W)`` on the pixels of `first`, leading into `second`; without gradient.

        first, second: float ``(B, 3, H, W)`` in 0..255. The network was trained on RGB (the published SDC network on
        its flows of BGR frames). Sides that are no multiples of 64 are mirrored up to them, and the flow cut.

        Raises UserError if the images are below 33 pixels a side or their sizes differ.
        """
        if first.shape != second.shape:
            raise UserError(f"FlowNet2: frames of one size are needed, not {first.shape} and {second.shape}")
        height, width = first.shape[-2:]
        pair = torch.stack([padded(first), padded(second)], 2)  # (B, 3, 2, H, W)
        pair = (pair - pair.mean((2, 3, 4), keepdim=True)) / RGB_MAX
        first, second = pair.unbind(2)
        x = torch.cat([first, second], 1)

        flow = _enlarged(self.flownetc(x) * _SCALE, "bilinear")
        flow = _enlarged(self.flownets_1(self._stacked(x, flow)) * _SCALE, "bilinear")
        flow = _enlarged(self.flownets_2(self._stacked(x, flow)) * _SCALE, "nearest")
        # The network for small displacements was trained on flows times 20, not divided by it.
        small = _enlarged(self.flownets_d(x) / _SCALE, "nearest")
        errors = [channel_norm(first - resample2d(second, f)) for f in (small, flow)]
        lengths = [channel_norm(f) for f in (small, flow)]
        flow = self.flownetfusion(torch.cat([first, small, flow, *lengths, *errors], 1))
        return at_least_float32(flow)[..., :height, :width]

    @staticmethod
    def _stacked(x: Tensor, flow: Tensor) -> Tensor:
        """The next network's input: frames, the second one warped, the flow / 20 and what the warp leaves over."""
        warped = resample2d(x[:, 3:], flow)
        return torch.cat([x, warped, flow / _SCALE, channel_norm(x[:, :3] - warped)], 1)


def _enlarged(flow: Tensor, mode: str) -> Tensor:
    corners = False if mode == "bilinear" else None
    return F.interpolate(at_least_float32(flow), scale_factor=4, mode=mode, align_corners=corners)


def load_flownet2(path: Path | str) -> FlowNet2:
    """FlowNet2 with the weights of a file, frozen, in evaluation mode.

    path: the published checkpoint or a ``.safetensors`` file with its keys, with or without the prefix ``flownet2.``

    Raises:
        UserError: the file cannot be read or holds another network.
    """
    state = {key.removeprefix("flownet2."): value for key, value in read_state(path).items()}
    with torch.device("meta"):  # half a gigabyte of random numbers that nobody needs
        network = FlowNet2()
    network = network.to_empty(device="cpu")
    load_strictly(network, state, str(path))
    return network.eval().requires_grad_(False)
