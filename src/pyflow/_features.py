"""What is matched instead of bare intensities: brightness, its gradient and colour differences."""

import numpy as np

from pyflow._filters import DERIVATIVE, along_columns, along_rows

GREY = (0.299, 0.587, 0.114)


def features(image: np.ndarray, bgr: bool = False) -> np.ndarray:
    """Feature planes of an image of planes ``(channels, height, width)`` (specification, section 3).

    Args:
        image: float64; RGB, one channel, or any other number of channels.
        bgr: weigh three channels as blue, green, red.

    Returns:
        Five planes for three channels (grey, its two derivatives, c1 - c0, c1 - c2), three for one, else `image`.
    """
    if len(image) not in (1, 3):
        return image
    if len(image) == 1:
        grey = image
    else:
        red, green, blue = GREY[::-1] if bgr else GREY
        grey = (red * image[0] + green * image[1] + blue * image[2])[None]
    planes = [grey, along_rows(grey, DERIVATIVE), along_columns(grey, DERIVATIVE)]
    if len(image) == 3:
        planes += [image[1:2] - image[:1], image[1:2] - image[2:]]
    return np.concatenate(planes)
