"""Motion over several frames as one field, and labels and pictures carried along it once.

Motion is backward, as in the reference (specification sdc_propagation, 1): it stands on the pixels of the frame that
gets the labels and leads to the frame that has them, ``carried(x) = label(x + flow(x))``, in pixels, u to the right and
v down. The reference warps the label map of every step again; here the flows of the steps are followed from the target
to the source, and the label map and the picture are warped once, so that nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from semivid.data.classes import VOID
from semivid.errors import UserError
from semivid.flow.checks import consistency, sample, targets
from semivid.flow.files import check_flow

# Where bilinear flow is farther than this from the flow of the nearest pixel, it mixes two motions and leads between
# them: found on the street renderer's true flow (tests/test_propagation.py)
MIXED = 0.25  # pixels
# Grey levels at which a difference between the carried and the real picture takes 1 - 1/e of the confidence
GREY_LEVELS = 20.0


@dataclass(frozen=True)
class Motion:
    """flow: float32 (H, W, 2) pixels, from the frame to be labelled to the one with the label. known: bool (H, W)."""

    flow: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Carried:
    """What a frame gets from its labelled neighbour.

    label: uint8 (H, W), 255 = void. confidence: float32 (H, W) in [0, 1], 0 where void. image: uint8 (H, W, 3), the
    labelled frame's picture warped likewise. known: bool (H, W), where the motion is known.
    """

    label: np.ndarray
    confidence: np.ndarray
    image: np.ndarray
    known: np.ndarray


def within(x: np.ndarray, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool: places that lie on one of the picture's pixels, so at most half a pixel beyond the outermost centres."""
    height, width = shape[:2]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def nearest(array: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`array` (H, W, ...) at the pixels nearest to x, y: halves go up, the border is repeated (specification, 3)."""
    height, width = array.shape[:2]
    row = np.clip(np.floor(y + np.float32(0.5)), 0, height - 1).astype(np.intp)
    return array[row, np.clip(np.floor(x + np.float32(0.5)), 0, width - 1).astype(np.intp)]


def sample_flow(flow: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`flow` (H, W, 2) at x, y: bilinear, but the nearest pixel's where two motions meet (see ``MIXED``)."""
    smooth, sharp = sample(flow, x, y), nearest(flow, x, y)
    return np.where((np.abs(smooth - sharp) > MIXED).any(-1, keepdims=True), sharp, smooth)


def checked(flow: np.ndarray, back: np.ndarray | None = None, valid: np.ndarray | None = None) -> Motion:
    """One step's motion, known where it is valid, leads into the picture, and the flow back takes it back.

    Args:
        flow: float (H, W, 2), on the pixels of the target, leading to the source.
        back: float (H, W, 2), on the pixels of the source, leading to the target; None: no forward-backward check.
        valid: bool (H, W): where `flow` holds; None: everywhere.

    Raises:
        UserError: shapes differ or values are not finite.
    """
    flow = check_flow(flow).astype(np.float32, copy=False)
    x, y, _ = targets(flow)
    known = within(x, y, flow.shape) if back is None else consistency(flow, back)
    return Motion(flow, known if valid is None else known & valid)


def compose(steps: Sequence[Motion]) -> Motion:
    """The motion over several steps: the path of every pixel followed from frame to frame.

    Args:
        steps: the motions between neighbours in the order of the path: the first stands on the pixels of the target,
            the last leads to the source. Each must be known at the pixel nearest to the path.

    Returns:
        The sum along the path, known where every step is and where the path never leaves the picture.

    Raises:
        UserError: no steps, or steps of different sizes.
    """
    if not steps or any(s.flow.shape != steps[0].flow.shape for s in steps):
        sizes = sorted({f"{s.flow.shape[1]}x{s.flow.shape[0]}" for s in steps})
        raise UserError(f"motions to be composed have {len(sizes)} sizes ({', '.join(sizes)}): give frames of one size")
    flow, known = steps[0].flow, steps[0].known
    for step in steps[1:]:
        x, y, _ = targets(flow)
        known = known & nearest(step.known, x, y) & within(x, y, flow.shape)
        flow = flow + sample_flow(step.flow, x, y)
    x, y, _ = targets(flow)
    return Motion(flow, known & within(x, y, flow.shape))


def vote(labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label with the largest bilinear weight at x, y: the argmax of bilinearly sampled one-hot labels.

    Void is a label like others. Of equal weights the one of the nearest pixel wins. The border is repeated.

    Args:
        labels: uint8 (H, W). x, y: float (h, w) pixels.

    Returns:
        label uint8 (h, w); share float32 (h, w): its weight, 0.25 to 1.
    """
    height, width = labels.shape
    left, top = np.floor(x), np.floor(y)
    rows = [np.clip(top + j, 0, height - 1).astype(np.int32) * width for j in (0, 1)]
    columns = [np.clip(left + i, 0, width - 1).astype(np.int32) for i in (0, 1)]
    flat = labels.ravel()
    corners = [flat[rows[j] + columns[i]] for j in (0, 1) for i in (0, 1)]
    label, share = nearest(labels, x, y), np.ones(np.shape(x), np.float32)
    # most pixels lie inside one region; and only the classes of the corners can win, so no map per class is needed
    mixed = (corners[0] != corners[1]) | (corners[0] != corners[2]) | (corners[0] != corners[3])
    corners = [c[mixed] for c in corners]
    a, b = (x - left)[mixed], (y - top)[mixed]
    weights = [(b if j else 1 - b) * (a if i else 1 - a) for j in (0, 1) for i in (0, 1)]
    best = label[mixed]
    most = _weight_of(best, corners, weights)
    for candidate in corners:
        weight = _weight_of(candidate, corners, weights)
        better = weight > most + 1e-6
        best, most = np.where(better, candidate, best), np.where(better, weight, most)
    label[mixed], share[mixed] = best, most
    return label, share


def _weight_of(label: np.ndarray, corners: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    return sum(np.where(other == label, weight, 0) for other, weight in zip(corners, weights, strict=True))


def carry(labels: np.ndarray, image: np.ndarray, motion: Motion, real: np.ndarray, least: float = 0.0) -> Carried:
    """Label map and picture of one frame, seen from another one.

    Confidence is the label's bilinear weight times exp(-d / 20), d the mean absolute difference in grey levels of the
    carried and the real picture over 3 x 3 pixels. Both tell wrong labels from right ones; how well the flows agree
    does not, once they have passed the check (measured on the street renderer).

    Args:
        labels: uint8 (H, W) of the labelled frame, 255 = void. image: its picture, uint8 (H, W, 3).
        motion: on the pixels of the frame to be labelled. real: that frame's picture, uint8 (H, W, 3).
        least: pixels of less confidence become void too, 0 to 1.

    Returns:
        Labels are void where the motion is not known. The carried picture shows the real one there, since a picture
        without void must show something.

    Raises:
        UserError: sizes or types differ, or `least` is out of range.
    """
    shape = motion.flow.shape[:2]
    for what, array, wanted in (
        ("label map", labels, shape),
        ("picture", image, (*shape, 3)),
        ("real", real, (*shape, 3)),
    ):
        if array.dtype != np.uint8 or array.shape != wanted:
            raise UserError(
                f"propagation: the {what} is {array.dtype} {array.shape}, the motion wants uint8 {wanted}: bring "
                "labels, pictures and flow of a video to one size"
            )
    if not 0 <= least <= 1:
        raise UserError(f"propagation: least confidence is {least}: give 0 to 1")
    x, y, _ = targets(motion.flow)
    label, share = vote(labels, x, y)
    moved = sample(image, x, y)
    difference = cv2.blur(np.abs(moved - real).mean(-1), (3, 3), borderType=cv2.BORDER_REPLICATE)
    confidence = (share * np.exp(-difference / GREY_LEVELS)).astype(np.float32)
    given = motion.known & (label != VOID) & (confidence >= least)
    picture = np.where(motion.known[..., None], np.clip(np.rint(moved), 0, 255), real).astype(np.uint8)
    return Carried(np.where(given, label, VOID).astype(np.uint8), np.where(given, confidence, 0), picture, motion.known)
