"""The self-supervised depth loss and its gradients, against the formula written out scale by scale."""

from __future__ import annotations

import torch

from benchmarks import plain
from benchmarks.cases import settings
from benchmarks.harness import PLAIN, Row, alternate, lower_is_better, require
from semivid.depth.losses import monodepth_loss

LIMIT = 1e-5
ROUNDS = {"street": 3, "camvid": 3, "cityscapes": 1}
OFFSETS = (-1, 1)


class Inputs:
    """What the loss takes, in the shapes of training; disparities and poses are leaves that get gradients."""

    def __init__(self, batch: int, width: int, height: int, dtype=torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def smooth(channels: int, height: int, width: int) -> torch.Tensor:
            """Random blobs in [0, 1): neighbouring pixels are alike, as in pictures."""
            coarse = torch.rand(batch, channels, -(-height // 8), -(-width // 8), generator=generator, dtype=dtype)
            return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").to(device)

        self.target = smooth(3, height, width)
        self.sources = {o: smooth(3, height, width) for o in OFFSETS}
        self.disparities = {s: smooth(1, height >> s, width >> s).mul(0.5).requires_grad_() for s in range(4)}
        motion = 0.02 * torch.randn(2, batch, 3, 4, generator=generator, dtype=dtype)
        eye = torch.eye(4, dtype=dtype).repeat(batch, 1, 1)
        self.transforms = {
            o: (eye + torch.nn.functional.pad(m, (0, 0, 0, 1))).to(device).requires_grad_()
            for o, m in zip(OFFSETS, motion, strict=True)
        }
        k = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], dtype=dtype)
        self.k = k.to(device)

    def leaves(self) -> list[torch.Tensor]:
        return [*self.disparities.values(), *self.transforms.values()]

    def plain(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(1)
        return plain.monodepth_loss(self.disparities, self.target, self.sources, self.transforms, self.k, noise)

    def semivid(self) -> torch.Tensor:
        noise = torch.Generator().manual_seed(1)
        return monodepth_loss(self.disparities, self.target, self.sources, self.transforms, self.k, generator=noise)[
            "loss"
        ]

    def difference(self) -> float:
        """Largest relative difference of the values and of each gradient (norm of the difference by norm)."""
        values, gradients = zip(
            *((loss.detach(), torch.autograd.grad(loss, self.leaves())) for loss in (self.plain(), self.semivid())),
            strict=True,
        )
        apart = [abs(values[0] - values[1]) / abs(values[0])]
        apart += [(a - b).norm() / a.norm() for a, b in zip(*gradients, strict=True)]
        return float(max(apart))


def run(case: str, threads: int) -> Row:
    """Seconds of the loss and its gradients at the size of depth pretraining."""
    options = settings(case).depth_pretrain
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # In double precision: in single, rounding alone decides in some pixels which neighbour fits best.
    exact = Inputs(2, 64, 32, torch.float64, device)
    agreement = require(exact.difference(), LIMIT, "depth losses")
    inputs = Inputs(options.batch_size, *options.crop, device=device)
    seconds = alternate(
        {
            PLAIN: lambda: torch.autograd.grad(inputs.plain(), inputs.leaves()),
            "semivid": lambda: torch.autograd.grad(inputs.semivid(), inputs.leaves()),
        },
        rounds=ROUNDS[case],
        threads=threads,
    )
    name = f"{case}, {options.batch_size} of {options.crop[0]}x{options.crop[1]}, forward and backward"
    return lower_is_better("Depth loss", name, "s", *seconds.values(), agreement)
