"""Tables over training methods: the same frames, seeds and iterations; what does each method add to plain supervision?

A row of a table is METHOD-SELECTION (``classmix-random``, ``multitask_depthmix_gt-ds_us``), a run METHOD-SELECTION-
LABELS-SEED. A run's metrics are one JSON file, as the stage evaluate_methods writes it; scores are fractions. The last
evaluation of a run counts; the best one is an extra column.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from semivid.evaluation.tables import (
    STD_KIND,
    load_metrics,
    plain_text,
    refuse_metrics,
    refuse_missing,
    unlike,
    unlike_protocols,
)

BASELINE = "supervised-random"
"""The row that the others are compared with: plain supervised training on random frames."""

MAY_DIFFER = ("network", "encoder_weights")
"""What rows of one table may differ in: a method may bring a network of its own. Within a row they must agree."""

_IDENTITY = ("method", "selection", "labels", "seed")
_NUMBERS = ("miou", "best_miou", "temporal_agreement", "hours")
_KEYS = (*_IDENTITY, *_NUMBERS, "iterations", "temporal_pairs", "device", "protocol")


def read_method_runs(paths: Iterable[Path]) -> pd.DataFrame:
    """One line per run's metrics, with the column `row` (METHOD-SELECTION); scores as fractions, `hours` of training.

    Every run must have the same iterations, the same pairs of frames for the temporal agreement, and the same protocol
    but for `MAY_DIFFER`, which only has to agree within a row.
    Raises UserError with all faults in one line: files that are missing or malformed, and runs that are unlike.
    """
    runs, faults = load_metrics(paths, _KEYS, _NUMBERS, _IDENTITY, or_null=("temporal_agreement",))
    for run in runs:
        run["row"] = f"{run['method']}-{run['selection']}"
    named = {f"{run['row']}-{run['labels']}-{run['seed']}": run for run in runs}
    for key in ("iterations", "temporal_pairs"):
        faults += unlike(key, {name: run[key] for name, run in named.items()})
    faults += unlike_protocols({name: run["protocol"] for name, run in named.items()}, MAY_DIFFER)
    for row, key in product(dict.fromkeys(run["row"] for run in runs), MAY_DIFFER):
        of_row = {name: run["protocol"].get(key) for name, run in named.items() if run["row"] == row}
        faults += unlike(f"protocol.{key} in one row", of_row)
    refuse_metrics(faults, "train and evaluate these runs, or take them out of the table's rows, labels or seeds")
    return pd.DataFrame(runs)


def method_cells(runs: pd.DataFrame, rows: Sequence[str], labels: Sequence[int], seeds: Sequence[int]) -> pd.DataFrame:
    """One line per (row, labels), rows first, in the given order. Scores are fractions, empty where there is none.

    row, method, selection, labels
    miou, miou_std          mean and sample standard deviation (2 seeds or more) over the seeds
    n_seeds, seed_<k>       how many seeds, and the mIoU of each
    diff_supervised, .._std, .._ci95    of the differences to the row `BASELINE`, same labels and seed: mean, sample
                            standard deviation, and (3 seeds or more) half the width of the 95 % confidence interval of
                            the mean by the paired t test; all empty in that row, and in a table without it
    temporal_agreement, temporal_agreement_std, temporal_pairs      empty unless every seed has one
    hours, device           mean over the seeds; empty if the devices differ, for their hours do not compare
    best_miou               mean over the seeds of the best evaluation
    iterations, protocol_<key>

    Raises UserError that names the runs which are missing; others than those of the table are not read.
    """
    found = {(run["row"], run["labels"], run["seed"]): run for run in runs.to_dict("records")}
    wanted = list(product(rows, labels, seeds))
    refuse_missing(["-".join(map(str, key)) for key in wanted if key not in found], f"{len(wanted)} runs")
    return pd.DataFrame(
        _cell([found[row, n, s] for s in seeds], [found[BASELINE, n, s] for s in seeds] if BASELINE in rows else None)
        for row, n in product(rows, labels)
    )


def _cell(runs: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
    """A line of the table from the runs of its seeds, and the baseline's of the same seeds."""
    first = runs[0]
    compared = baseline if first["row"] != BASELINE else None
    miou, differences = [run["miou"] for run in runs], []
    if compared:
        differences = [run["miou"] - other["miou"] for run, other in zip(runs, compared, strict=True)]
    agreement = [run["temporal_agreement"] for run in runs]
    if any(pd.isna(value) for value in agreement):
        agreement = []
    devices = sorted({run["device"] for run in runs})
    return {
        **{key: first[key] for key in ("row", "method", "selection", "labels")},
        **_spread("miou", miou),
        "std_kind": STD_KIND,
        "n_seeds": len(runs),
        **{f"seed_{run['seed']}": run["miou"] for run in runs},
        **_spread("diff_supervised", differences),
        "diff_supervised_ci95": half_width(differences),
        **_spread("temporal_agreement", agreement),
        "temporal_pairs": first["temporal_pairs"],
        "hours": statistics.fmean(run["hours"] for run in runs) if len(devices) == 1 else math.nan,
        "device": " / ".join(devices),
        "best_miou": statistics.fmean(run["best_miou"] for run in runs),
        "iterations": first["iterations"],
        **{f"protocol_{key}": plain_text(value) for key, value in first["protocol"].items()},
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation, NaN where there are too few values."""
    return {
        name: statistics.fmean(values) if values else math.nan,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else math.nan,
    }


def half_width(differences: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of the confidence interval of the mean of paired differences; NaN for fewer than 3."""
    n = len(differences)
    if n < 3:  # of two values the interval is 12.7 standard errors wide and says nothing
        return math.nan
    return t_quantile(confidence, n - 1) * statistics.stdev(differences) / math.sqrt(n)


def t_quantile(share: float, freedom: int) -> float:
    """The t with P(|T| <= t) = share, of Student's distribution with a whole number of degrees of freedom."""
    low, high = 0.0, math.pi / 2  # of atan(t / sqrt(freedom)), in which the probability is a finite sum
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_share(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)): Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 4."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def with_labelled_share(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with a column `labelled_share`, labels / annotated training frames, if the protocol counts these."""
    frames = pd.to_numeric(cells.get("protocol_n_train_frames", pd.Series(dtype=float)), errors="coerce")
    if frames.empty or not (frames > 0).all():
        return cells
    with_share = cells.copy()
    with_share.insert(list(cells).index("labels") + 1, "labelled_share", cells.labels / frames)
    return with_share


def methods_csv(cells: pd.DataFrame) -> str:
    """The tidy table: one line per cell, six digits, no minus before zero."""
    return cells.to_csv(index=False, float_format="{:z.6f}".format, lineterminator="\n")
