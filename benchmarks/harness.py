"""What all groups share: fresh processes, alternating timing, rows of the table, facts about the run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context

PLAIN = "plain"


@dataclass(frozen=True)
class Row:
    """One line of the table; `plain` and `semivid` in `unit` (median of the rounds).

    ratio: how many times better semivid is (faster, or smaller): the median over the rounds of plain and
    semivid measured one right after the other; low, high: its range. agreement: how far the results of both
    are apart.
    """

    group: str
    case: str
    unit: str
    plain: float
    semivid: float
    ratio: float
    low: float
    high: float
    agreement: str


class Fresh:
    """A fresh Python process that runs functions one after the other and keeps its modules' state.

    The peak memory that `getrusage` reports starts at that of the process's parent: so this one, which only
    starts others, imports nothing large.
    """

    def __init__(self, threads: int) -> None:
        # NumPy's BLAS reads these when it is imported.
        os.environ |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _set_threads, (threads,))

    def submit(self, function: str, *args) -> Future:
        """Start `module.function` of this package there."""
        return self._pool.submit(_call, function, *args)

    def call(self, function: str, *args):
        """The result of `module.function`."""
        return self.submit(function, *args).result()

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown()


def _call(name: str, *args):
    module, _, function = name.partition(".")
    return getattr(import_module(f"benchmarks.{module}"), function)(*args)


def _set_threads(threads: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds since some moment, when all work so far is done.

    Where one thread of the CPU does all, this process's time counts, not that of other programs in between.
    """
    import torch

    synchronise()
    wall = torch.cuda.is_available() or torch.get_num_threads() > 1
    return time.perf_counter() if wall else time.process_time()


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes, see `clock`."""
    start = clock()
    function()
    return clock() - start


def alternate(versions: dict[str, Callable[[], object]], rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each version in each round; the versions take turns, so that a busy machine hits all alike.

    Each is called once before the first round. semivid's settings of torch (`Runtime`) do not hold for the
    version called "plain".
    """
    import torch

    from semivid.training.runtime import Runtime

    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for turn in range(rounds + 1):
        for name, version in versions.items():
            if name == PLAIN:
                torch.use_deterministic_algorithms(False)
            else:
                Runtime(threads)
            elapsed = timed(version)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def lower_is_better(
    group: str, case: str, unit: str, plain: Sequence[float], semivid: Sequence[float], agreement: str = ""
) -> Row:
    """A row of times or sizes, one value per round."""
    ratios = [p / s for p, s in zip(plain, semivid, strict=True)]
    medians = [statistics.median(values) for values in (plain, semivid, ratios)]
    return Row(group, case, unit, *medians, min(ratios), max(ratios), agreement)


def rate(
    group: str,
    case: str,
    plain: Sequence[float],
    plain_count: int,
    semivid: Sequence[float],
    count: int,
    agreement: str = "",
) -> Row:
    """A row of frames per second, from the seconds that so many frames took in each round."""
    per_frame = lower_is_better(
        group, case, "frames/s", [s / plain_count for s in plain], [s / count for s in semivid], agreement
    )
    return replace(per_frame, plain=1 / per_frame.plain, semivid=1 / per_frame.semivid)


def require(difference: float, limit: float, what: str, unit: str = "") -> str:
    """The difference as text; AssertionError where it is beyond the limit, for then the ratio means nothing."""
    if not difference <= limit:
        raise AssertionError(f"{what}: plain and semivid differ by {difference:.3g}, more than {limit:.3g}")
    return "equal" if difference == 0 else f"{difference:.2g} {unit}".strip()


def facts() -> dict[str, str]:
    """What the numbers depend on, without naming the machine."""
    import cv2
    import numpy
    import PIL
    import torch

    cpu = torch.backends.cpu.get_cpu_capability()
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(next((line for line in file if line.startswith("flags")), "").split())
        cpu += ", bfloat16 instructions" if flags & {"avx512_bf16", "amx_bf16"} else ", no bfloat16 instructions"
    except OSError:
        pass  # not Linux: the ratio of the bfloat16 rows must speak for itself
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "CPU": cpu,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads used": str(torch.get_num_threads()),
        "load before the run": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": numpy.__version__,
        "OpenCV": cv2.__version__,
        "Pillow": PIL.__version__,
    }


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def markdown(rows: Sequence[Row], run_facts: dict[str, str], command: str) -> str:
    """The results as a page."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}`; results.json holds the same. Both versions of a row ran in turns in one run on "
        "one machine. Ratio: how many times faster, or smaller, semivid is (median of the rounds; range in "
        "brackets, if there were several). Difference: how far the results of both lie apart. With one thread "
        "and no GPU the seconds are processor time, so that other programs disturb less. Only ratios carry over "
        "to other machines.",
        "",
        ", ".join(f"{name}: {value}" for name, value in run_facts.items()),
        "",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines += [
            f"## {group}",
            "",
            "| case | unit | plain | semivid | ratio | difference |",
            "|---|---|--:|--:|--:|---|",
        ]
        for row in (r for r in rows if r.group == group):
            ratio = number(row.ratio) + (f" ({number(row.low)}-{number(row.high)})" if row.low < row.high else "")
            lines.append(
                f"| {row.case} | {row.unit} | {number(row.plain)} | {number(row.semivid)} | {ratio} | {row.agreement} |"
            )
        lines.append("")
    return "\n".join(lines)
