"""What the training loop expects of a method."""

from __future__ import annotations

import torch
from torch import nn


class Method(nn.Module):
    """Networks, optimisers and one training step.

    A method's file reads like its paper's algorithm: `training_step` holds the losses, the backward passes
    and the optimiser steps in plain sight. The loop around it does the rest: batches, learning-rate factors,
    evaluation, checkpoints, logs.
    """

    #: every optimiser of the method; their states are part of a checkpoint
    optimizers: list[torch.optim.Optimizer]
    #: whether `training_step` can be shared by several processes (`semivid.training.distributed`); not inherited
    in_parallel = False

    def rate(self, step: int) -> float:
        """What all base learning rates are multiplied by in `step` (from 0)."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        """One update of the weights from {stream name: batch}; returns detached losses to be logged."""
        raise NotImplementedError

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Class logits float (B, C, H, W) of images in [0, 1] (B, 3, H, W)."""
        raise NotImplementedError
