"""The readable form of the tables over methods: names, sections, and the sentences that say what the numbers are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from semivid.evaluation.method_tables import (
    BASELINE,
    method_cells,
    methods_csv,
    read_method_runs,
    with_labelled_share,
)
from semivid.evaluation.tables import RULE, TEMPORAL, best_of_columns, display_name, over_seeds, percent, protocol_text
from semivid.pipeline.artifacts import write_text

_GT = " (ground truth in the mix)"
_METHODS = {
    "supervised": "Supervised",
    "mean_teacher": "Mean teacher",
    "classmix": "ClassMix",
    "classmix_gt": f"ClassMix{_GT}",
    "depthmix": "DepthMix",
    "depthmix_gt": f"DepthMix{_GT}",
    "transfer": "Transfer",
    "transfer_plain": "Transfer, no feature distance",
    "transfer_mean_teacher": "Transfer + mean teacher",
    "transfer_classmix": "Transfer + ClassMix",
    "transfer_classmix_gt": f"Transfer + ClassMix{_GT}",
    "transfer_depthmix": "Transfer + DepthMix",
    "transfer_depthmix_gt": f"Transfer + DepthMix{_GT}",
    "multitask_depthmix_gt": f"Multi-task + DepthMix{_GT}",
    "flow_consistency": "Flow consistency",
}

Line = dict[str, object]


def row_name(row: str) -> str:
    """A row in words: "classmix-random" -> "ClassMix", "classmix-ds_us" -> "ClassMix, frames by DS+US".

    Random frames are not mentioned; an unknown method is called by its name in params.yaml.
    """
    method, _, selection = row.partition("-")
    name = _METHODS.get(method, method)
    return name if selection == "random" else f"{name}, frames by {display_name(selection)}"


def methods_markdown(title: str, cells: pd.DataFrame) -> str:
    """The readable tables: mIoU (best of each column in bold, as displayed), paired differences, temporal agreement,
    hours of training, and one paragraph with the rule, the seeds and the protocol. cells: as `method_cells` makes them;
    a table without a single value is left out."""
    lines: list[Line] = cells.to_dict("records")
    best = best_of_columns({(c["row"], c["labels"]): c["miou"] for c in lines})

    def score(cell: Line) -> str:
        text = _percent(cell, "miou")
        return f"**{text}**" if (cell["row"], cell["labels"]) in best else text

    def difference(cell: Line) -> str:
        text, half = _percent(cell, "diff_supervised", signed=True), cell["diff_supervised_ci95"]
        return text if pd.isna(half) else f"{text} (95 %: ± {100 * half:.2f})"

    device = cells.device[0] if cells.device.nunique() == 1 and cells.hours.notna().all() else None

    def hours(cell: Line) -> str:
        text = "-" if pd.isna(cell["hours"]) else f"{cell['hours']:.3g}"
        return text if device else f"{text} ({cell['device']})"

    page = [f"# {title}", "", "mIoU:", "", *_table(lines, score), ""]
    compared = [c for c in lines if not pd.isna(c["diff_supervised"])]
    if compared:
        page += [f"Difference to {row_name(BASELINE)} in points of mIoU, paired by seed:", ""]
        page += [*_table(compared, difference), ""]
    if any(not pd.isna(c["temporal_agreement"]) for c in lines):
        page += [TEMPORAL, ""]
        page += [*_table(lines, lambda c: _percent(c, "temporal_agreement")), ""]
    page += [f"Training in {_unit(device)}, mean over the seeds:", "", *_table(lines, hours), ""]
    return "\n".join([*page, " ".join(_sentences(cells))]) + "\n"


def _percent(cell: Line, key: str, signed: bool = False) -> str:
    mean, std = cell[key], cell[f"{key}_std"]
    return "-" if pd.isna(mean) else percent(mean, None if pd.isna(std) else std, signed)


def _table(lines: Sequence[Line], text: Callable[[Line], str]) -> list[str]:
    columns = {c["labels"]: c.get("labelled_share") for c in lines}
    found = {(c["row"], c["labels"]): c for c in lines}
    heads = (f"{n} labels" + ("" if share is None else f" ({100 * share:.3g} %)") for n, share in columns.items())
    table = [f"| Method | {' | '.join(heads)} |", f"|---|{'---|' * len(columns)}"]
    for row in dict.fromkeys(c["row"] for c in lines):
        table.append(f"| {row_name(row)} | {' | '.join(text(found[row, n]) for n in columns)} |")
    return table


def _unit(device: str | None) -> str:
    if device is None:
        return "CPU hours where it says cpu, else hours on the device named"
    return "CPU hours" if device == "cpu" else f"hours on {device}"


def _sentences(cells: pd.DataFrame) -> list[str]:
    """What the numbers are."""
    first = cells.iloc[0]
    seeds = [name.removeprefix("seed_") for name in cells if name.startswith("seed_")]
    text = [f"mIoU and temporal agreement in percent, {over_seeds(seeds)}; {first.iterations} iterations.", RULE]
    if cells.diff_supervised_ci95.notna().any():
        text.append(
            "95 %: half the width of the confidence interval of the mean difference (paired t test, "
            f"{first.n_seeds - 1} degrees of freedom, one comparison at a time)."
        )
    text.append(
        "Hours are those of the training alone, without what it starts from (depth networks, optical flow, selection)."
    )
    keys = [name for name in cells if name.startswith("protocol_")]
    shared = [key for key in keys if cells[key].nunique(dropna=False) == 1]
    text.append(protocol_text({key.removeprefix("protocol_"): first[key] for key in shared}))
    return text + [_differing(cells, key) for key in keys if key not in shared]


def _differing(cells: pd.DataFrame, key: str) -> str:
    """Which rows have which value of a column `key`; the most frequent one is that of all others."""
    values = cells.drop_duplicates("row").set_index("row")[key].replace("", "none").fillna("none")
    common, *rare = values.value_counts().index  # the most frequent first; of equally many, the first in the table
    parts = [f"{value} in {', '.join(row_name(row) for row in values.index[values == value])}" for value in rare]
    return f"Rows differ in {key.removeprefix('protocol_')}: {'; '.join(parts)}; {common} in all others."


def write_method_table(
    name: str, title: str, rows: Sequence[str], labels: Sequence[int], seeds: Sequence[int], share: bool = False
) -> None:
    """``results/methods/ROW-LABELS-SEED.json`` to ``results/NAME.csv`` and ``.md``, each written atomically.

    share: with the share of labelled frames, where the protocol tells it.
    Raises UserError as `read_method_runs` and `method_cells` do.
    """
    names: Iterable[tuple[str, int, int]] = product(rows, labels, seeds)
    runs = read_method_runs(Path("results/methods") / f"{row}-{n}-{seed}.json" for row, n, seed in names)
    cells = method_cells(runs, rows, labels, seeds)
    cells = with_labelled_share(cells) if share else cells
    write_text(f"results/{name}.csv", methods_csv(cells))
    write_text(f"results/{name}.md", methods_markdown(title, cells))
