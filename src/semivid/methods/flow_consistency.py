"""Flow consistency (seed 000): cross entropy on labelled frames, and a loss on all others that reads their flow.

Neighbouring pixels that move differently are pushed towards different classes. The baseline takes the same steps
without that loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semivid.methods.base import Method
from semivid.methods.flow_consistency_loss import flow_consistency_loss
from semivid.pipeline.params import FlowBaseline, FlowConsistency, Train
from semivid.training.optim import build_optimizer, clip_gradients, rate_factor
from semivid.training.reference_losses import cross_entropy2d
from semivid.training.runtime import Runtime, as_float


class FlowConsistencyMethod(Method):
    """One network, one optimiser; two losses in one or two updates per iteration (flow_consistency sections 8, 12).

    Streams: ``labelled`` {image uint8 (B, 3, H, W), label uint8 (B, H, W), 255 = void}; ``unlabelled`` {image} and,
    with `loss`, {flow float32 (B, 2, H, W) pixels, valid bool (B, H, W)}.

    structure two_step: an update from the labelled frames, then one from the unlabelled ones, which share momentum and
    both apply weight decay. Without `loss` the second update's gradient is zero, yet it is taken, so that both rows
    of a table have the same steps. one_step: one forward pass over both batches, one update from the sum of losses.
    reduction sum: both losses are sums over pixels, and the learning rate belongs to a sum.
    """

    def __init__(
        self,
        student: nn.Module,
        options: FlowBaseline,
        loss: FlowConsistency | None,
        train: Train,
        runtime: Runtime,
    ) -> None:
        super().__init__()
        self.student, self.options, self.loss = student, options, loss
        self.iterations, self.runtime = train.iterations, runtime
        groups = student.parameter_groups(options.encoder_lr, options.lr)
        self.optimizer = build_optimizer(options.optimizer, groups, options.weight_decay, options.momentum)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        return rate_factor(self.options.schedule, step, self.iterations, self.options.milestones)

    def training_step(self, batch: dict[str, dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        labelled, unlabelled = batch["labelled"], batch.get("unlabelled")
        if unlabelled is None or step < self.options.start:
            supervised = self._cross_entropy(self._logits(labelled["image"]), labelled["label"])
            self._update(supervised)
            return {"cross_entropy": supervised.detach()}

        if self.options.structure == "one_step":
            logits = self._logits(torch.cat([labelled["image"], unlabelled["image"]]))
            count = len(labelled["image"])
            supervised = self._cross_entropy(logits[:count], labelled["label"])
            consistency = self._consistency(logits[count:], unlabelled)
            self._update(supervised + consistency)
        else:
            supervised = self._cross_entropy(self._logits(labelled["image"]), labelled["label"])
            self._update(supervised)
            if self.loss is None:
                consistency = self._update_without_loss(unlabelled["image"])
            else:
                consistency = self._consistency(self._logits(unlabelled["image"]), unlabelled)
                self._update(consistency)
        return {"cross_entropy": supervised.detach(), "flow_consistency": consistency.detach()}

    def predict(self, image: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.student(image).float()

    def _logits(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.student(as_float(images)).float()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy2d(logits, labels, reduction=self.options.reduction)

    def _consistency(self, logits: Tensor, unlabelled: dict[str, Tensor]) -> Tensor:
        """Weighted flow consistency loss of a batch; for the baseline 0, with gradient 0 for every weight."""
        if self.loss is None:
            return (logits * 0).sum()
        flow, valid = unlabelled["flow"], unlabelled["valid"]
        masked = self.loss.seam == "masked"
        if not masked:  # the reference: a pixel without flow counts as centre, not as neighbour
            flow = flow * valid[:, None]
        return self.loss.weight * flow_consistency_loss(
            logits,
            flow,
            max_shift=self.loss.max_shift,
            threshold=self.loss.threshold,
            version=self.loss.version,
            valid=valid if masked else None,
            reduction=self.options.reduction,
            clamp=self.loss.clamp,
        )

    def _update_without_loss(self, images: Tensor) -> Tensor:
        """The baseline's second update: batch statistics move, momentum and weight decay act; the gradient is zero."""
        with torch.no_grad():
            self._logits(images)
        for parameter in self.student.parameters():
            if parameter.grad is not None:  # those that the first update reached
                parameter.grad.zero_()
        self.optimizer.step()
        return images.new_zeros((), dtype=torch.float32)

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self, self.options.clip)
        self.optimizer.step()


def build(
    student: nn.Module, options: FlowBaseline, loss: FlowConsistency | None, train: Train, runtime: Runtime
) -> FlowConsistencyMethod:
    """The method; `loss` None for the baseline."""
    return FlowConsistencyMethod(student, options, loss, train, runtime)
