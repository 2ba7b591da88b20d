"""SDCNet2D and SDCNet2DRecon: motion towards a frame, from frames and their optical flow.

Zhu et al., "Improving Semantic Segmentation via Video Propagation and Label Relaxation", CVPR 2019 (arXiv 1812.01593)
and Reda et al., "SDC-Net", ECCV 2018; specification sdc_propagation, sections 1, 2 and 12. The keys are those of the
published checkpoints. As in the released networks there are no spatially displaced kernels: the motion field is all
that is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import State, load_strictly, read_state
from semivid.models.precision import at_least_float32
from semivid.propagation.flownet2 import RGB_MAX, STRIDE, convolution, deconvolution, padded, resample2d

FLOW_MEAN, FLOW_STD = (-0.94427323, -1.23077035), (13.77204132, 7.47463894)  # pixels, of the published training
_RGB_MEAN = (106.7747911, 96.13649598, 76.61428884)
_WIDEST = 512

#: (newer, older) frames float (B, 3, H, W), 0..255 BGR -> flow (B, 2, H, W) on the newer one's pixels into the older
FlowSource = Callable[[Tensor, Tensor], Tensor]


class _SDCNet(nn.Module):
    """The network and its packing of inputs; subclasses say which frame is warped."""

    #: place among the input frames of the frame that the motion points into
    source: int
    #: how many frames of a training sequence are no inputs but only the target
    unseen: int

    def __init__(
        self,
        frames: int,
        width: float = 1.0,
        flow_mean: Sequence[float] = FLOW_MEAN,
        flow_std: Sequence[float] = FLOW_STD,
    ) -> None:
        """
        Args:
            frames: how many frames are inputs.
            width: what all published numbers of channels are multiplied by, a multiple of 1/8.
            flow_mean, flow_std: statistics of the flows (x, y) in pixels. The motion is learnt in units of
                3 flow_std, so give those of your own frames if they are much smaller; they are part of a checkpoint.

        Raises:
            UserError: too few frames, another width, or a deviation that is not positive.
        """
        super().__init__()
        if frames < 2:
            raise UserError(f"{type(self).__name__}: {frames} input frames are too few; give at least 2")
        if not width > 0 or width * 8 % 1:
            raise UserError(f"SDC network: width is {width}; give a positive multiple of 0.125 (1.0 = as published)")
        if not all(s > 0 for s in flow_std):
            raise UserError(f"SDC network: flow_std is {list(flow_std)}; give positive deviations in pixels")
        self.frames = frames
        for name, values in (("flow_mean", flow_mean), ("flow_std", flow_std), ("rgb_mean", _RGB_MEAN)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        inputs = 5 * frames - 2
        c32, c64, c128, c256, c512 = (int(width * c) for c in (32, 64, 128, 256, 512))
        self.conv1 = convolution(inputs, c32, 7, 2)
        self.conv2 = convolution(c32, c64, 5, 2)
        self.conv3, self.conv3_1 = convolution(c64, c128, 5, 2), convolution(c128, c128)
        self.conv4, self.conv4_1 = convolution(c128, c256, 3, 2), convolution(c256, c256)
        self.conv5, self.conv5_1 = convolution(c256, c256, 3, 2), convolution(c256, c256)
        self.conv6, self.conv6_1 = convolution(c256, c512, 3, 2), convolution(c512, c512)
        self.deconv5 = deconvolution(c512, c256)
        self.deconv4 = deconvolution(2 * c256, c128)
        self.deconv3 = deconvolution(c256 + c128, c64)
        self.deconv2 = deconvolution(c128 + c64, c32)
        self.deconv1 = deconvolution(c64 + c32, c32 // 2)
        self.deconv0 = deconvolution(c32 + c32 // 2, c32 // 4)
        self.final_flow = nn.Conv2d(inputs + c32 // 4, 2, 3, 1, 1)

    def forward(self, images: Sequence[Tensor], flows: Sequence[Tensor]) -> Tensor:
        """The motion field float32 ``(B, 2, H, W)`` in pixels, on the pixels of the target, into the source frame.

        Args:
            images: as many as `frames`, oldest first, float ``(B, 3, H, W)`` in 0..255; BGR for published weights.
            flows: one for each pair of neighbours, on the newer frame's pixels into the older one, ``(B, 2, H, W)``.

        Sides that are no multiples of 64 are padded up to them (images mirrored, flows repeated), the motion is cut.

        Raises:
            UserError: another number of images or flows, other sizes, or below 33 pixels a side.
        """
        if len(images) != self.frames or len(flows) != self.frames - 1:
            raise UserError(
                f"{type(self).__name__} of {self.frames} frames needs {self.frames - 1} flows between them, "
                f"not {len(images)} frames and {len(flows)} flows"
            )
        height, width = images[0].shape[-2:]
        if any(x.shape[-2:] != (height, width) for x in (*images, *flows)):
            raise UserError(f"{type(self).__name__}: frames and flows must have one size, {width}x{height}")
        x = self.packed([padded(i) for i in images], [_repeated(f) for f in flows])
        out1 = self.conv1(x)
        out2 = self.conv2(out1)
        out3 = self.conv3_1(self.conv3(out2))
        out4 = self.conv4_1(self.conv4(out3))
        out5 = self.conv5_1(self.conv5(out4))
        up = self.deconv5(self.conv6_1(self.conv6(out5)))
        up = self.deconv4(torch.cat([out5, up], 1))
        up = self.deconv3(torch.cat([out4, up], 1))
        up = self.deconv2(torch.cat([out3, up], 1))
        up = self.deconv1(torch.cat([out2, up], 1))
        up = self.deconv0(torch.cat([out1, up], 1))
        motion = at_least_float32(self.final_flow(torch.cat([x, up.to(x.dtype)], 1)))
        return (motion * (3 * self.flow_std) + self.flow_mean)[..., :height, :width]

    def packed(self, images: Sequence[Tensor], flows: Sequence[Tensor]) -> Tensor:
        """The network's input ``(B, 5 S - 2, H, W)``: flows before images, of each all frames' first channel first."""
        flow = (torch.stack(list(flows), 2) - self.flow_mean[:, :, None]) / (3 * self.flow_std[:, :, None])
        image = torch.stack(list(images), 2)
        image = (image - image.mean((2, 3, 4), keepdim=True)) / RGB_MAX  # one mean for all frames together
        return torch.cat([flow.flatten(1, 2), image.flatten(1, 2)], 1)

    def split(self, sequence: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """A training sequence of ``frames + unseen`` frames as (input frames, the frame to be warped, the target)."""
        images = list(sequence[: self.frames])
        return images, images[self.source], sequence[-1]

    def initialise(self, kind: str) -> None:
        """Draw the weights of a network that is to be trained.

        kind: ``published``: Xavier-uniform convolutions with biases from [0, 1), transposed convolutions as torch has
        them. Its first motion is tens of pixels long. ``flow``: the same, but the last layer passes the newest flow on,
        so that training begins with the warp along that flow, or, if flows are zero, with a copy of the source frame.

        Raises:
            UserError: another kind.
        """
        if kind not in ("published", "flow"):
            raise UserError(f"SDC network: its weights begin as published or flow, not {kind!r}")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.uniform_(layer.bias)
        if kind == "flow":
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    nn.init.zeros_(layer.bias)
            nn.init.zeros_(self.final_flow.weight)
            newest, middle = self.frames - 2, 1
            with torch.no_grad():
                for axis in range(2):
                    self.final_flow.weight[axis, axis * (self.frames - 1) + newest, middle, middle] = 1


class SDCNet2D(_SDCNet):
    """Video prediction: from past frames the motion towards the next, unseen one, into the newest."""

    source, unseen = -1, 1

    def __init__(self, frames: int = 2, *args, **kwargs) -> None:
        super().__init__(frames, *args, **kwargs)


class SDCNet2DRecon(_SDCNet):
    """Video reconstruction: the newest input is the target itself, the motion leads into the one before it.

    frames counts all inputs, the target too (the reference's ``sequence_length`` and one more).
    """

    source, unseen = -2, 0

    def __init__(self, frames: int = 3, *args, **kwargs) -> None:
        super().__init__(frames, *args, **kwargs)


NETWORKS: Mapping[str, type[_SDCNet]] = {"SDCNet2D": SDCNet2D, "SDCNet2DRecon": SDCNet2DRecon}


def _repeated(flow: Tensor) -> Tensor:
    height, width = flow.shape[-2:]
    right, bottom = -width % STRIDE, -height % STRIDE
    return F.pad(flow, (0, right, 0, bottom), mode="replicate") if right or bottom else flow


# ---- flows between the frames


def interframe_flows(images: Sequence[Tensor], flow: FlowSource) -> list[Tensor]:
    """The flows that the network wants: for each pair of neighbours from the newer frame into the older one.

    images: oldest first, float ``(B, 3, H, W)`` in 0..255, BGR. flow: for instance a `FlowNet2`, which thereby gets
    BGR frames although it was trained on RGB: so the published SDC weights were trained.
    """
    with torch.no_grad():
        return [flow(newer, older) for older, newer in pairwise(images)]


def zero_flow(newer: Tensor, older: Tensor) -> Tensor:
    """No motion at all, ``(B, 2, H, W)``: the SDC network then works from the frames alone."""
    return newer.new_zeros(len(newer), 2, *newer.shape[-2:])


def estimated_flow(estimator: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> FlowSource:
    """A flow source of one of `semivid.flow.estimators`; it sees RGB, as it should, on the CPU, pair by pair."""

    def flow(newer: Tensor, older: Tensor) -> Tensor:
        first, second = (
            x.detach().flip(1).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            for x in (newer, older)
        )
        flows = [estimator(a, b) for a, b in zip(first, second, strict=True)]
        return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(newer)

    return flow


def predict_frame(network: _SDCNet, images: Sequence[Tensor], flow: FlowSource) -> tuple[Tensor, Tensor]:
    """(The target frame as the network sees it ``(B, 3, H, W)``, the motion ``(B, 2, H, W)``) from its input frames."""
    motion = network(images, interframe_flows(images, flow))
    return resample2d(images[network.source], motion), motion


# ---- checkpoints


def build_sdcnet(state: State, where: str, network: str | None = None) -> _SDCNet:
    """The network that a state dict belongs to, with its weights, in evaluation mode.

    Args:
        state: tensors by name; ``flownet2.*``, which some files hold too, are left out.
        where: the file's name, for the error.
        network: ``SDCNet2D`` or ``SDCNet2DRecon``; None: the one of as many input channels as published (8 or 13).

    Raises:
        UserError: not an SDC network, an unpublished number of input channels without `network`, or tensors that do
            not fit.
    """
    state = {key: value for key, value in state.items() if not key.startswith("flownet2.")}
    first, widest = state.get("conv1.0.weight"), state.get("conv6_1.0.weight")
    if first is None or widest is None or first.ndim != 4 or widest.ndim != 4:
        raise UserError(f"{where}: holds no SDC network (no conv1.0.weight, conv6_1.0.weight); give another file")
    inputs = first.shape[1]
    name = network or {8: "SDCNet2D", 13: "SDCNet2DRecon"}.get(inputs)
    if name is None or (inputs + 2) % 5:
        raise UserError(
            f"{where}: its first layer has {inputs} input channels; published SDC networks have 8 (prediction) or 13 "
            "(reconstruction): give another file, or say which network it is"
        )
    if name not in NETWORKS:
        raise UserError(f"an SDC network is called {' or '.join(NETWORKS)}, not {name!r}")
    built = NETWORKS[name]((inputs + 2) // 5, widest.shape[0] / _WIDEST)
    load_strictly(built, state, where)
    return built.eval()


def load_sdcnet(path: Path | str, network: str | None = None) -> _SDCNet:
    """`build_sdcnet` of a published ``.pth.tar`` checkpoint or a ``.safetensors`` file."""
    return build_sdcnet(read_state(path), str(path), network)
