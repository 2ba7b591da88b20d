"""The mean teacher: a second network whose parameters follow the student's (Three Ways section 8)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(step: int, limit: float = 0.99) -> float:
    """What the teacher keeps of itself after update `step`, counted from 1: min(1 - 1/(step + 1), limit)."""
    return min(1 - 1 / (step + 1), limit)


class Teacher(nn.Module):
    """A copy of the student that is averaged, not trained.

    Its *parameters* are the moving average of the student's; its *buffers* are its own. In training mode, which the
    loop sets for a method with all its parts, its batch normalisation uses the statistics of its own batches and its
    dropout is active, as in the paper's system. Being a part of the method, it is part of every checkpoint.
    """

    def __init__(self, student: nn.Module) -> None:
        """`student` as it is now: initialised, and transferred to if it is to be."""
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """What the network returns, without a graph."""
        return self.network(*args, **kwargs)

    def update(self, student: nn.Module, step: int, limit: float = 0.99) -> None:
        """Average the parameters after the student's update number `step`, counted from 1.

        `student` may have parameters that the teacher lacks.
        """
        current = dict(student.named_parameters())
        names, averages = zip(*self.network.named_parameters(), strict=True)
        # One fused operation over all tensors on a GPU.
        get_ema_multi_avg_fn(ema_decay(step, limit))(list(averages), [current[n] for n in names], None)
