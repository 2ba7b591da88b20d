"""Propagated labels beside the prepared frames: their files and ``propagated.csv``.

The prepared index says what was given; this one says what was made of it, so that training takes both or the former
alone. Folder layout: labels/STEP/SPLIT/FRAME.png (train ids, 255 = void), confidence/STEP/SPLIT/FRAME.png (8 bits, 255
= 1), images/STEP/SPLIT/FRAME.png (joint propagation only), STEP p1 for one frame later, m1 for one frame earlier.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from semivid.data.classes import VOID
from semivid.data.index import Frame, Index
from semivid.errors import UserError, shown
from semivid.pipeline.artifacts import replacing
from semivid.propagation.propagate import Propagated

COLUMNS = ("frame", "source_frame", "step", "label", "image", "confidence_map", "confidence", "known")


@dataclass(frozen=True)
class PropagatedLabel:
    """One propagated label.

    frame: the prepared frame that got it. source: the labelled frame that it is from. step: frames from the source to
    it, negative = earlier. label: PNG of train ids. image: the picture that belongs to the label: the real frame's, or
    the carried one (joint propagation). confidence_map: 8-bit PNG, 255 = 1, 0 where void. confidence: its mean over
    the labelled pixels, 0 to 1 (0 if there are none). known: share of pixels with a label other than void, 0 to 1.
    """

    frame: Frame
    source: Frame
    step: int
    label: Path
    image: Path
    confidence_map: Path
    confidence: float
    known: float

    @property
    def joint(self) -> bool:
        """Whether the picture was carried together with the label."""
        return self.image != self.frame.image

    def as_frame(self) -> Frame:
        """The pair of picture and label as a labelled frame for training.

        It has a name and a video of its own, so that an index may hold it beside the real frame, and so that the
        neighbours of a carried picture are carried ones.
        """
        name, real = step_name(self.step), self.frame
        return Frame(
            f"{real.frame}_{name}", real.split, f"{real.sequence}_{name}", real.position, self.image, real.camera,
            self.label,
        )  # fmt: skip


def step_name(step: int) -> str:
    """p2 for two frames later, m2 for two frames earlier."""
    return f"{'p' if step > 0 else 'm'}{abs(step)}"


def propagated_path(root: str | Path, kind: str, frame: Frame, step: int) -> Path:
    """Where a file of a propagated label lies: ROOT/KIND/STEP/SPLIT/FRAME.png; kind: labels, confidence or images."""
    return Path(root) / kind / step_name(step) / frame.split / f"{frame.frame}.png"


def save(root: Path, result: Propagated, joint: bool) -> PropagatedLabel:
    """Write a result's files below `root`; joint: the carried picture too, else the label joins the real one."""
    target, carried = result.target, result.carried
    paths = {k: propagated_path(root, k, target, result.step) for k in ("labels", "confidence", "images")}
    _write(paths["labels"], carried.label)
    _write(paths["confidence"], np.rint(carried.confidence * 255).astype(np.uint8))
    if joint:
        _write(paths["images"], np.ascontiguousarray(carried.image[..., ::-1]))
    given = carried.label != VOID
    return PropagatedLabel(
        target, result.source, result.step, paths["labels"], paths["images"] if joint else target.image,
        paths["confidence"], float(carried.confidence[given].mean()) if given.any() else 0.0, float(given.mean()),
    )  # fmt: skip


def _write(path: Path, pixels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise UserError(f"cannot encode {shown(path)}")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_confidence(path: Path) -> np.ndarray:
    """A map of confidence, float32 (H, W) in [0, 1]. UserError if it is missing or no 8-bit PNG of one channel."""
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if Path(path).is_file() else None
    if values is None or values.dtype != np.uint8 or values.ndim != 2:
        raise UserError(f"{shown(path)}: missing or no map of confidence; run the stage propagate again")
    return values.astype(np.float32) / 255


def write_propagated(path: Path, labels: Iterable[PropagatedLabel]) -> None:
    """Write ``propagated.csv``, sorted by split, frame, step; paths relative to its folder; replaces the file at once.

    Raises UserError if a frame has two labels of one step.
    """
    folder = Path(os.path.abspath(path)).parent
    ordered = sorted(labels, key=lambda p: (p.frame.split, p.frame.frame, p.step))
    for one, other in pairwise(ordered):
        if (one.frame.frame, one.step) == (other.frame.frame, other.step):
            raise UserError(
                f"{shown(path)}: {one.frame.frame} has two labels of step {one.step:+d}; give each step once"
            )
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for p in ordered:
            files = [
                Path(os.path.relpath(os.path.abspath(f), folder)).as_posix()
                for f in (p.label, p.image, p.confidence_map)
            ]
            writer.writerow([p.frame.frame, p.source.frame, p.step, *files, f"{p.confidence:.4f}", f"{p.known:.4f}"])


def read_propagated(path: str | Path, index: Index) -> list[PropagatedLabel]:
    """The labels of ``propagated.csv``; `index` is the prepared index that they were made from.

    Raises:
        UserError: the file is missing or malformed, names frames that `index` does not know, pairs frames that are not
            `step` frames of one video apart, or a frame has two labels of one step.
    """
    absolute = Path(os.path.abspath(path))
    if not absolute.is_file():
        raise UserError(f"no file {path}; run the stage propagate first")
    labels, seen = [], set()
    with absolute.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [c for c in COLUMNS if c not in (rows.fieldnames or [])]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; run the stage propagate again")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            try:
                step, confidence, known = int(row["step"]), float(row["confidence"]), float(row["known"])
                frame, source = row["frame"], row["source_frame"]
                files = [absolute.parent / row[c] for c in ("label", "image", "confidence_map")]
                good = all(row[c] for c in COLUMNS) and all(0 <= v <= 1 for v in (confidence, known))
            except (TypeError, ValueError):
                good = False
            if not good or math.isnan(confidence + known):
                raise UserError(f"{where}: malformed row; run the stage propagate again")
            unknown = [n for n in (frame, source) if n not in index.by_name]
            if unknown:
                raise UserError(f"{where}: the prepared index has no frame {unknown[0]}; run the stage propagate again")
            target, labelled = index.by_name[frame], index.by_name[source]
            if step == 0 or index.neighbour(labelled, step) is not target:
                raise UserError(
                    f"{where}: {frame} is not {step:+d} frames from {source}; run the stage propagate again"
                )
            if (frame, step) in seen:
                raise UserError(f"{where}: {frame} has two labels of step {step:+d}; run the stage propagate again")
            seen.add((frame, step))
            labels.append(
                PropagatedLabel(target, labelled, step, files[0], _image(files[1], target), files[2], confidence, known)
            )
    return labels


def _image(path: Path, frame: Frame) -> Path:
    """The frame's own path where `path` is the same file written in another way."""
    same = os.path.normpath(path) == os.path.normpath(os.path.abspath(frame.image))
    return frame.image if same else Path(os.path.normpath(path))


def for_training(
    labels: Iterable[PropagatedLabel],
    sources: Collection[str],
    steps: Collection[int] | None = None,
    least_known: float = 0.0,
    over_labelled: bool = False,
) -> list[Frame]:
    """The propagated labels that a training may use, as labelled frames in the order of the index.

    Args:
        sources: names of the frames whose labels the training has: labels of other frames would leak in.
        steps: which steps; None: all that there are.
        least_known: share of labelled pixels below which a label is left out, 0 to 1.
        over_labelled: also those of frames that are among `sources` themselves.

    Raises:
        UserError: none is left.
    """
    labels = list(labels)
    chosen = [
        p
        for p in labels
        if p.source.frame in sources
        and (steps is None or p.step in steps)
        and p.known >= least_known
        and (over_labelled or p.frame.frame not in sources)
    ]
    if not chosen:
        raise UserError(
            f"none of {len(labels)} propagated labels is from one of the {len(sources)} labelled frames with these "
            "steps and this share of known pixels; choose others, or run the stage propagate for these frames"
        )
    return [p.as_frame() for p in chosen]
