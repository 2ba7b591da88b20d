"""Where in the labelled frames each class is: the table that class-uniform sampling draws from.

A table is made once from the label pictures, as the output of a stage: a CSV file (class, frame, x, y). The rules are
those of NVIDIA's code (nvidia_segmentation.md, section 3, steps 1 and 2). No torch is imported here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from semivid.data.classes import VOID
from semivid.data.index import Frame
from semivid.errors import UserError, raise_all
from semivid.pipeline.artifacts import replacing

# By class, in the order of the frames and of the tiles: (frame, x, y).
Table = list[list[tuple[str, int, int]]]
_COLUMNS = ["class", "frame", "x", "y"]


def tiles(width: int, height: int, tile: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the whole tiles in a picture, row by row; what is left over belongs to none.

    tile: side in pixels. A picture smaller than a tile has none.
    """
    return [(x * tile, y * tile) for y in range(height // tile) for x in range(width // tile)]


def centroids(label: np.ndarray, classes: int, tile: int, void: int = VOID) -> list[list[tuple[int, int]]]:
    """By class the centres of its pixels in each tile that has any: (x, y) in the picture, rounded down.

    A centre need not lie on its class.

    Args:
        label: uint8 (H, W), 0 .. `classes` - 1 or `void`.
        classes: their number C.
        tile: side of a tile in pixels.
        void: the label of pixels without one, C .. 255.

    Raises:
        UserError: a label that is neither a class nor void, a void id that cannot be, or a tile without pixels.
    """
    if not classes <= void <= 255:
        raise UserError(f"void id {void} is not in {classes}..255, beyond the {classes} classes; correct it")
    if tile < 1:
        raise UserError(f"tiles of {tile} pixels for class-uniform sampling; give 1 or more")
    if wrong := [v for v in np.unique(label).tolist() if v >= classes and v != void]:
        raise UserError(f"label {wrong[0]} is neither a class (0..{classes - 1}) nor void ({void})")
    corners = tiles(label.shape[1], label.shape[0], tile)
    if not corners:
        return [[] for _ in range(classes)]
    rows, columns = label.shape[0] // tile, label.shape[1] // tile
    y, x = np.mgrid[: rows * tile, : columns * tile]
    # One count over all tiles: the place of a tile times 256, plus the label.
    place = (y // tile * columns + x // tile) * 256 + label[: rows * tile, : columns * tile]
    counts, across, down = (
        np.bincount(place.ravel(), weight, rows * columns * 256).reshape(-1, 256)[:, :classes].astype(np.int64)
        for weight in (None, x.ravel(), y.ravel())
    )
    found: list[list[tuple[int, int]]] = []
    for c in range(classes):
        there = counts[:, c] > 0
        sums = (values[there, c] // counts[there, c] for values in (across, down))
        found.append(list(zip(*(s.tolist() for s in sums), strict=True)))
    return found


def centroid_table(
    frames: Sequence[Frame],
    label: Callable[[Frame], np.ndarray],
    classes: int,
    tile: int,
    void: int = VOID,
    threads: int = 1,
) -> Table:
    """The centroids of all `frames`, in order, whatever the number of threads.

    label: gives a frame's mask, uint8 (H, W) (``FrameStore.label``). Other arguments as in :func:`centroids`.
    Raises UserError with a line for each frame whose mask is missing or holds what is no class.
    """

    def of(frame: Frame) -> list[list[tuple[int, int]]] | str:
        try:
            return centroids(label(frame), classes, tile, void)
        except UserError as error:
            return f"{frame.label or frame.frame}: {error}"

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(of, frames))
    raise_all([f for f in found if isinstance(f, str)])
    return [
        [(frame.frame, x, y) for frame, points in zip(frames, found, strict=True) for x, y in points[c]]
        for c in range(classes)
    ]


def write_centroids(path: str | Path, table: Table, names: Sequence[str]) -> None:
    """Write a table as CSV, whole or not at all. names: of its classes."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows([name, *point] for name, points in zip(names, table, strict=True) for point in points)


def read_centroids(path: str | Path, names: Sequence[str]) -> Table:
    """Read a table. names: of the classes of the prepared data.

    Raises UserError if the file is missing or malformed, or has a class that the data do not.
    """
    table: Table = [[] for _ in names]
    numbers = {name: c for c, name in enumerate(names)}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if next(rows, None) != _COLUMNS:
                raise UserError(f"{path}: no table of centroids ({','.join(_COLUMNS)}); run the stage again")
            for row in rows:
                if len(row) != 4 or not (row[2].isdecimal() and row[3].isdecimal()):
                    raise UserError(f"{path}, line {rows.line_num}: malformed row; run the stage again")
                if row[0] not in numbers:
                    raise UserError(
                        f"{path}, line {rows.line_num}: unknown class {row[0]!r}; the table belongs to other classes: "
                        "run the stage again"
                    )
                table[numbers[row[0]]].append((row[1], int(row[2]), int(row[3])))
    except FileNotFoundError:
        raise UserError(f"no table of centroids {path}; run the stage that makes it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no table of centroids ({error}); run the stage again") from None
    return table


def class_numbers(chosen: Iterable[str | int], names: Sequence[str], key: str) -> tuple[int, ...]:
    """Train ids of classes given by name or train id, sorted, each once. key: where they are set, for messages.

    Raises UserError for a class that does not exist, with the nearest name.
    """
    found = set()
    for one in chosen:
        if isinstance(one, str) and one in names:
            found.add(list(names).index(one))
        elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(names):
            found.add(one)
        else:
            near = get_close_matches(str(one), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"give names, or numbers from 0 to {len(names) - 1}"
            raise UserError(f"{key}: unknown class {one!r}; {hint}")
    return tuple(sorted(found))
