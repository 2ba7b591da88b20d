"""What a training cost: seconds on the clock and of the processor, kept across interruptions."""

from __future__ import annotations

import resource
import time

import torch


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

    def report(self, device: torch.device, processes: int = 1) -> dict[str, str | float]:
        """{device: ``cpu`` or the GPU's name, seconds, cpu_seconds, processes}; processor seconds of all `processes`,
        which work alike, as this one's times their number."""
        seconds, cpu_seconds = self.spent()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": name, "seconds": seconds, "cpu_seconds": cpu_seconds * processes, "processes": processes}
