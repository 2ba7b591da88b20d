"""Reading the curves that training runs left."""

from __future__ import annotations

import csv
from pathlib import Path


def best_of_curve(run: Path) -> dict[str, float | int | None]:
    """{best_miou, best_iteration} of a run's validation curve (DVCLive's TSV); None where it was not validated."""
    curve = run / "plots/metrics/val_miou.tsv"
    if not curve.exists():
        return {"best_miou": None, "best_iteration": None}
    with curve.open(newline="") as file:
        rows = [(float(r["val_miou"]), int(r["step"])) for r in csv.DictReader(file, delimiter="\t")]
    value, step = max(rows, key=lambda r: (r[0], -r[1]))  # the first of equals
    return {"best_miou": value, "best_iteration": step}
