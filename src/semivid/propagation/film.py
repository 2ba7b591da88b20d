"""Pictures and a short film of what one labelled frame gives its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from semivid.data.classes import VOID, Classes
from semivid.errors import UserError
from semivid.evaluation.film import Film
from semivid.evaluation.pictures import contact_sheet, overlay
from semivid.pipeline.artifacts import replacing

RIGHT, WRONG = (60, 160, 75), (215, 40, 40)  # green and red


def mistakes(image: np.ndarray, label: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The picture in grey, wrong labels red; black where there is no label; uncoloured where the truth is void.

    Args:
        image: uint8 (H, W, 3). label, truth: uint8 (H, W), 255 = void.

    Returns:
        uint8 (H, W, 3).
    """
    if image.shape[:2] != label.shape or label.shape != truth.shape:
        raise UserError(f"picture {image.shape[:2]}, label {label.shape} and truth {truth.shape} differ in size")
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    judged = (truth != VOID) & (label != VOID)
    tint = np.where((label == truth)[..., None], RIGHT, WRONG)
    shown = np.where(judged[..., None], 0.5 * grey + 0.5 * tint, grey)
    return np.where((label == VOID)[..., None], 0, shown).round().astype(np.uint8)


def rows_of(
    image: np.ndarray, labels: Mapping[str, np.ndarray], classes: Classes, truth: np.ndarray | None
) -> list[tuple[np.ndarray, str]]:
    """(picture, name) of one target frame: per way its label over the picture and, given the truth, its mistakes."""
    shown = [(overlay(image, label, classes), name) for name, label in labels.items()]
    if truth is not None:
        shown += [(mistakes(image, label, truth), f"{name}: right, wrong, void") for name, label in labels.items()]
        shown.append((overlay(image, truth, classes), "true labels"))
    return shown


def strip(
    images: Mapping[int, np.ndarray],
    labels: Mapping[int, Mapping[str, np.ndarray]],
    classes: Classes,
    truths: Mapping[int, np.ndarray] | None = None,
    width: int = 240,
) -> np.ndarray:
    """One sheet: a column per step in order of time, a row per way, one of mistakes per way and one of the truth.

    Args:
        images: {step: uint8 (H, W, 3)}; step 0 is the labelled frame. labels: {step: {way: uint8 (H, W)}}, the same
            ways in every step. truths: {step: uint8 (H, W)}; a step without truth shows its picture there.
        width: of one picture in pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: no steps, or steps with different ways.
    """
    steps = sorted(labels)
    _same_ways(labels, steps)
    columns = []
    for step in steps:
        cells = rows_of(images[step], labels[step], classes, None)
        if truths is not None:
            truth = truths.get(step, np.full(images[step].shape[:2], VOID, np.uint8))
            cells = rows_of(images[step], labels[step], classes, truth)
        columns.append([(picture, f"{step:+d} {name}" if step else f"labelled, {name}") for picture, name in cells])
    cells = [column[row] for row in range(len(columns[0])) for column in columns]
    return contact_sheet([p for p, _ in cells], [c for _, c in cells], len(steps), width)


def write_film(
    path: Path,
    images: Mapping[int, np.ndarray],
    labels: Mapping[int, Mapping[str, np.ndarray]],
    classes: Classes,
    truths: Mapping[int, np.ndarray] | None = None,
    fps: float = 3.0,
    width: int = 320,
) -> None:
    """An mp4 of the same pictures, one frame per step in order of time, the ways beside each other; atomic.

    Args:
        images, labels, truths: as in :func:`strip`. fps: steps per second, above 0. width: of one picture in pixels.

    Raises:
        UserError: no steps, steps with different ways, fps not above 0, or the film cannot be written.
    """
    steps = sorted(labels)
    _same_ways(labels, steps)
    if not fps > 0:
        raise UserError(f"fps of the film of propagation is {fps}: give a number above 0")
    ways = list(labels[steps[0]])
    with replacing(path) as temporary:
        # the encoder goes by the name's ending, which the temporary has not
        named = temporary.with_name(f"{temporary.name}.mp4")
        try:
            with Film(named, fps) as film:
                for step in steps:
                    truth = (
                        None if truths is None else truths.get(step, np.full(images[step].shape[:2], VOID, np.uint8))
                    )
                    cells = rows_of(images[step], labels[step], classes, truth)
                    captions = [f"{step:+d} {name}" if step else f"labelled, {name}" for _, name in cells]
                    film.write(contact_sheet([p for p, _ in cells], captions, len(ways), width))
            named.rename(temporary)
        finally:
            named.unlink(missing_ok=True)


def _same_ways(labels: Mapping[int, Mapping[str, np.ndarray]], steps: Sequence[int]) -> None:
    if not steps:
        raise UserError("no propagated label to be shown; propagate at least one step")
    if any(list(labels[s]) != list(labels[steps[0]]) for s in steps):
        raise UserError("the steps of a strip show different ways of propagation; give the same ones for each")
