"""Training samples for depth: a frame, its neighbours in time, the camera, and one colour jitter for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from semivid.data.cameras import Camera
from semivid.data.index import Frame, Index
from semivid.data.store import FrameStore
from semivid.data.streams import Sample, Window
from semivid.errors import UserError

OFFSETS = (0, -1, 1)


def frames_with_neighbours(index: Index, split: str, offsets: Sequence[int] = OFFSETS) -> list[Frame]:
    """Frames of `split` whose neighbours at all `offsets` exist (section 2): a snippet's ends drop out.

    Raises UserError if there are none.
    """
    found = [f for f in index.select(split) if all(index.neighbour(f, o) for o in offsets)]
    if not found:
        raise UserError(
            f"no frame of split {split!r} has both neighbours in time, so depth cannot be learnt; give video frames"
        )
    return found


class VideoSamples:
    """Samples of a frame and its neighbours at offsets 0, -1, +1, all in one random window.

    frames  uint8 (3, 3, H, W): offset, channel, row, column
    k       float32 (3, 3): the window's intrinsics in pixels
    jitter  float32 (4,): brightness, contrast, saturation factors and hue shift; (1, 1, 1, 0) = none (section 3.8)
    order   int64 (4,): in which order they are applied
    """

    def __init__(
        self,
        index: Index,
        store: FrameStore,
        cameras: dict[str, Camera],
        crop: tuple[int, int],
        flip: float = 0.0,
        color_jitter: bool = False,
        intrinsics: str = "correct",
    ) -> None:
        self.index, self.store, self.cameras, self.crop = index, store, cameras, crop
        self.flip, self.color_jitter, self.intrinsics = flip, color_jitter, intrinsics

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        frames = [self.index.neighbour(frame, o) for o in OFFSETS]
        images = [self.store.image(f) for f in frames]
        window = Window(images[0].shape[1::-1], self.crop, rng, self.flip)
        if frame.camera not in self.cameras:
            raise UserError(f"{frame.frame}: no camera; set `data.camera` in params.yaml to a camera file")
        camera = self.cameras[frame.camera].window(window.x, window.y, *self.crop, window.flip, self.intrinsics)
        on = self.color_jitter and rng.random() > 0.5
        factors = [*rng.uniform(0.8, 1.2, 3), rng.uniform(-0.1, 0.1)]
        order = rng.permutation(4)
        return {
            "frames": np.stack([window(i).transpose(2, 0, 1) for i in images]),
            "k": camera.matrix().astype(np.float32),
            "jitter": np.array(factors if on else [1, 1, 1, 0], np.float32),
            "order": order.astype(np.int64),
        }


def jitter(frames: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Apply each sample's colour jitter to all its frames (torchvision's ColorJitter with given factors).

    frames float (B, F, 3, H, W) in [0, 1]; factors (B, 4); order (B, 4). Returns a new tensor in [0, 1].
    """
    from torchvision.transforms.v2 import functional as tv

    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    result = frames.clone()
    for i, (values, sequence) in enumerate(zip(factors.tolist(), order.tolist(), strict=True)):
        if values == [1, 1, 1, 0]:
            continue
        for k in sequence:
            result[i] = operations[k](result[i], values[k])
    return result
