"""How good a flow is: warping error, forward-backward check, end-point error, labels carried along.

Images are uint8 (H, W, 3), flows float (H, W, 2) in pixels: u to the right, v down. A flow on the pixels x of one
image leads to the targets x + flow(x) in the other one.
"""

import cv2
import numpy as np

from semivid.errors import UserError
from semivid.flow.files import check_flow

VOID = 255
# Sundaram, Brox, Keutzer: Dense point trajectories by GPU-accelerated large displacement optical flow, ECCV 2010, eq. 5
RELATIVE, ABSOLUTE = 0.01, 0.5


def check_pair(first: np.ndarray, second: np.ndarray) -> None:
    """UserError unless both are images uint8 (H, W, 3) of one size."""
    for name, image in (("first", first), ("second", second)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"the {name} image of a flow pair is {found}: give uint8 RGB (H, W, 3), values 0 to 255")
        if not image.size:
            raise UserError(f"the {name} image of a flow pair is empty: give at least one pixel")
    if first.shape != second.shape:
        (h, w), (h2, w2) = first.shape[:2], second.shape[:2]
        raise UserError(
            f"the images of a flow pair have different sizes, {w}x{h} and {w2}x{h2}: bring them to one size"
        )


def _matching(flow: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    flow = check_flow(flow)
    if flow.shape[:2] != tuple(shape[:2]):
        (h, w), (h2, w2) = flow.shape[:2], shape[:2]
        raise UserError(f"a flow of {w}x{h} does not fit {what} of {w2}x{h2}: resize it with resize_flow")
    if not np.isfinite(flow).all():
        raise UserError("a flow has values that are infinite or not a number: estimate it again, or mask these pixels")
    return flow.astype(np.float32, copy=False)


def targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each pixel leads: x float32 (H, W), y float32 (H, W), inside bool (H, W).

    inside: 0 <= x <= W - 1 and 0 <= y <= H - 1, so that bilinear sampling needs nothing beyond the border.
    """
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return x, y, (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`image` (H, W) or (H, W, C), as float32, bilinearly at x, y float32 (h, w); the border is replicated."""
    return cv2.remap(image.astype(np.float32, copy=False), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def warping_error(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> tuple[float, float]:
    """Mean absolute difference between the first image and the second one warped back (specification pyflow, 10).

    Bilinear, border replicated, mean over the three channels. Low error does not prove a right flow: an ambiguous match
    costs nothing, and an occluded pixel is best served by a wrong one.

    Args:
        first, second: uint8 (H, W, 3).
        flow: float (H, W, 2), from the first to the second.

    Returns:
        (all pixels, pixels whose target lies inside the image; nan if none does), in grey levels 0 to 255.

    Raises:
        UserError: sizes or types differ, or the flow is not finite.
    """
    check_pair(first, second)
    x, y, inside = targets(_matching(flow, first.shape, "images"))
    difference = np.abs(first.astype(np.float32) - sample(second, x, y)).mean(-1, dtype=np.float64)
    return float(difference.mean()), float(difference[inside].mean()) if inside.any() else float("nan")


def consistency(
    forward: np.ndarray, backward: np.ndarray, relative: float = RELATIVE, absolute: float = ABSOLUTE
) -> np.ndarray:
    """Pixels of the first frame whose flow is taken back by the flow of the second one.

    ``|f(x) + b(x + f(x))|^2 < relative (|f(x)|^2 + |b(x + f(x))|^2) + absolute`` and x + f(x) inside the image, b
    sampled bilinearly (Sundaram et al., ECCV 2010, equation 5). Where it fails the pixel is occluded, leaves the
    image, or one of the flows is wrong.

    Args:
        forward: float (H, W, 2), first to second, on the pixels of the first.
        backward: float (H, W, 2), second to first, on the pixels of the second.

    Returns:
        bool (H, W), on the pixels of the first.

    Raises:
        UserError: sizes differ or values are not finite.
    """
    forward = _matching(forward, np.shape(forward), "itself")
    backward = _matching(backward, forward.shape, "the forward flow")
    x, y, inside = targets(forward)
    back = sample(backward, x, y)
    gap = ((forward + back) ** 2).sum(-1)
    return inside & (gap < relative * ((forward**2).sum(-1) + (back**2).sum(-1)) + absolute)


def end_point_error(flow: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Distance of a flow from the true one.

    Args:
        flow, truth: float (H, W, 2) pixels; several flows may be stacked, (..., H, W, 2).
        valid: bool (..., H, W): where to measure; None = everywhere.

    Returns:
        mean and median distance in pixels; outliers: share of pixels with more than 3 pixels and more than 5 % of the
        true length ("Fl" of KITTI 2015; Menze and Geiger, CVPR 2015), 0 to 1.

    Raises:
        UserError: shapes differ, no pixel is valid, or a value there is not finite.
    """
    flow, truth = np.asarray(flow), np.asarray(truth)
    valid = np.ones(truth.shape[:-1], bool) if valid is None else np.asarray(valid, bool)
    if flow.shape != truth.shape or valid.shape != truth.shape[:-1] or truth.shape[-1:] != (2,):
        raise UserError(
            f"end-point error of {flow.shape} against {truth.shape}, valid {valid.shape}: give flows of one shape"
        )
    if not valid.any():
        raise UserError("end-point error: no pixel has a true flow; take another pair")
    true = truth[valid].astype(np.float64)
    distance = np.linalg.norm(flow[valid] - true, axis=-1)
    if not np.isfinite(distance).all():
        raise UserError("end-point error: a flow has values that are infinite or not a number; estimate it again")
    outlier = (distance > 3) & (distance > 0.05 * np.linalg.norm(true, axis=-1))
    return {
        "mean": float(distance.mean()),
        "median": float(np.median(distance)),
        "outliers": float(outlier.mean()),
    }


def chain(flow: np.ndarray, following: np.ndarray) -> np.ndarray:
    """The flow over two steps: x -> x + flow(x), then on by `following`, sampled bilinearly there.

    Args:
        flow: float (H, W, 2), on the pixels of the frame at which the chain starts.
        following: float (H, W, 2), on the pixels of the frame to which `flow` leads.

    Returns:
        float32 (H, W, 2). A path that leaves the image goes on as the nearest border pixel does.
    """
    flow = _matching(flow, np.shape(flow), "itself")
    x, y, _ = targets(flow)
    return flow + sample(_matching(following, flow.shape, "the flow before it"), x, y)


def carry_labels(labels: np.ndarray, flow: np.ndarray, reliable: np.ndarray | None = None) -> np.ndarray:
    """The label map of one frame carried to another one, by looking back: ``carried(x) = labels(x + flow(x))``.

    The flow leads from the frame that gets the labels to the one that has them: to carry labels of frame t to t + 1
    take the backward flow of t + 1. Every pixel gets one label, without holes. Over several frames chain the flows
    first (:func:`chain`), so that labels are rounded to whole pixels once.

    Args:
        labels: uint8 (H, W) of the labelled frame, 255 = void.
        flow: float (H, W, 2), on the pixels of the frame to be labelled.
        reliable: bool (H, W), on the same pixels: others become void, e.g. ``consistency(flow, ...)``. None: all are.

    Returns:
        uint8 (H, W): the label at the nearest pixel; void where the target lies outside the image (beyond half a
        pixel from the outermost pixel centres) or the flow is not reliable.

    Raises:
        UserError: shapes or types differ, or the flow is not finite.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8 or labels.ndim != 2:
        raise UserError("labels to be carried along a flow are a uint8 array (H, W): give the map of train ids")
    flow = _matching(flow, labels.shape, "labels")
    if reliable is not None and (np.shape(reliable) != labels.shape or np.asarray(reliable).dtype != bool):
        raise UserError(f"reliable pixels are a bool array {labels.shape} like the labels; give such a mask")
    height, width = labels.shape
    x, y, _ = targets(flow)
    column, row = np.floor(x + 0.5), np.floor(y + 0.5)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside = inside if reliable is None else inside & reliable
    carried = np.full(labels.shape, VOID, np.uint8)
    carried[inside] = labels[row[inside].astype(np.intp), column[inside].astype(np.intp)]
    return carried
