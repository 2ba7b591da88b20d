"""What a training cost: seconds on the clock and of the processor, kept across interruptions."""

from __future__ import annotations

import resource
import time

import torch

from semivid.training.distributed import processes, summed


class Cost:
    """Counts from its creation; `load` adds what an interrupted run had spent up to its last saved state."""

    def __init__(self) -> None:
        self._spent = (0.0, 0.0)
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), sum(u.ru_utime + u.ru_stime for u in usages)

    def load(self, spent: list[float]) -> None:
        """Go on from [seconds, cpu_seconds] of an earlier part of the same run."""
        self._spent = (spent[0], spent[1])

    def spent(self) -> list[float]:
        """[seconds, cpu_seconds] so far; processor seconds of all threads and of worker processes that have ended."""
        return [round(s + now - start, 3) for s, now, start in zip(self._spent, self._now(), self._start, strict=True)]

    def report(self, device: torch.device) -> dict[str, str | float]:
        """{device: ``cpu`` or the GPU's name, seconds, cpu_seconds, processes}; processor seconds of all `processes`
        that train together."""
        seconds, cpu_seconds = self.spent()
        cpu_seconds = round(float(summed(torch.tensor(cpu_seconds, dtype=torch.float64, device=device))), 3)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": name, "seconds": seconds, "cpu_seconds": cpu_seconds, "processes": processes()}
