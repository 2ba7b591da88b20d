"""Self-supervised depth pretraining, phases 1 and 2 (Three Ways sections 5 and 6; monodepth2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from semivid.depth.losses import feature_distance, monodepth_loss
from semivid.depth.networks import DepthModel
from semivid.depth.samples import OFFSETS, jitter
from semivid.methods.base import Method
from semivid.pipeline.params import DepthTraining
from semivid.training.optim import build_optimizer, rate_factor
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime, as_float


class DepthPretraining(Method):
    """Photometric reprojection loss over four scales; Adam, one learning rate for depth and one for pose.

    Phase 1 trains depth decoder and pose network with the encoder frozen (its batch-norm statistics still move in
    the reference; `encoder_statistics: fixed` keeps them, as phase 2 starts from them again). Phase 2 (`feature_weight`
    given) trains the encoder too, held near its ImageNet features.
    Streams: ``video``, samples of `semivid.depth.samples.VideoSamples`.
    """

    def __init__(
        self, model: DepthModel, options: DepthTraining, runtime: Runtime, feature_weight: float | None = None
    ) -> None:
        super().__init__()
        self.model, self.options, self.runtime, self.feature_weight = model, options, runtime, feature_weight
        if feature_weight is None:
            model.encoder.requires_grad_(False)
        # Kept out of the module tree: the frozen ImageNet twin is no part of a checkpoint and never trains.
        self._imagenet = [copy.deepcopy(model.encoder).eval().requires_grad_(False)] if feature_weight else []
        pose = [p for p in model.pose_net.parameters() if p.requires_grad]
        depth = [p for part in (model.encoder, model.depth) for p in part.parameters() if p.requires_grad]
        groups = [{"params": depth, "lr": options.lr}, {"params": pose, "lr": options.pose_lr}]
        self.optimizer = build_optimizer("adam", groups, weight_decay=0)
        self.optimizers = [self.optimizer]

    def train(self, mode: bool = True) -> DepthPretraining:
        """Training mode; the encoder's batch norm keeps its ImageNet statistics if they are to stay fixed."""
        super().train(mode)
        if self.options.encoder_statistics == "fixed":
            self.model.encoder.eval()
        return self

    def rate(self, step: int) -> float:
        return rate_factor("step", step, self.options.iterations, self.options.milestones)

    def losses(self, batch: dict[str, torch.Tensor], noise_seed: int) -> dict[str, torch.Tensor]:
        """Depth loss of a batch of the video stream, and what it is made of."""
        frames = as_float(batch["frames"])
        colour = dict(zip(OFFSETS, frames.unbind(1), strict=True))
        # Networks see the jittered frames, the photometric loss the true ones (section 3, step 8).
        seen = jitter(frames, batch["jitter"], batch["order"]) if self.training else frames
        current, *neighbours = (f.contiguous(memory_format=torch.channels_last) for f in seen.unbind(1))
        with self.runtime.autocast():
            output = self.model(current, dict(zip(OFFSETS[1:], neighbours, strict=True)))
        result = monodepth_loss(
            output["disp"],
            colour[0],
            {o: colour[o] for o in OFFSETS[1:]},
            output["transforms"],
            batch["k"],
            automask=self.options.auto_mask,
            generator=torch.Generator().manual_seed(noise_seed),
            min_depth=self.options.min_depth,
            max_depth=self.options.max_depth,
        )
        result = {"loss": result["loss"], "photometric": result["loss/0"], "warped": result["warped/0"]}
        if self._imagenet and self.training:
            with torch.no_grad(), self.runtime.autocast():
                reference = self._imagenet[0](current)[-1]
            distance = feature_distance(output["encoder"][-1], reference)
            result["loss"] = result["loss"] + self.feature_weight * distance
            result["feature_distance"] = distance
        return result

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass, or old gradients count at its peak
        losses = self.losses(batch["video"], torch_seed(self.options.seed, "auto-mask noise", step))
        losses["loss"].backward()
        self.optimizer.step()
        return {k: v.detach() for k, v in losses.items()}

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Disparity float (B, 1, H, W) in (0, 1), large = near, of images in [0, 1]."""
        with self.runtime.autocast():
            return self.model(image, scales=(0,))["disp"][0]

    def place_imagenet(self) -> None:
        """Move the frozen twin to the device (it is no submodule, so `Runtime.place` does not see it)."""
        self._imagenet = [self.runtime.place(e) for e in self._imagenet]


def mean_losses(method: DepthPretraining, batches: Sequence[dict]) -> dict[str, float]:
    """Mean validation losses, named val_*, over fixed batches of the video stream."""
    sums: dict[str, float] = {}
    for i, batch in enumerate(batches):
        for name, value in method.losses(method.runtime.move(batch), noise_seed=i).items():
            sums[f"val_{name}"] = sums.get(f"val_{name}", 0.0) + float(value) / len(batches)
    return sums
