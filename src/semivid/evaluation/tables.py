"""From the metrics of single runs to Table 3: which frames should be labelled?

A run's metrics are one JSON file:
``{"method", "selection", "labels", "list_labels", "seed", "iterations", "miou", "best_miou",
"best_iteration", "accuracy", "mean_class_accuracy", "frequency_weighted_iou",
"iou": {class: value or null}, "protocol": {...}}``; scores are fractions in [0, 1]. ``labels`` is the table's
column, ``list_labels`` the number of frames that were really used. The last evaluation of a run counts; the
best one over the training (chosen on the very frames that it is measured on) is an extra column and never
mixed in.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semivid.errors import UserError
from semivid.pipeline.artifacts import write_text

RANDOM = "random"
"""The row that the others are compared with."""

STD_KIND = "sample (n - 1)"

RULE = "A run counts with its last evaluation; the best one over the training is given apart and enters no cell."

TEMPORAL = "Temporal agreement (share of pixels whose class stays the same along the flow to the next frame):"

_NAMES = {
    "random": "Random",
    "entropy": "Entropy",
    "ent": "Entropy",  # as the published lists call it
    "us": "US",
    "ds": "DS",
    "ds_us": "DS+US",
}
_SCORES = ("miou", "best_miou", "accuracy", "mean_class_accuracy", "frequency_weighted_iou")
_COUNTS = ("labels", "list_labels", "seed", "iterations", "best_iteration")
_KEYS = ("method", "selection", *_COUNTS, *_SCORES, "iou", "protocol")


@dataclass(frozen=True)
class Run:
    """One trained network's metrics. Scores are fractions; `iou` has None for classes absent from truth and
    prediction; `protocol` says how the numbers were made."""

    method: str
    selection: str
    labels: int
    list_labels: int
    seed: int
    iterations: int
    best_iteration: int
    miou: float
    best_miou: float
    accuracy: float
    mean_class_accuracy: float
    frequency_weighted_iou: float
    iou: dict[str, float | None]
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell of the table. Scores are fractions.

    mean, std: over the seeds, of the last evaluation; std is the sample one (n - 1), None for a single seed.
    by_seed: {seed: mIoU}. best_mean: mean of the best evaluations. difference, difference_std: mean and
    sample standard deviation over the seeds of (this cell - the random cell of the same seed and label
    count); None in the random row, and where the table has none. protocol: as in the runs.
    """

    method: str
    selection: str
    labels: int
    list_labels: int
    iterations: int
    mean: float
    std: float | None
    by_seed: dict[int, float]
    best_mean: float
    difference: float | None
    difference_std: float | None
    protocol: dict[str, Any]


def display_name(selection: str) -> str:
    """A selection's name in tables: "ds_us" -> "DS+US", "published_us" -> "US (published list)"."""
    if selection.startswith("published_"):
        return f"{display_name(selection.removeprefix('published_'))} (published list)"
    return _NAMES.get(selection, selection)


def load_metrics(
    paths: Iterable[Path],
    keys: Sequence[str],
    numbers: Sequence[str],
    identity: Sequence[str],
    or_null: Collection[str] = (),
) -> tuple[list[dict[str, Any]], list[str]]:
    """Contents of metrics files that can be used, and what is wrong with the others.

    Args:
        paths: JSON files, one run each.
        keys: what a file must hold, `protocol` (a mapping) among it; nothing else of it is returned.
        numbers: those of the keys whose values must be numbers; they are returned as floats.
        identity: those of the keys that tell runs apart.
        or_null: those of the numbers that may be null, returned as None.

    Returns:
        The contents in the order of `paths`, and one text per fault: a file is missing, is not JSON, lacks keys or
        values, or holds the same run as another one.
    """
    contents, faults, sources = [], [], {}
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            faults.append(f"{path} is missing")
            continue
        except ValueError:
            faults.append(f"{path} is not JSON")
            continue
        missing = [key for key in keys if not isinstance(content, dict) or key not in content]
        if len(missing) == len(keys):
            faults.append(f"{path} is not a run's metrics")
            continue
        if missing:
            faults.append(f"{path} lacks {', '.join(missing)}")
            continue
        known = [key for key in numbers if content[key] is not None or key not in or_null]
        no_number = [key for key in known if not is_number(content[key])]
        if no_number:
            faults.append(f"{path} has no number for {', '.join(no_number)}")
            continue
        if not isinstance(content["protocol"], dict):
            faults.append(f"{path} has no mapping for protocol")
            continue
        run = tuple(map(str, (content[key] for key in identity)))
        if run in sources:
            faults.append(f"{path} and {sources[run]} hold the same run")
        sources[run] = path
        contents.append({key: float(content[key]) if key in known else content[key] for key in keys})
    return contents, faults


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a finite number (true and false are none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def refuse_metrics(faults: Sequence[str], advice: str) -> None:
    """Raise UserError with all faults in one line, if there are any."""
    if faults:
        raise UserError(f"metrics of runs: {'; '.join(faults)}: {advice}")


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read metrics files; all faults are reported at once.

    Raises:
        UserError: files are missing, are not JSON, or lack keys; or two files hold the same run.
    """
    contents, faults = load_metrics(paths, _KEYS, _SCORES, ("method", "selection", "labels", "seed"))
    refuse_metrics(faults, "run the stage evaluate again")
    return [Run(**content) for content in contents]


def table_cells(
    runs: Iterable[Run], method: str, selections: Sequence[str], labels: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """Average the runs of one method into the cells of the table.

    Args:
        runs: any runs; those outside the table are not read.
        method: training method of the table.
        selections: rows, in order. Differences are taken to the row "random".
        labels: columns, in order.
        seeds: training seeds; every cell needs all of them.

    Returns:
        One cell per (selection, labels), rows first.

    Raises:
        UserError: runs are missing (they are listed), or runs that share the table differ in their protocol,
            runs of one column in their iterations, or runs of one cell in the number of frames used.
    """
    found = {(r.selection, r.labels, r.seed): r for r in runs if r.method == method}
    wanted = [(s, n, seed) for s in selections for n in labels for seed in seeds]
    missing = [f"{s}-{n}-seed{seed}" for s, n, seed in wanted if (s, n, seed) not in found]
    refuse_missing(missing, f"{len(wanted)} runs of {method}")
    table = [found[key] for key in wanted]
    for key in sorted({key for run in table for key in run.protocol}):
        _same(table, f"protocol.{key}", lambda run, key=key: run.protocol.get(key))
    cells = []
    for selection in selections:
        for n in labels:
            _same([r for r in table if r.labels == n], "iterations", lambda run: run.iterations)
            cell = [found[selection, n, seed] for seed in seeds]
            _same(cell, "list_labels", lambda run: run.list_labels)
            differences = None
            if RANDOM in selections and selection != RANDOM:
                differences = [found[selection, n, s].miou - found[RANDOM, n, s].miou for s in seeds]
            cells.append(
                Cell(
                    method=method,
                    selection=selection,
                    labels=n,
                    list_labels=cell[0].list_labels,
                    iterations=cell[0].iterations,
                    mean=statistics.fmean(r.miou for r in cell),
                    std=_std([r.miou for r in cell]),
                    by_seed={r.seed: r.miou for r in cell},
                    best_mean=statistics.fmean(r.best_miou for r in cell),
                    difference=None if differences is None else statistics.fmean(differences),
                    difference_std=None if differences is None else _std(differences),
                    protocol=cell[0].protocol,
                )
            )
    return cells


def unlike(what: str, values: Mapping[str, Any]) -> list[str]:
    """What is wrong if the values of runs, by the runs' names, are not all equal: one text that names two, or none."""
    for name, value in values.items():
        first = next(iter(values))
        if value != values[first]:
            return [f"runs with different {what} cannot share a table ({first}: {values[first]}; {name}: {value})"]
    return []


def unlike_protocols(protocols: Mapping[str, Mapping[str, Any]], may_differ: Collection[str] = ()) -> list[str]:
    """What is wrong if the protocols of runs, by the runs' names, are not equal: one text per key that differs."""
    keys = sorted({key for protocol in protocols.values() for key in protocol} - set(may_differ))
    return [f for key in keys for f in unlike(f"protocol.{key}", {n: p.get(key) for n, p in protocols.items()})]


def refuse_missing(missing: Sequence[str], of: str) -> None:
    """Raise UserError that names the runs which a table lacks, if there are any; of: "36 runs"."""
    if missing:
        raise UserError(
            f"{len(missing)} of {of} are missing ({', '.join(missing)}): train and "
            "evaluate them, or take them out of the table's rows, labels or seeds"
        )


def _same(runs: Sequence[Run], what: str, value: Callable[[Run], Any]) -> None:
    """Refuse to put runs side by side that differ in `what`."""
    faults = unlike(what, {f"{r.selection}-{r.labels}-seed{r.seed}": value(r) for r in runs})
    if faults:
        raise UserError(f"{faults[0]}: run the stages train and evaluate of both with the same settings")


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def runs_csv(runs: Iterable[Run]) -> str:
    """One line per run, with every class's IoU (``iou_<class>``, empty where absent) and the protocol."""
    runs = sorted(runs, key=lambda r: (r.method, r.selection, r.labels, r.seed))
    classes = list(dict.fromkeys(name for run in runs for name in run.iou))
    protocol = list(dict.fromkeys(key for run in runs for key in run.protocol))
    return _csv(
        {
            **{key: getattr(run, key) for key in ("method", "selection", *_COUNTS, *_SCORES)},
            **{f"iou_{name}": run.iou.get(name) for name in classes},
            **{f"protocol_{key}": run.protocol.get(key) for key in protocol},
        }
        for run in runs
    )


def table_csv(cells: Iterable[Cell]) -> str:
    """The tidy table: one line per cell, scores as fractions, one column ``seed_<k>`` per seed."""
    return _csv(
        {
            "method": cell.method,
            "selection": cell.selection,
            "labels": cell.labels,
            "list_labels": cell.list_labels,
            "metric": "miou",
            "mean": cell.mean,
            "std": cell.std,
            "std_kind": STD_KIND,
            "n_seeds": len(cell.by_seed),
            **{f"seed_{seed}": value for seed, value in cell.by_seed.items()},
            "diff_random_mean": cell.difference,
            "diff_random_std": cell.difference_std,
            "best_mean": cell.best_mean,
            "iterations": cell.iterations,
            **{f"protocol_{key}": value for key, value in cell.protocol.items()},
        }
        for cell in cells
    )


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # A fixed number of digits: the same runs give the same bytes.
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else plain_text(v) for k, v in row.items()})
    return text.getvalue()


def plain_text(value: Any) -> str:
    """A protocol value as text: sizes as 240x180, None as nothing."""
    if isinstance(value, (list, tuple)):
        return "x".join(map(plain_text, value))
    return "" if value is None else str(value)


def percent(mean: float, std: float | None, signed: bool = False) -> str:
    """ "48.75 ± 1.61" for fractions; without a standard deviation the mean alone."""
    text = f"{100 * mean:{'+' if signed else ''}.2f}"
    return text if std is None else f"{text} ± {100 * std:.2f}"


def best_cells(cells: Iterable[Cell]) -> set[tuple[str, int]]:
    """(selection, labels) of the highest mean of each column, as displayed: equal text is equally good."""
    return best_of_columns({(cell.selection, cell.labels): cell.mean for cell in cells})


def best_of_columns(means: Mapping[tuple[str, int], float]) -> set[tuple[str, int]]:
    """(row, column) of the highest mean (a fraction) of each column, as displayed: equal text is equally good."""
    shown = {key: float(percent(mean, None)) for key, mean in means.items()}
    best = {n: max(value for (_, m), value in shown.items() if m == n) for _, n in shown}
    return {key for key, value in shown.items() if value == best[key[1]]}


def over_seeds(seeds: Collection[int | str]) -> str:
    """ "mean ± sample (n - 1) standard deviation over the training seeds 7, 25", as it stands under tables."""
    spread = f"mean ± {STD_KIND} standard deviation" if len(seeds) > 1 else "value"
    return f"{spread} over the training seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """ "Protocol: data camvid; size 240x180." """
    return "Protocol: " + "; ".join(f"{key} {plain_text(value)}" for key, value in protocol.items()) + "."


def protocol_lines(cells: Sequence[Cell]) -> list[str]:
    """What the numbers are, in sentences: metric, rule, spread, and the protocol's keys."""
    first = cells[0]
    iterations = sorted({cell.iterations for cell in cells})
    lines = [
        f"mIoU in percent, {over_seeds(first.by_seed)}; "
        f"method {first.method}, {' / '.join(map(str, iterations))} iterations.",
        RULE,
        protocol_text(first.protocol),
    ]
    lines += [
        f"{display_name(c.selection)}, column {c.labels}: {c.list_labels} frames were really used."
        for c in cells
        if c.list_labels != c.labels
    ]
    return lines


def table_markdown(cells: Sequence[Cell], title: str = "Table 3: which frames should be labelled?") -> str:
    """The readable table: mIoU, best per column in bold, then the paired differences to Random."""
    best = best_cells(cells)

    def value(cell: Cell) -> str:
        text = percent(cell.mean, cell.std)
        return f"**{text}**" if (cell.selection, cell.labels) in best else text

    lines = [f"# {title}", "", *_markdown(cells, value), ""]
    compared = [cell for cell in cells if cell.difference is not None]
    if compared:
        lines += ["Difference to Random in points of mIoU, paired by seed:", ""]
        lines += [*_markdown(compared, lambda c: percent(c.difference, c.difference_std, signed=True)), ""]
    for line in protocol_lines(cells):
        lines += [line, ""]
    return "\n".join(lines[:-1]) + "\n"


def _markdown(cells: Sequence[Cell], value: Callable[[Cell], str]) -> list[str]:
    found = {(cell.selection, cell.labels): cell for cell in cells}
    labels = list(dict.fromkeys(cell.labels for cell in cells))
    lines = [
        f"| Selection | {' | '.join(f'{n} labels' for n in labels)} |",
        f"|---|{'---|' * len(labels)}",
    ]
    for selection in dict.fromkeys(cell.selection for cell in cells):
        values = [value(found[selection, n]) for n in labels]
        lines.append(f"| {display_name(selection)} | {' | '.join(values)} |")
    return lines


def write_tables(folder: Path, cells: Sequence[Cell], runs: Iterable[Run]) -> None:
    """Write runs.csv, table3.md and table3.csv into `folder`, each atomically."""
    write_text(Path(folder) / "runs.csv", runs_csv(runs))
    write_text(Path(folder) / "table3.md", table_markdown(cells))
    write_text(Path(folder) / "table3.csv", table_csv(cells))
