"""The flow consistency table: with and without the loss, by share of labelled frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from semivid.evaluation.tables import (
    STD_KIND,
    TEMPORAL,
    load_metrics,
    percent,
    refuse_metrics,
    unlike,
    unlike_protocols,
)

NAMES = {"flow_baseline": "Cross entropy", "flow_consistency": "+ flow consistency loss"}
_KEYS = ("method", "percent", "seed", "labels", "iterations", "miou", "best_miou", "temporal_agreement", "protocol")


def read_flow_runs(paths: Iterable[Path]) -> pd.DataFrame:
    """One row per run's metrics (JSON, as the stage evaluate_flow writes them), scores as fractions.

    Raises UserError that lists every file that is missing or malformed, or if runs differ in protocol or iterations.
    """
    rows, faults = load_metrics(paths, _KEYS, ("miou", "best_miou"), ("method", "percent", "seed"))
    refuse_metrics(faults, "run the stage evaluate_flow again")
    runs = {f"{row['method']}-{row['percent']}-{row['seed']}": row for row in rows}
    faults = unlike_protocols({name: row["protocol"] for name, row in runs.items()})
    faults += unlike("iterations", {name: row["iterations"] for name, row in runs.items()})
    refuse_metrics(faults, "train and evaluate all of them again")
    table = pd.DataFrame(rows)
    table["temporal_agreement"] = table["temporal_agreement"].astype(float)  # None: no two frames of video
    return table


def flow_cells(runs: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """One row per (method, percent): mean and sample deviation over seeds of mIoU and temporal agreement (fractions).

    difference, difference_std: of mIoU to the first method's runs of the same seed and percent; empty for itself.
    """
    paired = runs.merge(
        runs[runs.method == methods[0]][["percent", "seed", "miou"]], on=["percent", "seed"], suffixes=("", "_first")
    )
    paired["difference"] = paired.miou - paired.miou_first
    cells = paired.groupby(["method", "percent"], sort=False).agg(
        labels=("labels", "first"),
        miou=("miou", "mean"),
        miou_std=("miou", "std"),
        temporal_agreement=("temporal_agreement", "mean"),
        temporal_agreement_std=("temporal_agreement", "std"),
        difference=("difference", "mean"),
        difference_std=("difference", "std"),
        best_miou=("best_miou", "mean"),
        n_seeds=("seed", "count"),
    )
    cells.loc[methods[0], ["difference", "difference_std"]] = float("nan")
    return cells.reset_index()


def flow_csv(cells: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The tidy table, six digits, with the protocol in every row."""
    full = cells.assign(std_kind=STD_KIND, iterations=runs.iterations[0])
    full = full.assign(**{f"protocol_{k}": v for k, v in runs.protocol[0].items()})
    return full.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def flow_markdown(cells: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The readable table: mIoU and temporal agreement in percent."""
    percents = list(dict.fromkeys(cells.percent))
    labels = {p: cells[cells.percent == p].labels.iloc[0] for p in percents}
    found = cells.set_index(["method", "percent"])

    def rows(mean: str, std: str, methods: Iterable[str], signed: bool = False) -> list[str]:
        def value(m: str, p: int) -> str:
            cell = found.loc[(m, p)]
            spread = None if pd.isna(cell[std]) else cell[std]
            return "-" if pd.isna(cell[mean]) else percent(cell[mean], spread, signed)

        heads = " | ".join(f"{p} % ({labels[p]})" for p in percents)
        lines = [f"| Labelled frames | {heads} |", f"|---|{'---|' * len(percents)}"]
        return lines + [f"| {NAMES.get(m, m)} | {' | '.join(value(m, p) for p in percents)} |" for m in methods]

    methods = list(dict.fromkeys(cells.method))
    seeds = sorted(set(runs.seed))
    lines = ["# Flow consistency: what does unlabelled video add?", "", "mIoU:", ""]
    lines += [*rows("miou", "miou_std", methods), ""]
    if methods[1:]:
        lines += ["Difference in points of mIoU, paired by seed:", ""]
        lines += [*rows("difference", "difference_std", methods[1:], signed=True), ""]
    lines += [TEMPORAL, ""]
    lines += [*rows("temporal_agreement", "temporal_agreement_std", methods), ""]
    protocol = "; ".join(f"{k} {v}" for k, v in runs.protocol[0].items())
    lines += [
        f"Percent, mean ± {STD_KIND} standard deviation over the seeds {', '.join(map(str, seeds))} (of training and "
        f"choice of frames); {runs.iterations[0]} iterations. The last evaluation counts. Protocol: {protocol}."
    ]
    return "\n".join(lines) + "\n"
