"""From pictures or a video to label pictures, overlays, depth pictures and a film, all in one folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from semivid.data.classes import Classes
from semivid.depth.disparity import encode_disparity, normalise_disparity
from semivid.errors import UserError, raise_all
from semivid.evaluation.film import Film, Source
from semivid.evaluation.pictures import disparity_colours, overlay
from semivid.pipeline.artifacts import replacing, write_json
from semivid.training.progress import Progress

if TYPE_CHECKING:  # else it imports torch, which takes seconds, before bad input is told
    from semivid.evaluation.segmenter import Segmenter

FOLDERS = {"labels": ("labels",), "colours": ("colours",), "overlays": ("overlays",), "depth": ("disparity", "depth")}
FILM, RECORD = "overlays.mp4", "inference.json"
KINDS = (*FOLDERS, "film")
PICTURES_PER_SECOND = 10.0  # of a film of single pictures


def possible_kinds(source: Source, segmenter: Segmenter) -> set[str]:
    """What of `KINDS` can be written: depth needs a network for it, a film more than one picture."""
    without = {"depth"} if segmenter.disparity is None else set()
    return set(KINDS) - without - ({"film"} if source.total == 1 and source.fps is None else set())


def segment_files(
    segmenter: Segmenter,
    source: Source,
    out: Path,
    classes: Classes,
    *,
    kinds: Collection[str] = KINDS,
    batch_size: int = 1,
    fps: float | None = None,
    record: dict | None = None,
) -> int:
    """Segment `source` and write `out` in one piece: after a failure or a kill the folder is as it was before.

    Below `out`: ``labels/NAME.png`` (train ids), ``colours/NAME.png``, ``overlays/NAME.jpg``, ``disparity/NAME.png``
    (16 bit, large = near, normalised per picture) and ``depth/NAME.png`` (its colours), ``overlays.mp4``, and
    ``inference.json``: `record` and what was done.

    Args:
        segmenter: see :class:`Segmenter`.
        source: what to segment.
        out: folder; replaced if it exists.
        classes: names and colours by train id.
        kinds: what to write, of `KINDS`; what is not possible (see `possible_kinds`) is left out.
        batch_size: pictures per forward pass.
        fps: of the film; None: the video's own, or 10 for pictures.
        record: further entries of ``inference.json``.

    Returns:
        How many pictures were segmented. ``source.faults`` tells which could not be read.

    Raises:
        UserError: no picture could be read (a line for each), no film can be written, or disparity is not finite.
    """
    kinds = possible_kinds(source, segmenter) & set(kinds)
    fps = fps or source.fps or PICTURES_PER_SECOND
    done, progress = 0, Progress("inference", 0, source.total) if source.total else None
    with replacing(out) as folder:
        folder.mkdir()
        for kind in kinds - {"film"}:
            for name in FOLDERS[kind]:
                (folder / name).mkdir()
        film = Film(folder / FILM, fps) if "film" in kinds else None
        waiting: list[Future[np.ndarray | None]] = []

        def finish() -> None:
            """Wait for the pictures that are being written, and film them."""
            for future in waiting:
                overlaid = future.result()
                if film is not None:
                    film.write(overlaid)
            waiting.clear()

        # Pictures are compressed while the network works on the next ones.
        with ThreadPoolExecutor(2) as pool, film or nullcontext():
            for chunk in _batches(source, batch_size):
                found = segmenter([picture for _, picture in chunk])
                finish()
                waiting += [
                    pool.submit(write_results, folder, name, picture, labels, disparity, classes, kinds)
                    for (name, picture), (labels, disparity) in zip(chunk, found, strict=True)
                ]
                done += len(chunk)
                if progress:
                    progress.advance(done)
            finish()
        if progress:
            progress.close()
        if not done:
            raise_all(source.faults)
        made = {"pictures": done, "written": sorted(kinds), "batch_size": batch_size, "left_out": source.faults}
        made |= {"size": list(segmenter.size), "classes": list(classes.names)} | ({"fps": fps} if film else {})
        write_json(folder / RECORD, (record or {}) | made)
    return done


def write_results(
    out: Path,
    name: str,
    picture: np.ndarray,
    labels: np.ndarray,
    disparity: np.ndarray | None,
    classes: Classes,
    kinds: Collection[str],
) -> np.ndarray | None:
    """Write one picture's results below `out`; returns its overlay, uint8 (H, W, 3), if that or a film is wanted.

    picture: uint8 (H, W, 3). labels: uint8 (H, W). disparity: float32 (H, W), or None if `kinds` do without.
    """
    mixed = overlay(picture, labels, classes) if {"overlays", "film"} & set(kinds) else None
    if "labels" in kinds:
        _write(out / "labels" / f"{name}.png", labels)
    if "colours" in kinds:
        _write(out / "colours" / f"{name}.png", classes.paint(labels))
    if "overlays" in kinds:
        _write(out / "overlays" / f"{name}.jpg", mixed)
    if "depth" in kinds:
        _write(out / "disparity" / f"{name}.png", encode_disparity(disparity))
        _write(out / "depth" / f"{name}.png", disparity_colours(normalise_disparity(disparity)))
    return mixed


def _batches(source: Source, size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    pictures = iter(source)
    while chunk := list(islice(pictures, size)):
        yield chunk


def _write(path: Path, picture: np.ndarray) -> None:
    """A picture, RGB, grey or 16-bit grey; .jpg in quality 90. Not one by one to the disk: the folder is replaced."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else [])
    if not done:
        raise UserError(f"{path.name}: a picture of {picture.shape[1]}x{picture.shape[0]} cannot be written")
    path.write_bytes(data.tobytes())
