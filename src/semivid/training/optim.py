"""Optimisers, and learning rates as a function of the step (no scheduler state to save)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from semivid.errors import UserError


def build_optimizer(kind: str, groups: list[dict], weight_decay: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """SGD (with `momentum`), Adam or AdamW over `groups` [{"params": ..., "lr": base rate}, ...].

    Each group keeps its base rate as ``base_lr``; `set_rates` scales it.
    """
    for group in groups:
        group["params"] = list(group["params"])
        group["base_lr"] = group["lr"]
    # Fused: one kernel for all tensors instead of several per tensor.
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](groups, weight_decay=weight_decay, fused=True)


def rate_factor(
    schedule: str,
    step: int,
    iterations: int,
    milestones: Iterable[int] = (),
    *,
    power: float = 0.9,
    restart: int = 0,
    restart_power: float = 1.5,
    rescale: float = 1.0,
) -> float:
    """What the base learning rate is multiplied by in `step` (counted from 0).

    poly: max(1e-6, (1 - step/iterations)^power); step: 0.1 for each milestone reached; constant: 1.
    scl_poly: (1 - step/iterations)^power before the step `restart`, and from it on rescale (1 - (step - restart) /
    (iterations - restart))^restart_power: a warm restart where the relaxation of labels ends (nvidia_segmentation.md,
    section 7, where step and iterations are epochs, power is ``poly_exp`` and restart_power ``repoly``).
    Raises UserError for scl_poly with a restart outside 1 .. iterations - 1.
    """
    if schedule == "poly":
        return max(1e-6, (1 - step / iterations) ** power)
    if schedule == "scl_poly":
        if not 0 < restart < iterations:
            raise UserError(
                f"schedule scl_poly: restart {restart} is not in 1..{iterations - 1}, within the training; correct it, "
                "or take poly"
            )
        if step < restart:
            return (1 - step / iterations) ** power
        return rescale * (1 - (step - restart) / (iterations - restart)) ** restart_power
    if schedule == "step":
        return 0.1 ** sum(step >= m for m in milestones)
    return 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(module: nn.Module, limit: float) -> None:
    """Scale all gradients down so that their common L2 norm is at most `limit`; 0 leaves them alone."""
    if limit:
        nn.utils.clip_grad_norm_(module.parameters(), limit)
