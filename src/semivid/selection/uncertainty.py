"""Uncertainty sampling (US): choose frames whose depth a small student predicts badly.

Source: Hoyer et al., "Three Ways to Improve Semantic Segmentation with Self-Supervised Depth Estimation"
(CVPR 2021), section 3.4. No label is read: the teacher is the self-supervised depth network.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from semivid.errors import UserError

FAR = 0.07
"""Normalised teacher disparities below this are not trusted: sky, and cars moving along with the camera."""

DILATION = 7
"""Side in pixels of the square by which the untrusted region grows."""

EGO_ROWS = 0.87
"""Share of the image's height from which on rows show the own car and do not count."""


def trusted_pixels(teacher: np.ndarray) -> np.ndarray:
    """Where the teacher's disparity is a fair target.

    Args:
        teacher: float array (H, W), disparity in [0, 1], min-max normalised per image, large = near.

    Returns:
        bool array (H, W): False where the 7x7 dilation of [teacher < 0.07] is set, and in rows from
        floor(0.87 H) on.
    """
    far = (teacher < FAR).astype(np.uint8)
    trusted = cv2.dilate(far, np.ones((DILATION, DILATION), np.uint8)) == 0
    trusted[int(EGO_ROWS * len(teacher)) :] = False
    return trusted


def depth_error(student: np.ndarray, teacher: np.ndarray) -> float:
    """How badly the student reproduces the teacher's disparity of one frame.

    Args:
        student: float array (H, W), disparity (any non-negative scale; the student is trained to [0, 1]).
        teacher: float array (H, W), disparity in [0, 1], min-max normalised per image.

    Returns:
        Mean over all H * W pixels of |log(1 + student) - log(1 + teacher)|, where pixels that are not trusted
        count as 0.

    Raises:
        UserError: the sizes differ.
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"student disparity {student.shape} and teacher disparity {teacher.shape} differ in size: "
            "compute the disparities again at the size of the prepared frames"
        )
    difference = np.abs(np.log1p(student.astype(np.float64)) - np.log1p(teacher.astype(np.float64)))
    return float(np.mean(difference * trusted_pixels(teacher)))


def highest(scores: np.ndarray, candidates: Sequence[int], add: int) -> list[int]:
    """The candidates of the largest scores: a stable descending sort over ascending positions.

    Args:
        scores: float array (N,), one score per frame; only those of the candidates are read.
        candidates: positions that may be chosen, in any order.
        add: number of frames to choose.

    Returns:
        Positions in order of choice, largest score first; on ties the lower position first.

    Raises:
        UserError: fewer than `add` candidates, or a candidate's score is not finite.
    """
    ids = np.array(sorted(set(candidates)), dtype=np.int64)
    if add > len(ids):
        raise UserError(f"cannot choose {add} frames: only {len(ids)} are left; lower the number of labels")
    values = np.asarray(scores, dtype=np.float64)[ids]
    if not np.isfinite(values).all():
        raise UserError(
            f"scores of {np.count_nonzero(~np.isfinite(values))} frames are not finite: the network that "
            "scores them has diverged; train it with a lower learning rate"
        )
    return ids[np.argsort(-values, kind="stable")[:add]].tolist()
