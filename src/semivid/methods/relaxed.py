"""Supervised training with the losses of label relaxation (NVIDIA, CVPR 2019; nvidia_segmentation.md, sections 5, 7).

At label boundaries, where annotators and propagated labels are wrong most often, the network may choose among the
classes of the neighbourhood. Late in the training (`relax_steps`) boundaries are decided after all, and counted twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from semivid.methods.base import Method
from semivid.methods.relaxation_loss import LOSSES
from semivid.pipeline.params import Optimisation, Train
from semivid.training.distributed import sum_gradients, summed
from semivid.training.optim import build_optimizer, clip_gradients, rate_factor
from semivid.training.runtime import Runtime, as_float

Loss = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class Relaxed(Method):
    """One of `semivid.methods.relaxation_loss.LOSSES` on labelled frames.

    Streams: ``labelled`` {image uint8 (B, 3, H, W), label uint8 (B, H, W), 255 = void}, from a plain stream or a
    `semivid.data.class_uniform.ClassUniformStream`.
    """

    in_parallel = True

    def __init__(
        self,
        student: nn.Module,
        loss: Loss,
        options: Optimisation,
        train: Train,
        runtime: Runtime,
        *,
        momentum: float = 0.9,
        power: float = 1.0,
        restart: int = 0,
        restart_power: float = 1.5,
        rescale: float = 1.0,
    ) -> None:
        """loss: (logits float32 (B, C, H, W), labels uint8 (B, H, W), step) to a scalar. momentum: of SGD.

        power, restart, restart_power, rescale: of the schedule, see `rate_factor`. Raises UserError for a restart
        outside the training.
        """
        super().__init__()
        self.student, self.loss, self.options, self.runtime = student, loss, options, runtime
        self.iterations = train.iterations
        self.schedule = {"power": power, "restart": restart, "restart_power": restart_power, "rescale": rescale}
        self.rate(0)  # a schedule that cannot be is told now, before anything is computed
        groups = student.parameter_groups(options.encoder_lr, options.lr)
        self.optimizer = build_optimizer(options.optimizer, groups, options.weight_decay, momentum)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        return rate_factor(self.options.schedule, step, self.iterations, self.options.milestones, **self.schedule)

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        labelled = batch["labelled"]
        self.optimizer.zero_grad(set_to_none=True)
        with self.runtime.autocast():
            logits = self.student(as_float(labelled["image"]))
        loss = self.loss(logits.float(), labelled["label"], step)

        loss.backward()
        sum_gradients(self)
        clip_gradients(self, self.options.clip)
        self.optimizer.step()
        return {"loss": summed(loss.detach())}

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        with self.runtime.autocast():
            return self.student(image).float()


def build(student: nn.Module, options: Optimisation, train: Train, runtime: Runtime) -> Relaxed:
    """The method from its parameters.

    `options` has, beside what every `Optimisation` has, `momentum`, `power`, `restart`, `restart_power` and `rescale`
    (see `Relaxed`), and the block `loss`: its key `kind` is one of `LOSSES`, its others are that loss's options.
    """
    loss = options.loss.model_dump()
    schedule = {key: getattr(options, key) for key in ("momentum", "power", "restart", "restart_power", "rescale")}
    return Relaxed(student, LOSSES[loss.pop("kind")](**loss), options, train, runtime, **schedule)
