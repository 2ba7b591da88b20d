"""Diversity selection at the size of Cityscapes: distances of all frames, and farthest points."""

from __future__ import annotations

import numpy as np

from benchmarks import plain
from benchmarks.harness import PLAIN, Row, alternate, lower_is_better, require
from semivid.selection.diversity import distance_matrix, farthest_point

FULL = (2975, 8192, 744)  # frames, values per frame, frames to choose
QUICK = (400, 512, 100)


def run(threads: int, quick: bool) -> list[Row]:
    frames, values, choose = QUICK if quick else FULL
    features = np.random.default_rng(0).standard_normal((frames, values), dtype=np.float32)
    rows = [0, frames // 2]  # of the double loop, which would take minutes
    found: dict[str, np.ndarray] = {}

    def double_loop() -> None:
        found[PLAIN] = plain.distances(features, rows)

    def product() -> None:
        found["semivid"] = distance_matrix(features)

    seconds = alternate({PLAIN: double_loop, "semivid": product}, rounds=1, threads=threads)
    distance = found["semivid"]
    apart = np.abs(found[PLAIN] - distance[rows]).max() / distance.max()
    agreement = require(float(apart), 1e-5, "distances")
    # Half of the matrix is enough: it is symmetric.
    whole = [s / len(rows) * frames / 2 for s in seconds[PLAIN]]
    name = f"distances of {frames} frames x {values} values (plain: {len(rows)} rows, extrapolated)"
    result = [lower_is_better("Selection", name, "s", whole, seconds["semivid"], agreement)]

    chosen = farthest_point(distance, [0], choose)[0]
    same = float(chosen != plain.farthest_point(distance, [0], choose))
    agreement = require(same, 0.0, "farthest points")
    seconds = alternate(
        {
            PLAIN: lambda: plain.farthest_point(distance, [0], choose),
            "semivid": lambda: farthest_point(distance, [0], choose),
        },
        rounds=2,
        threads=threads,
    )
    name = f"farthest points, {choose} of {frames}"
    return [*result, lower_is_better("Selection", name, "s", *seconds.values(), agreement)]
