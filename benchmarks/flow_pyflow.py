"""Seconds per pair of pyflow at 480x360, against its sweep written plainly: python -m benchmarks.flow_pyflow

Both versions are compiled and differ in the sweep alone: the plain one visits pixel after pixel in a double loop.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import torch
from numba import njit

import pyflow
from benchmarks.harness import PLAIN, alternate, lower_is_better, number, require
from pyflow import _solver

STANDARD = {"alpha": 0.012, "ratio": 0.75, "minWidth": 20, "nOuterFPIterations": 7, "nSORIterations": 30}
LIMIT = 1e-9


def images(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A texture of waves and the same moved by two pixels or so, ``(height, width, 3)`` in [0, 1]."""

    def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        waves = [np.sin(x / 2.7) * np.cos(y / 3.7), np.cos(x / 4.6) * np.sin(y / 3.0), np.sin((x - y) / 4.9)]
        return 0.5 + 0.3 * np.stack(waves, -1)

    y, x = np.mgrid[:height, :width].astype(float)
    return texture(x, y), texture(x - 2 - np.sin(y / 15), y + 1 - 0.5 * np.cos(x / 20))


@njit(cache=True, nogil=True, error_model="numpy")
def raster(du, dv, phi, inverse_u, inverse_v, b1, b2, cross, feedback, sweeps):
    """What `pyflow._solver.relax` computes, pixel by pixel; `feedback` is its own business."""
    for _ in range(sweeps):
        for i in range(1, du.shape[0] - 1):
            for j in range(1, du.shape[1] - 1):
                left, edge, up = phi[i, j - 1], phi[i, j], phi[i - 1, j]
                pull = left * du[i, j - 1] + edge * du[i, j + 1] + up * du[i - 1, j] + edge * du[i + 1, j]
                pull += b1[i, j] - cross[i, j] * dv[i, j]
                du[i, j] = (1 - _OMEGA) * du[i, j] + inverse_u[i, j] * pull
                pull = left * dv[i, j - 1] + edge * dv[i, j + 1] + up * dv[i - 1, j] + edge * dv[i + 1, j]
                pull += b2[i, j] - cross[i, j] * du[i, j]
                dv[i, j] = (1 - _OMEGA) * dv[i, j] + inverse_v[i, j] * pull


_OMEGA = _solver.OMEGA


def ours(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """vx and vy by the package as it is."""
    return np.stack(pyflow.coarse2fine_flow(*pair, **STANDARD)[:2])


def plain(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """vx and vy with the plain sweep."""
    with mock.patch.object(_solver, "relax", raster):
        return ours(pair)


def pairs_per_second(pair: tuple[np.ndarray, np.ndarray], threads: int, count: int) -> float:
    """Pairs per second of wall time with so many threads of one process."""
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ours, [pair] * count))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow_pyflow", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # then processor time counts
    pair = images(*args.size)
    agreement = require(float(np.abs(plain(pair) - ours(pair)).max()), LIMIT, "the sweeps", "px")
    seconds = alternate({PLAIN: lambda: plain(pair), "semivid": lambda: ours(pair)}, args.rounds, threads=1)
    row = lower_is_better("Optical flow", "{}x{}".format(*args.size), "s", *seconds.values(), agreement)
    print(f"{row.case}, one thread, median of {args.rounds}, seconds of processor time per pair")
    print(f"plain raster sweep  {number(row.plain)}")
    print(f"pyflow              {number(row.semivid)}")
    print(f"ratio               {number(row.ratio)} ({number(row.low)}-{number(row.high)}), difference {row.agreement}")
    for threads in (1, 2):
        rate = pairs_per_second(pair, threads, 3 * threads)
        print(f"{threads} thread{'s' * (threads > 1)}: {number(rate)} pairs per second of wall time")


if __name__ == "__main__":
    main()
