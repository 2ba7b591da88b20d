"""The Flow Consistency Loss against its formula written out: python -m benchmarks.flow_consistency"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import PLAIN, Row, alternate, facts, lower_is_better, number, require
from semivid.methods.flow_consistency_loss import flow_consistency_loss

LIMIT = 1e-5
ROUNDS = 5


def plain(logits: Tensor, flow: Tensor, max_shift: int = 1, threshold: float = 0.2) -> Tensor:
    """The sum term by term as the specification's pseudo code says (flow_consistency.md, section 4; final version).

    A loop over all shifts, ordinary tensor operations on whole batches and all classes, automatic gradient; no loop
    over images or classes, which would only be slower.
    """
    p = torch.softmax(logits, 1)
    q = p.detach()
    d = torch.zeros_like(p)
    height, width = logits.shape[-2:]
    padded_q, padded_flow = (F.pad(x, (max_shift,) * 4) for x in (q, flow))
    for a in range(-max_shift, max_shift + 1):
        for b in range(-max_shift, max_shift + 1):
            if (a, b) == (0, 0):
                continue
            window = (..., slice(max_shift - a, max_shift - a + height), slice(max_shift - b, max_shift - b + width))
            other = padded_flow[window]
            weight = (flow - other).norm(dim=1, keepdim=True)
            weight = weight.masked_fill(other.norm(dim=1, keepdim=True) == 0, 0)
            weight = weight.masked_fill(weight <= threshold, 0)
            d = d + weight * padded_q[window] / (8 * max(abs(a), abs(b)))
    return (d * torch.log(p + 1e-10)).sum()


def street_flow(batch: int, height: int, width: int) -> Tensor:
    """Smooth motion with parts that move on their own, (B, 2, H, W): 8 % of the neighbours differ by over 0.2 px.

    CamVid's pairs at 512x1024 have 7 to 8 % of them (specification, section 4).
    """
    generator, size = torch.Generator().manual_seed(0), max(height // 8, 1)

    def blobs(mode: str) -> Tensor:
        coarse = torch.randn(batch, 2, -(-height // size), -(-width // size), generator=generator)
        return F.interpolate(coarse, size=(height, width), mode=mode)

    return 4.5 * blobs("bilinear") + 2 * blobs("nearest")


def random_flow(batch: int, height: int, width: int) -> Tensor:
    """Uniform in +-3 px, (B, 2, H, W): nearly every pair of neighbours differs."""
    return 6 * torch.rand(batch, 2, height, width, generator=torch.Generator().manual_seed(1)) - 3


def share_of_pairs(flow: Tensor, threshold: float = 0.2) -> float:
    """The part of the horizontal and vertical neighbours whose flow differs by more than the threshold."""
    moving = [torch.diff(flow, dim=axis).norm(dim=1).flatten() > threshold for axis in (2, 3)]
    return float(torch.cat(moving).float().mean())


def value_and_gradient(loss, logits: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Of either version."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, flow)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def difference(logits: Tensor, flow: Tensor) -> float:
    """Largest relative difference of the values and of the gradients (norm of the difference by norm)."""
    (value, gradient), (other, closed) = (value_and_gradient(f, logits, flow) for f in (plain, flow_consistency_loss))
    return float(max(abs(value - other) / abs(value), (gradient - closed).norm() / gradient.norm()))


def run(threads: int, size: tuple[int, int, int, int] = (2, 19, 512, 1024), rounds: int = ROUNDS) -> list[Row]:
    """Seconds of the loss and its gradient for logits of `size` (B, C, H, W), for a street's flow and a random one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, classes, height, width = size
    logits = 2 * torch.randn(*size, generator=torch.Generator().manual_seed(2)).to(device)
    rows = []
    for name, make in (("street", street_flow), ("random", random_flow)):
        flow = make(batch, height, width).to(device)
        agreement = require(difference(logits, flow), LIMIT, "flow consistency losses")
        seconds = alternate(
            {
                PLAIN: lambda flow=flow: value_and_gradient(plain, logits, flow),
                "semivid": lambda flow=flow: value_and_gradient(flow_consistency_loss, logits, flow),
            },
            rounds,
            threads,
        )
        case = f"{name} flow, {share_of_pairs(flow):.0%} of neighbours differ, {batch}x{classes}x{height}x{width}"
        rows.append(lower_is_better("Flow consistency loss", case, "s", *seconds.values(), agreement))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow_consistency", description=__doc__.partition(":")[0]
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    rows = run(threads)
    print(", ".join(f"{name}: {value}" for name, value in facts().items()))
    for row in rows:
        print(
            f"{row.case}: plain {number(row.plain)} s, semivid {number(row.semivid)} s, ratio {number(row.ratio)} "
            f"({number(row.low)}-{number(row.high)}), difference {row.agreement}"
        )


if __name__ == "__main__":
    main()
