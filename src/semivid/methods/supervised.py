"""Supervised training on the labelled frames alone: the baseline of every table (`scratch` in Three Ways)."""

from __future__ import annotations

import torch

from semivid.methods.base import Method
from semivid.models.encoder_decoder import SegmentationNet
from semivid.pipeline.params import Optimisation, Train
from semivid.training.distributed import sum_gradients, summed
from semivid.training.losses import cross_entropy
from semivid.training.optim import build_optimizer, clip_gradients, rate_factor
from semivid.training.runtime import Runtime, as_float


class Supervised(Method):
    """Cross entropy on labelled frames (Three Ways section 8 without the unlabelled step).

    Streams: ``labelled`` {image uint8 (B, 3, H, W), label uint8 (B, H, W), 255 = void}.
    """

    in_parallel = True

    def __init__(self, student: SegmentationNet, options: Optimisation, train: Train, runtime: Runtime) -> None:
        super().__init__()
        self.student, self.options, self.iterations, self.runtime = student, options, train.iterations, runtime
        groups = student.parameter_groups(options.encoder_lr, options.lr)
        self.optimizer = build_optimizer(options.optimizer, groups, options.weight_decay)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        return rate_factor(self.options.schedule, step, self.iterations, self.options.milestones)

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        labelled = batch["labelled"]
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass, or old gradients count at its peak
        with self.runtime.autocast():
            logits = self.student(as_float(labelled["image"]))
        loss = cross_entropy(logits.float(), labelled["label"])

        loss.backward()
        sum_gradients(self)
        clip_gradients(self, self.options.clip)
        self.optimizer.step()
        return {"cross_entropy": summed(loss.detach())}

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        with self.runtime.autocast():
            return self.student(image).float()


def build(student: SegmentationNet, options: Optimisation, train: Train, runtime: Runtime) -> Supervised:
    """The method from its parameters; `train` stages look for this function by the method's name."""
    return Supervised(student, options, train, runtime)
