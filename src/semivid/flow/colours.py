"""Pictures of flow: the Middlebury colour wheel, and the HSV picture of the flow-consistency reference."""

import cv2
import numpy as np

from semivid.flow.files import check_flow

# Lengths of the wheel's six arcs between red, yellow, green, cyan, blue, magenta and red, by perceptual similarity:
# Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011 (colour code after Scheffler).
_ARCS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0))


def _make_wheel() -> np.ndarray:
    """The 55 colours, float32 (55, 3) RGB 0 to 255 in whole steps."""
    colours = []
    for arc, start, end in zip(_ARCS, _CORNERS, _CORNERS[1:], strict=False):
        for k in range(arc):
            step = 255 * k // arc
            colours.append([a if a == b else a + step if b > a else a - step for a, b in zip(start, end, strict=True)])
    return np.array(colours, np.float32)


_WHEEL = _make_wheel()


def flow_colours(flow: np.ndarray, valid: np.ndarray | None = None, largest: float | None = None) -> np.ndarray:
    """The Middlebury picture: the direction as colour, the length as saturation (0 = white).

    Args:
        flow: float (H, W, 2) pixels.
        valid: bool (H, W); other pixels become black, as do those that are not finite.
        largest: length that gets the full colour; longer flow is darkened. None: the longest valid one, so that
            pictures of different pairs do not compare.

    Returns:
        uint8 RGB (H, W, 3).
    """
    flow = check_flow(flow).astype(np.float32)
    valid = np.isfinite(flow).all(-1) if valid is None else np.isfinite(flow).all(-1) & valid
    u, v = np.where(valid, flow[..., 0], 0), np.where(valid, flow[..., 1], 0)
    length = np.hypot(u, v)
    largest = float(length.max()) if largest is None else largest
    share = (length / max(largest, 1e-9))[..., None]
    place = (np.arctan2(-v, -u) / np.float32(np.pi) + 1) / 2 * (len(_WHEEL) - 1)
    lower = place.astype(np.intp)
    part = (place - lower)[..., None]
    colour = ((1 - part) * _WHEEL[lower] + part * _WHEEL[(lower + 1) % len(_WHEEL)]) / 255
    colour = np.where(share <= 1, 1 - share * (1 - colour), 0.75 * colour)
    return (255 * colour * valid[..., None]).astype(np.uint8)


def flow_hsv(flow: np.ndarray) -> np.ndarray:
    """The reference's picture (specification flow_consistency, 3): hue = angle, brightness = length.

    H = angle / 2 in degrees, S = 255, V = length scaled by its minimum and maximum in this image to 0..255 (0 if it is
    the same everywhere), as OpenCV's 8-bit HSV.

    Args:
        flow: float (H, W, 2) pixels, finite.

    Returns:
        uint8 RGB (H, W, 3).
    """
    flow = check_flow(flow).astype(np.float32)
    length, angle = cv2.cartToPolar(flow[..., 0].copy(), flow[..., 1].copy(), angleInDegrees=True)
    span = float(length.max() - length.min())
    value = (length - length.min()) * (255 / span) if span else np.zeros_like(length)
    hue = (angle / 2).astype(np.uint8) % 180
    hsv = np.dstack([hue, np.full_like(hue, 255), value.astype(np.uint8)])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
