"""SDC networks learn motion from unlabelled video (specification sdc_propagation, section 6; arXiv 1812.01593)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.methods.base import Method
from semivid.propagation.flownet2 import resample2d
from semivid.propagation.sdc_losses import COLOR, GRADIENT, SMOOTHNESS, interpolation_error, psnr, sdc_losses
from semivid.propagation.sdcnet import FlowSource, SDCNet2D, SDCNet2DRecon, interframe_flows
from semivid.training.distributed import part_of_mean, sum_gradients, summed
from semivid.training.optim import build_optimizer, rate_factor
from semivid.training.runtime import Runtime

MOST_DB = 100.0  # counted for a frame that equals the target: a mean with an infinite value says nothing
SCHEDULES = ("step", "poly", "constant")


class Predicted(NamedTuple):
    """What a batch gives: frames float (B, 3, H, W) BGR 0..255, fields (B, 2, H, W) in pixels."""

    frame: Tensor
    target: Tensor
    motion: Tensor
    source: Tensor  # the frame that was warped
    flow: Tensor  # the newest of the network's input flows


class SDCTraining(Method):
    """Warp a frame along the network's motion field so that it equals the target; Adam, one learning rate.

    Streams: ``video``, samples of `semivid.propagation.sequence_samples.SequenceSamples` of ``frames + unseen`` frames.
    """

    in_parallel = True

    def __init__(
        self,
        network: SDCNet2D | SDCNet2DRecon,
        flow: FlowSource,
        runtime: Runtime,
        *,
        iterations: int,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: str = "step",
        milestones: Sequence[int] = (),
        clip: float = 0.0,
        color: float = COLOR,
        gradient: float = GRADIENT,
        smoothness: float = SMOOTHNESS,
    ) -> None:
        """
        Args:
            flow: where the flows between the input frames are from, if the samples do not hold them. A network is
                frozen and no part of the checkpoints.
            weight_decay: 0 as published: there the option is read and ignored.
            schedule: step (a tenth at each of `milestones`, in iterations; published: at 1/2 and 9/10), poly
                ((1 - step / iterations)^0.8) or constant.
            clip: largest absolute value of a gradient; 0 leaves them alone.
            color, gradient, smoothness: weights of the losses.

        Raises:
            UserError: an unknown schedule.
        """
        super().__init__()
        if schedule not in SCHEDULES:
            raise UserError(f"SDC training: schedule is {schedule!r}; give one of {', '.join(SCHEDULES)}")
        self.network, self.runtime, self.iterations = network, runtime, iterations
        self.schedule, self.milestones, self.clip = schedule, tuple(milestones), clip
        self.weights = {"color": color, "gradient": gradient, "smoothness": smoothness}
        if isinstance(flow, nn.Module):
            flow = runtime.place(flow.eval().requires_grad_(False))
        # Kept out of the module tree: FlowNet2 alone would make every checkpoint 650 MB larger.
        self._flow = [flow]
        self.optimizer = build_optimizer("adam", [{"params": network.parameters(), "lr": lr}], weight_decay)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        if self.schedule == "poly":
            return (1 - step / self.iterations) ** 0.8
        return rate_factor(self.schedule, step, self.iterations, self.milestones)

    def outputs(self, batch: dict[str, Tensor]) -> Predicted:
        """What the network makes of a batch of the video stream."""
        frames = batch["frames"].flip(2).float().unbind(1)  # BGR, as the published weights want them
        images, source, target = self.network.split(frames)
        if "flows" in batch:
            flows: Sequence[Tensor] = batch["flows"].unbind(1)
        else:
            flows = interframe_flows(images, self._flow[0])
        with self.runtime.autocast():
            motion = self.network(images, flows)
        return Predicted(resample2d(source, motion), target, motion, source, flows[-1])

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch of the video stream, and what it is made of (`sdc_losses`)."""
        out = self.outputs(batch)
        return sdc_losses(out.frame, out.target, out.motion, **self.weights)

    def training_step(self, batch: dict[str, dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass, or old gradients count at its peak
        losses = {k: part_of_mean(v) for k, v in self.losses(batch["video"]).items()}
        losses["loss"].backward()
        sum_gradients(self)
        if self.clip:
            nn.utils.clip_grad_value_(self.parameters(), self.clip)
        self.optimizer.step()
        return {k: summed(v.detach()) for k, v in losses.items()}

    def predict(self, image: Tensor) -> Tensor:
        """The target frame float (B, 3, H, W) of input frames (B, frames, 3, H, W), both RGB in [0, 1]."""
        bytes_ = (image * 255).round().clamp(0, 255).to(torch.uint8)
        missing = bytes_[:, -1:].expand(-1, self.network.unseen, -1, -1, -1)  # the target, which is not looked at
        return self.outputs({"frames": torch.cat([bytes_, missing], 1)}).frame.flip(1) / 255


@torch.no_grad()
def frame_scores(method: SDCTraining, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the frames of fixed batches of the video stream.

    val_psnr (dB), val_interpolation_error (grey levels) and val_loss of the network; val_psnr_copy: of the source frame
    itself; val_psnr_flow: of the source frame warped along the newest input flow. PSNR counts as 100 dB at most.
    """
    values: dict[str, list[float]] = {}
    for batch in batches:
        out = method.outputs(method.runtime.move(batch))
        loss = sdc_losses(out.frame, out.target, out.motion, **method.weights)["loss"]
        scores = {
            "psnr": psnr(out.frame, out.target).clamp(max=MOST_DB),
            "psnr_copy": psnr(out.source, out.target).clamp(max=MOST_DB),
            "psnr_flow": psnr(resample2d(out.source, out.flow), out.target).clamp(max=MOST_DB),
            "interpolation_error": interpolation_error(out.frame, out.target),
            "loss": loss.expand(len(out.frame)),
        }
        for name, score in scores.items():
            values.setdefault(f"val_{name}", []).extend(score.tolist())
    return {name: sum(v) / len(v) for name, v in values.items()}
