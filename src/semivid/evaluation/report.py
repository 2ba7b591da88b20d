"""The report: one HTML page with its pictures beside it. The same inputs give the same bytes."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from semivid.data.classes import Classes
from semivid.data.index import Frame, Index
from semivid.depth.disparity import read_disparity
from semivid.errors import UserError
from semivid.evaluation import pictures
from semivid.evaluation.chart import chart_svg
from semivid.evaluation.tables import Cell, Run, best_cells, display_name, percent, protocol_lines
from semivid.pipeline.artifacts import replacing

Predictions = Mapping[tuple[str, int, int], Path | Mapping[str, np.ndarray]]
"""(selection, labels, seed) -> a folder with ``<frame>.png`` of train ids (sub-folders are searched), or the
train ids by frame name."""

_WIDTH = 320
_THUMBNAIL = 160

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; background: #fff }
body { max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em; margin-bottom: .3em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5em 0 }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.grid { display: grid; gap: 6px; align-items: start; overflow-x: auto; font-size: 12px }
.grid img { width: 100%; display: block } .note { color: #555 }
.key span { display: inline-block; margin-right: 1em; white-space: nowrap }
.key i { display: inline-block; width: 1em; height: 1em; margin-right: .3em; vertical-align: -2px }
svg { max-width: 100%; height: auto }
"""


def build_report(
    out: Path,
    cells: Sequence[Cell],
    runs: Iterable[Run],
    index: Index,
    classes: Classes,
    predictions: Predictions,
    disparities: Path | None,
    selections: Mapping[str, Sequence[str]],
    seed: int,
    examples: int = 4,
    chosen: int = 12,
) -> None:
    """Write ``index.html``, ``chart.svg``, ``overview.jpg`` and ``pictures/`` into the folder `out`.

    The folder is replaced as a whole; links are relative, and nothing is loaded from elsewhere.

    Args:
        out: folder of the report.
        cells: the table (`tables.table_cells`).
        runs: all runs, for the IoU per class.
        index: frames; those shown with predictions need labels.
        classes: names and colours by train id.
        predictions: predicted train ids of the runs to show; may be empty.
        disparities: folder with ``<frame>.png`` (sub-folders are searched), or None.
        selections: frame names in order of choice, by criterion, of the training seed `seed`.
        seed: training seed that the shown selections belong to.
        examples: frames shown with predictions, and with disparities.
        chosen: frames shown per selection.

    Raises:
        UserError: a picture is missing, or a selection names a frame that is not in the index.
    """
    with replacing(out) as folder:
        (folder / "pictures").mkdir(parents=True)
        svg = chart_svg(cells)
        (folder / "chart.svg").write_text(svg + "\n", encoding="utf-8")
        parts = [
            "<h1>Table 3: which frames should be labelled?</h1>",
            _table(cells),
            *(f'<p class="note">{escape(line)}</p>' for line in protocol_lines(cells)),
            svg,
            '<p class="note">Large dots: means; bars: standard deviations; small dots: single seeds.</p>',
            *_differences(cells),
            *_class_tables(cells, runs, classes),
            *_predictions(folder, index, classes, predictions, examples),
            *_disparities(folder, index, disparities, examples),
            *_selections(folder, index, selections, seed, chosen),
        ]
        page = [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Table 3</title><style>{_STYLE}</style></head><body>",
            *parts,
            "</body></html>",
        ]
        (folder / "index.html").write_text("\n".join(page) + "\n", encoding="utf-8")


def _rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already; a cell that begins with <td is taken as it is."""
    lines = ['<div class="wide"><table><tr>' + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def _by_row(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.selection, []).append(cell)
    return rows


def _header(cells: Sequence[Cell]) -> list[str]:
    return ["Selection", *(f"{n} labels" for n in dict.fromkeys(cell.labels for cell in cells))]


def _table(cells: Sequence[Cell]) -> str:
    best = best_cells(cells)

    def text(cell: Cell) -> str:
        value = percent(cell.mean, cell.std)
        return f"<b>{value}</b>" if (cell.selection, cell.labels) in best else value

    rows = ([escape(display_name(s)), *map(text, row)] for s, row in _by_row(cells).items())
    return _rows(_header(cells), rows)


def _differences(cells: Sequence[Cell]) -> list[str]:
    compared = [cell for cell in cells if cell.difference is not None]
    if not compared:
        return []
    rows = (
        [escape(display_name(s)), *(percent(c.difference, c.difference_std, signed=True) for c in row)]
        for s, row in _by_row(compared).items()
    )
    return [
        "<h2>Difference to Random</h2>",
        "<p>Points of mIoU, paired by seed.</p>",
        _rows(_header(compared), rows),
    ]


def _class_tables(cells: Sequence[Cell], runs: Iterable[Run], classes: Classes) -> list[str]:
    """Mean IoU per class over the seeds, one table per label count; darker = better."""
    by_cell: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if run.method == cells[0].method:
            by_cell.setdefault((run.selection, run.labels), []).append(run)
    parts = ["<h2>IoU per class</h2>", "<p>Percent, mean over the seeds; – where no run has the class.</p>"]
    for n in dict.fromkeys(cell.labels for cell in cells):
        column = [cell for cell in cells if cell.labels == n]
        rows = []
        for name in classes.names:
            row = [escape(name)]
            for cell in column:
                values = [run.iou.get(name) for run in by_cell[cell.selection, n] if run.seed in cell.by_seed]
                values = [value for value in values if value is not None]
                if values:
                    mean = statistics.fmean(values)
                    shade = f"background: rgba(0, 114, 178, {0.5 * mean:.2f})"
                    row.append(f'<td style="{shade}">{100 * mean:.1f}</td>')
                else:
                    row.append("–")
            rows.append(row)
        parts += [
            f"<h3>{n} labels</h3>",
            _rows(["Class", *(escape(display_name(c.selection)) for c in column)], rows),
        ]
    return parts


def _figure(folder: Path, name: str, image: np.ndarray, caption: str) -> str:
    """Write a picture and give the HTML that shows it."""
    file = folder / "pictures" / f"{name}.jpg"
    if not file.exists():  # a frame that several selections chose is written once
        pictures.write_rgb(file, image)
    source, text = quote(f"pictures/{file.name}"), escape(caption)
    return f'<div><img src="{source}" alt="{text}" loading="lazy">{text}</div>'


def _grid(figures: Iterable[str], columns: int, width: int) -> str:
    style = f"grid-template-columns: repeat({columns}, minmax(110px, {width}px))"
    return "\n".join([f'<div class="grid" style="{style}">', *figures, "</div>"])


def _spread(items: Sequence, count: int) -> list:
    """`count` items at equal distances, the first one included."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))] if items else []


def _files(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(Path(folder).rglob("*.png"))}


def _predictions(folder: Path, index: Index, classes: Classes, predictions: Predictions, examples: int) -> list[str]:
    if not predictions:
        return []
    sources = {key: dict(v) if isinstance(v, Mapping) else _files(v) for key, v in predictions.items()}
    shared = set.intersection(*(set(source) for source in sources.values()))
    frames = _spread([f for f in index.select(labelled=True) if f.frame in shared], examples)
    if not frames:
        raise UserError("no labelled frame has predictions of every run shown: run the stage evaluate again")
    figures, sheet, captions = [], [], []
    for frame in frames:
        image = pictures.read_rgb(frame.image, _WIDTH)
        truth = pictures.read_labels(frame.label)
        shown = [("image", image, frame.frame)]
        shown.append(("truth", pictures.overlay(image, truth, classes), "ground truth"))
        for (selection, labels, seed), source in sources.items():
            found = source[frame.frame]
            predicted = pictures.read_labels(found) if isinstance(found, Path) else found
            caption = f"{display_name(selection)}, {labels} labels, seed {seed}"
            kind = f"{selection}-{labels}-seed{seed}"
            shown.append((kind, pictures.overlay(image, predicted, classes), caption))
        figures += [_figure(folder, f"{frame.frame}-{kind}", picture, text) for kind, picture, text in shown]
        sheet += [picture for _, picture, _ in shown]
        captions += [text for _, _, text in shown]
    columns = 2 + len(sources)
    pictures.write_rgb(folder / "overview.jpg", pictures.contact_sheet(sheet, captions, columns))
    key = "".join(
        f'<span><i style="background: rgb({r}, {g}, {b})"></i>{escape(name)}</span>'
        for name, (r, g, b) in zip(classes.names, classes.colours.tolist(), strict=True)
    )
    return [
        "<h2>Predictions</h2>",
        f'<p class="key">{key}</p>',
        _grid(figures, columns, _WIDTH),
    ]


def _disparities(folder: Path, index: Index, disparities: Path | None, examples: int) -> list[str]:
    files = _files(disparities) if disparities is not None else {}
    frames: list[Frame] = _spread([f for f in index.frames if f.frame in files], examples)
    if not frames:
        return []
    images, maps = [], []
    for frame in frames:
        image = pictures.read_rgb(frame.image, _WIDTH)
        images.append(_figure(folder, f"{frame.frame}-image", image, frame.frame))
        colours = pictures.fit(pictures.disparity_colours(read_disparity(files[frame.frame])), _WIDTH)
        maps.append(_figure(folder, f"{frame.frame}-disparity", colours, "disparity"))
    return [
        "<h2>Disparity</h2>",
        "<p>Of the self-supervised depth network, scaled per image; bright = near.</p>",
        _grid([*images, *maps], len(frames), _WIDTH),
    ]


def _selections(
    folder: Path, index: Index, selections: Mapping[str, Sequence[str]], seed: int, chosen: int
) -> list[str]:
    if not selections:
        return []
    parts = ["<h2>Selected frames</h2>", f"<p>Seed {seed}, in order of choice.</p>"]
    for selection, names in selections.items():
        figures = []
        for i, name in enumerate(names[:chosen]):
            if name not in index.by_name:
                raise UserError(f"selection {selection}: {name} is not in the index; run its stage again")
            image = pictures.read_rgb(index.by_name[name].image, _THUMBNAIL)
            figures.append(_figure(folder, f"{name}-small", image, f"{i + 1}. {name}"))
        rest = f", the first {chosen} shown" if len(names) > chosen else ""
        parts.append(f"<h3>{escape(display_name(selection))}: {len(names)} frames{rest}</h3>")
        parts.append(_grid(figures, 6, _THUMBNAIL))
    names = list(selections)
    length = min(len(selections[name]) for name in names)
    first = {name: set(selections[name][:length]) for name in names}
    rows = [[escape(display_name(a)), *(str(len(first[a] & first[b])) for b in names)] for a in names]
    parts.append(f"<h3>Frames in common among the first {length}</h3>")
    parts.append(_rows(["", *(escape(display_name(a)) for a in names)], rows))
    return parts
