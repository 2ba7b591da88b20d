"""The published chain of label propagation, byte for byte (specification sdc_propagation, sections 3 and 5).

Every step warps what the step before has written as 8-bit PNG. Labels and colours are taken from the nearest pixel, the
picture bilinearly in the first step and from the nearest pixel in all others; values are cut off, not rounded; nothing
is ever void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from semivid.errors import UserError, shown
from semivid.flow.checks import targets
from semivid.flow.files import check_flow
from semivid.pipeline.artifacts import replacing
from semivid.propagation.compose import nearest

# [frame before the source, source, target], uint8 BGR (H, W, 3) as the published networks want them -> (H, W, 2)
BgrNetwork = Callable[[Sequence[np.ndarray]], np.ndarray]
_SUFFIX = {
    "image": ("leftImg8bit", "leftImg8bit"),
    "label": ("gtFine", "gtFine_labelIds"),
    "colour": ("gtFineColor", "gtFine_color"),
}


def bilinear(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """float32 `image` (H, W, C) at x + flow(x): corners clamped to the picture, weights from the unclamped fraction.

    image: uint8 or float (H, W, C). flow: float (H, W, 2) pixels.
    """
    x, y, _ = targets(check_flow(flow).astype(np.float32, copy=False))
    height, width = image.shape[:2]
    left, top = np.floor(x), np.floor(y)
    a, b = (x - left)[..., None], (y - top)[..., None]
    c0, c1 = (np.clip(left + i, 0, width - 1).astype(np.intp) for i in (0, 1))
    r0, r1 = (np.clip(top + j, 0, height - 1).astype(np.intp) for j in (0, 1))
    image = image.astype(np.float32)
    return (
        (1 - a) * (1 - b) * image[r0, c0] + a * (1 - b) * image[r0, c1]
        + (1 - a) * b * image[r1, c0] + a * b * image[r1, c1]
    )  # fmt: skip


def carry_once(array: np.ndarray, flow: np.ndarray, smooth: bool) -> np.ndarray:
    """One warp of the chain: uint8 in, uint8 out.

    Args:
        array: uint8 (H, W) label ids or (H, W, 3) picture or colours.
        flow: float (H, W, 2) pixels, on the pixels of the result.
        smooth: bilinear, cut off to whole values: for a picture in its first step. Else the nearest pixel's.
    """
    if smooth:
        return np.clip(bilinear(array, flow), 0, 255).astype(np.uint8)
    x, y, _ = targets(check_flow(flow).astype(np.float32, copy=False))
    return nearest(array, x, y)


@dataclass(frozen=True)
class Pass:
    """One warp of the chain; numbers are offsets from the labelled frame. what: image, label or colour.

    step: the result. frames: what the network sees, [before the source, source, target]. source: what is warped.
    """

    what: str
    step: int
    frames: tuple[int, int, int]
    source: int


def passes(steps: int, colours: bool = False) -> Iterator[Pass]:
    """The reference's passes in their order, 1 to `steps` frames both ways; colours: with the maps of colours."""
    for k in range(1, steps + 1):
        for what, sign in [(w, s) for s in (1, -1) for w in ("image", "label")] + [
            ("colour", 1),
            ("colour", -1),
        ] * colours:
            yield Pass(what, sign * k, (-sign if k == 1 else 0, sign * (k - 1), sign * k), sign * (k - 1))


def frame_file(what: str, sequence: bool, split: str, city: str, clip: str, position: int) -> Path:
    """A file's path below the reference's source or target folder. sequence: a frame of the video (pictures only)."""
    folder, suffix = _SUFFIX[what]
    folder = f"{folder}_sequence" if sequence else folder
    return Path(folder, split, city, f"{city}_{clip}_{position:06d}_{suffix}.png")


def propagate_files(
    source: Path, target: Path, split: str, city: str, clip: str, position: int, network: BgrNetwork,
    steps: int = 3, colours: bool = False,
) -> list[Path]:  # fmt: skip
    """The reference's driver for one labelled frame: Cityscapes files in, Cityscapes files out.

    Unlike the reference each motion is computed once, only what is warped is read, and colours are needed only if they
    are asked for. The labelled frame's own files are copied too. A direction ends where a frame is missing.

    Args:
        source: holds leftImg8bit, leftImg8bit_sequence and gtFine. target: gets leftImg8bit, gtFine (and gtFineColor).
        position: number of the labelled frame.
        steps: how many frames both ways.

    Returns:
        The files written, without the copies, in the reference's order.

    Raises:
        UserError: the labelled frame's own files are missing or damaged.
    """
    name = (split, city, clip)
    motions: dict[int, np.ndarray | None] = {}

    def frame(offset: int, step: int) -> np.ndarray | None:
        # the labelled frame itself is another file in the first step than later
        path = source / frame_file("image", abs(step) > 1 or offset != 0, *name, position + offset)
        return _read(path) if path.is_file() else None

    def motion(one: Pass) -> np.ndarray | None:
        if one.step not in motions:
            before = motions.get(one.source, True) if one.source else True
            images = [frame(offset, one.step) for offset in one.frames]
            gone = before is None or any(i is None for i in images)
            motions[one.step] = None if gone else network(images)
        return motions[one.step]

    for what in ("image", "label", *(["colour"] if colours else [])):
        own = source / frame_file(what, False, *name, position)
        if what == "colour":  # beside the labels in the source, in a folder of its own in the target
            own = source / "gtFine" / split / city / own.name
        _write(target / frame_file(what, False, *name, position), _read(own))
    written = []
    for one in passes(steps, colours):
        flow = motion(one)
        if flow is None:
            continue
        array = _read(target / frame_file(one.what, False, *name, position + one.source))
        path = target / frame_file(one.what, False, *name, position + one.step)
        _write(path, carry_once(array, flow, smooth=one.what == "image" and abs(one.step) == 1))
        written.append(path)
    return written


def _read(path: Path) -> np.ndarray:
    flags = cv2.IMREAD_GRAYSCALE if path.stem.endswith("labelIds") else cv2.IMREAD_COLOR
    array = cv2.imread(str(path), flags) if path.is_file() else None
    if array is None:
        raise UserError(f"{shown(path)}: missing or not a picture; correct the folder of the Cityscapes files")
    return array


def _write(path: Path, array: np.ndarray) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", array)[1].tobytes())
