"""What is kept of an evaluation: a table of every class, folders of pictures, and the zip that a benchmark takes.

After NVIDIA's ``eval.py`` (nvidia_segmentation.md, section 8), whose table swaps false positives and false negatives.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from semivid.data.classes import VOID, Classes, MaskCode
from semivid.errors import UserError, raise_all
from semivid.evaluation.confusion import confusion_matrix
from semivid.pipeline.artifacts import replacing, write_text

FOLDERS = ("rgb", "pred", "compose", "diff")
METRICS = "metrics.csv"
_COLUMNS = ("class", "id", "iou", "precision", "recall", "tp", "fp", "fn")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files in a zip, so that the same predictions give the same bytes


# ---- the table


def class_metrics(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class {class, iou, precision, recall, tp, fp, fn}.

    tp: pixels of the class that were found; fp: pixels taken for it that are another's; fn: its pixels taken for
    another. iou tp / (tp + fp + fn), precision tp / (tp + fp), recall tp / (tp + fn): fractions, None for 0 / 0.
    Their unweighted mean IoU (without None) is that of `semivid.evaluation.confusion.scores`.

    Args:
        confusion: integers (C, C), rows = true class, void left out.
        names: of the C classes.
    """
    hits = np.diag(confusion).tolist()
    misses = (confusion.sum(1) - np.diag(confusion)).tolist()
    intruders = (confusion.sum(0) - np.diag(confusion)).tolist()

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return [
        {
            "class": name,
            "iou": share(tp, tp + fp + fn),
            "precision": share(tp, tp + fp),
            "recall": share(tp, tp + fn),
            "tp": tp,
            "fp": fp,
            "fn": fn,
        }
        for name, tp, fp, fn in zip(names, hits, intruders, misses, strict=True)
    ]


def metrics_csv(confusion: np.ndarray, names: Sequence[str], ids: Sequence[int]) -> str:
    """`class_metrics` as CSV, one line per class and then their means; empty where a number does not exist.

    ids: submission ids of the classes.
    """
    rows = class_metrics(confusion, names)
    mean: dict[str, Any] = {"class": "mean"}
    for key in ("iou", "precision", "recall"):
        found = [row[key] for row in rows if row[key] is not None]
        mean[key] = sum(found) / len(found) if found else None
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in [*({**row, "id": i} for row, i in zip(rows, ids, strict=True)), mean]:
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


# ---- folders


@dataclass(frozen=True)
class Result:
    """One segmented frame: its name, picture uint8 (H, W, 3) RGB, predicted train ids and true ones (uint8 (H, W))."""

    name: str
    picture: np.ndarray
    predicted: np.ndarray
    label: np.ndarray | None = None


def submission_ids(classes: Classes, code: MaskCode) -> tuple[int, ...]:
    """The id that a benchmark knows each class by: the lowest one that its classes file lists.

    classes, code: of `read_class_file`. Raises UserError for a classes file of colours, or a class without an id.
    """
    if code.kind != "ids":
        raise UserError(
            "submission: the classes file lists colours; give one that lists ids, such as cityscapes19.yaml"
        )
    ids = {}
    for raw, train in sorted(code.train.items(), reverse=True):
        ids[train] = raw
    if missing := [name for train, name in enumerate(classes.names) if train not in ids]:
        raise UserError(f"submission: unknown class {missing[0]!r}: the classes file has no id for it; add one")
    return tuple(ids[train] for train in range(len(classes)))


def write_evaluation(
    out: str | Path, results: Iterable[Result], classes: Classes, ids: Sequence[int], void: int = VOID
) -> np.ndarray:
    """Write ``OUT`` in one piece and return the confusion matrix int64 (C, C), rows = true class, of labelled frames.

    ``rgb/NAME_color.png``      the classes' colours
    ``pred/NAME.png``           submission ids, 8-bit grey, at the size of the prediction
    ``compose/NAME_compose.png``  colours over the picture, half and half
    ``diff/NAME_diff.png``      that where the prediction is wrong, white where it is right or nobody knows (void);
                                of frames with a label
    ``metrics.csv``             `metrics_csv`, if any frame has a label

    Args:
        out: folder; replaced if it exists.
        results: frames in any order; each is written before the next one is asked for.
        classes: names and colours by train id.
        ids: their submission ids, 0..255 (`submission_ids`).
        void: train id of pixels without a label.

    Raises:
        UserError: a void id or a submission id that cannot be, names that occur twice or are no file names, pictures,
            predictions and labels of different sizes, predictions or labels that are no classes, no results.
    """
    count = len(classes)
    if not count <= void <= 255:
        raise UserError(f"submission: void id {void} is not in {count}..255, beyond the {count} classes; correct it")
    if len(ids) != count or not all(0 <= i <= 255 for i in ids):
        raise UserError(f"submission: {len(ids)} ids {list(ids)[:4]} for {count} classes; give each one from 0 to 255")
    table = np.zeros(256, np.uint8)
    table[:count] = ids
    confusion, names = np.zeros((count, count), np.int64), set()
    with replacing(out) as folder:
        for kind in FOLDERS:
            (folder / kind).mkdir(parents=True)
        for result in results:
            name = result.name
            if name in names or name != Path(name).name or not name.isprintable():
                raise UserError(f"submission: frame {name!r} comes twice or is no file name; rename it")
            names.add(name)
            _check_sizes(result)
            try:
                # Without a label it is compared with itself, so that wrong classes are found.
                counts = confusion_matrix(
                    result.predicted, result.predicted if result.label is None else result.label, count, void
                )
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            colours = classes.paint(result.predicted)
            blend = ((result.picture.astype(np.uint16) + colours) // 2).astype(np.uint8)
            _write(folder / "rgb" / f"{name}_color.png", colours)
            _write(folder / "pred" / f"{name}.png", table[result.predicted])
            _write(folder / "compose" / f"{name}_compose.png", blend)
            if result.label is not None:
                confusion += counts
                right = (result.predicted == result.label) | (result.label == void)
                _write(folder / "diff" / f"{name}_diff.png", np.where(right[..., None], np.uint8(255), blend))
        if not names:
            raise UserError("submission: not one frame to write; check the split")
        if confusion.any():
            write_text(folder / METRICS, metrics_csv(confusion, classes.names, ids))
    return confusion


def _check_sizes(result: Result) -> None:
    shape = result.predicted.shape
    for what, other in (("picture", result.picture.shape[:2]), ("label", getattr(result.label, "shape", shape))):
        if other != shape:
            raise UserError(
                f"{result.name}: a {what} of {other[1]}x{other[0]} for a prediction of {shape[1]}x{shape[0]}; predict "
                "at the size of the picture and its label"
            )


def _write(path: Path, picture: np.ndarray) -> None:
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


# ---- zips


@dataclass(frozen=True)
class Protocol:
    """What a benchmark asks of a submission.

    names: what file names look like, as a regular expression, and in words. size: (width, height) of every picture;
    None for each image's own. folder: within the zip. ids: all that may occur.
    """

    names: str
    words: str
    size: tuple[int, int] | None
    folder: str
    ids: tuple[int, ...]


_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
PROTOCOLS = {
    "cityscapes": Protocol(
        r"[A-Za-z-]+_\d{6}_\d{6}(_leftImg8bit)?", "CITY_123456_123456", (2048, 1024), "", _CITYSCAPES_IDS
    ),
    "kitti": Protocol(r"\d{6}_10", "123456_10", None, "semantic/", _CITYSCAPES_IDS),
    "camvid": Protocol(r".+_f?\d+", "SEQUENCE_FRAME", None, "", tuple(range(11))),
}


def write_zip(path: str | Path, folder: str | Path, protocol: str) -> int:
    """Zip the label pictures (``pred``) of an evaluation as a benchmark takes them; returns how many.

    The same pictures give the same bytes.

    Args:
        path: of the zip; replaced in one step.
        folder: of 8-bit, one-channel PNG files of submission ids.
        protocol: a key of `PROTOCOLS`.

    Raises:
        UserError: with a line for every file that the benchmark would refuse (its name, size, kind or ids), for a
            folder without one, and for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"submission: no protocol {protocol!r}; take one of {', '.join(PROTOCOLS)}")
    rules, files = PROTOCOLS[protocol], sorted(Path(folder).glob("*.png"))
    if not files:
        raise UserError(f"submission: no label pictures (.png) in {folder}; evaluate first")
    raise_all([f"{file}: {fault}" for file in files if (fault := _fault(file, rules, protocol))])
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in files:  # PNG files are compressed already
            archive.writestr(zipfile.ZipInfo(f"{rules.folder}{file.name}", _EPOCH), file.read_bytes())
    return len(files)


def _fault(file: Path, rules: Protocol, protocol: str) -> str | None:
    """Why the benchmark would refuse a label picture."""
    if not re.fullmatch(rules.names, file.stem):
        return f"the name is not as {protocol} has it ({rules.words}.png); rename the frame"
    ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if ids is None or ids.ndim != 2 or ids.dtype != np.uint8:
        return "not a picture of 8 bits and one channel; evaluate again"
    if rules.size and ids.shape[::-1] != rules.size:
        return (
            f"{ids.shape[1]}x{ids.shape[0]} pixels, but {protocol} takes {rules.size[0]}x{rules.size[1]}; predict at "
            "the size of the original pictures"
        )
    if wrong := sorted(set(np.unique(ids).tolist()) - set(rules.ids)):
        return f"id {wrong[0]} is none of {protocol}'s; give the classes file with its ids"
    return None
