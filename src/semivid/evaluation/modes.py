"""How a trained network looks at a frame: whole or in sliding windows, at several scales, mirrored.

Every mode makes of a `predict` (logits float (B, C, H, W) of RGB frames float (B, 3, H, W) in [0, 1]) another one, for
any network and for everything that takes a `predict`: `semivid.evaluation.inference.segment`, `score_video`, the
`Segmenter`. Logits are averaged, not probabilities (nvidia_segmentation.md, section 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from semivid.errors import UserError
from semivid.evaluation.inference import flip_averaged
from semivid.training.runtime import as_float

Predict = Callable[[Tensor], Tensor]
Box = tuple[int, int, int, int]
MODES = ("whole", "sliding", "pooling")
STRIDES = ("exact", "reference")
POOLING_SCALES = (0.5, 1.0, 2.0)


def evaluation_mode(
    predict: Predict,
    mode: str = "whole",
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlap: float = 1 / 3,
    window_batch: int = 4,
    stride: str = "exact",
) -> Predict:
    """A `predict` that averages the logits of a frame's scaled and mirrored copies, at the frame's size.

    whole      each copy through the network at once; its logits are resized bilinearly
    sliding    each copy in overlapping windows (:func:`sliding`) of int(tile max(scale, 1)) pixels
    pooling    each copy at once, at the scales 0.5, 1 and 2 only: twice as large logits are pooled, 2 x 2, and half as
               large ones doubled bilinearly (the reference feeds this mode images that it forgot to normalise)

    Args:
        predict: of one network; its logits have the size of its images.
        mode: one of the above.
        scales: factors of the frame's sides; a copy has int(W s) x int(H s) pixels (:func:`resized`).
        flip: average with the mirrored copies.
        tile, overlap, window_batch, stride: see :func:`sliding`; of no meaning in the other modes, where `tile` must
            be left out.

    Returns:
        A `predict` with logits (B, C, H, W) of images (B, 3, H, W).

    Raises:
        UserError: for what cannot be, here; for a network whose logits are of another size, when it is used.
    """
    if mode not in MODES:
        raise UserError(f"evaluation: no mode {mode!r}; take one of {', '.join(MODES)}")
    if not scales or not all(0 < s < math.inf for s in scales):
        raise UserError(f"evaluation: scales {list(scales)}; give one or more numbers above 0")
    if mode == "pooling" and (wrong := [s for s in scales if s not in POOLING_SCALES]):
        raise UserError(f"evaluation: scale {wrong[0]} cannot be pooled; take 0.5, 1 and 2, or mode whole")
    if (mode == "sliding") != (tile is not None):
        raise UserError(
            "evaluation: mode sliding needs the side of its windows; give tile"
            if tile is None
            else f"evaluation: mode {mode} has no windows; leave tile out, or take mode sliding"
        )
    predict = _checked(predict)

    def at(scale: float) -> Predict:
        looked = predict
        if mode == "sliding":
            side = int(tile * max(scale, 1))
            looked = sliding(predict, side, overlap, window_batch=window_batch, stride=stride)
        return flip_averaged(looked) if flip else looked

    looks = [(scale, at(scale)) for scale in scales]

    def averaged(images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        total = 0.0
        for scale, look in looks:
            size = int(height * scale), int(width * scale)
            if not all(size):
                raise UserError(f"evaluation: nothing is left of a frame of {width}x{height} at scale {scale}")
            logits = look(resized(images, size))
            if mode == "pooling" and scale == 2:
                logits = F.avg_pool2d(logits, 2)
            total = total + _bilinear(logits, (height, width))
        return total / len(looks)

    return averaged


def sliding(
    predict: Predict, tile: int, overlap: float = 1 / 3, *, window_batch: int = 4, stride: str = "exact"
) -> Predict:
    """A `predict` that looks at overlapping windows; where they overlap, a pixel has the mean of its logits.

    A frame smaller than the window is one window of its own size. The windows of all images of a batch go through the
    network `window_batch` at a time, so that memory does not grow with the frame (but for the logits).

    Args:
        predict: of one network.
        tile: side of the square windows in pixels.
        overlap, stride: see :func:`windows`.
        window_batch: windows per forward pass.

    Raises:
        UserError: a tile, an overlap or a batch that cannot be.
    """
    if window_batch < 1:
        raise UserError(f"evaluation: window_batch {window_batch}; give 1 or more")
    windows(tile, tile, tile, overlap, stride)  # tells now what cannot be
    predict = _checked(predict)

    def slid(images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W)."""
        count, _, height, width = images.shape
        boxes = windows(width, height, tile, overlap, stride)
        places = [(i, box) for i in range(count) for box in boxes]
        total, seen = None, images.new_zeros(height, width)
        for x1, y1, x2, y2 in boxes:
            seen[y1:y2, x1:x2] += 1
        for start in range(0, len(places), window_batch):
            chunk = places[start : start + window_batch]
            logits = predict(torch.stack([images[i, :, y1:y2, x1:x2] for i, (x1, y1, x2, y2) in chunk]))
            if total is None:
                total = logits.new_zeros(count, logits.shape[1], height, width)
            for (i, (x1, y1, x2, y2)), found in zip(chunk, logits, strict=True):
                total[i, :, y1:y2, x1:x2] += found
        return total / seen

    return slid


def windows(width: int, height: int, tile: int, overlap: float = 1 / 3, stride: str = "exact") -> list[Box]:
    """The windows (x1, y1, x2, y2) that cover a frame, all of one size, column by column from the left.

    Args:
        width, height: of the frame in pixels.
        tile: side of the windows; a side of the frame that is shorter is covered at once.
        overlap: share of a window that the next one covers at least, 0 or more and below 1.
        stride: ``exact``, the smallest whole number of pixels that is not less than tile (1 - overlap), where overlap
            stands for the fraction nearest to it (1/3 for 0.333...); ``reference``, the same in floating point, which
            for a tile of 552 gives 369 and not 368.

    Raises:
        UserError: a size, tile or overlap that cannot be.
    """
    if min(width, height, tile) < 1:
        raise UserError(f"evaluation: windows of {tile} pixels in a frame of {width}x{height}; give 1 or more")
    if not 0 <= overlap < 1:
        raise UserError(f"evaluation: overlap {overlap}; give a share from 0 to below 1")
    if stride not in STRIDES:
        raise UserError(f"evaluation: no stride {stride!r}; take {' or '.join(STRIDES)}")
    share = overlap if stride == "reference" else Fraction(overlap).limit_denominator(1000)
    step = math.ceil(tile * (1 - share))

    def places(side: int) -> list[tuple[int, int]]:
        # Even far shorter than a window, a side has one place.
        ends = [min(k * step + tile, side) for k in range(max(1, math.ceil((side - tile) / step) + 1))]
        return [(max(end - tile, 0), end) for end in ends]

    return [(x1, y1, x2, y2) for x1, x2 in places(width) for y1, y2 in places(height)]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size (H, W), by Pillow's BILINEAR on 8-bit pictures.

    It blurs before it shrinks, which cv2's and torch's bilinear do not; the values are rounded to 1/255. Images of that
    size already are returned as they are.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    # By Pillow itself: its rounding cannot be had elsewhere, and it takes less time than the network by far.
    pictures = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    copies = [np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BILINEAR)) for p in pictures]
    return as_float(torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).to(images.device))


def _bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _checked(predict: Predict) -> Predict:
    def checked(images: Tensor) -> Tensor:
        logits = predict(images)
        if logits.shape[-2:] != images.shape[-2:] or len(logits) != len(images):
            raise UserError(
                f"evaluation: the network gives logits {tuple(logits.shape)} for images {tuple(images.shape)}; they "
                "must be as many and of the same height and width"
            )
        return logits

    return checked
