"""Where and how a network computes: device, threads, precision, memory format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Runtime:
    """Device and precision of one run. A GPU is used where there is one; on the CPU results are bit-exact."""

    def __init__(self, threads: int, precision: str = "float32", device: str | None = None) -> None:
        """`precision`: float32, or bfloat16 for autocast."""
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # That would also fill every new tensor with NaN, a debugging aid that costs a tenth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = precision

    def loaders(self, workers: int) -> int:
        """How many of a stage's `workers` prepare batches: all beside a GPU, none on a CPU that computes itself."""
        return workers if self.device.type == "cuda" else 0

    def autocast(self) -> AbstractContextManager:
        """Mixed precision around a forward pass; losses are computed outside, in float32."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module on the device, in channels_last (1.7 times faster for lite0 on a CPU, see benchmarks/)."""
        return module.to(self.device, memory_format=torch.channels_last)

    def move(self, batch: dict) -> dict:
        """A (nested) batch on the device."""
        return {
            k: self.move(v) if isinstance(v, dict) else v.to(self.device, non_blocking=True) for k, v in batch.items()
        }


def as_float(image: torch.Tensor) -> torch.Tensor:
    """uint8 (..., 3, H, W) to float32 in [0, 1]; four-dimensional results are channels_last."""
    image = image.float().div_(255)
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image
