"""Endless streams of batches: batch k is a pure function of (seed, stream name, k), whoever computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from semivid.data.index import VOID, Frame
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.training.rng import generator

Sample = dict[str, np.ndarray]


class Stream(Dataset):
    """Batches of `sample(frame, rng)`; within an epoch no frame comes twice, the remainder is dropped.

    If there are fewer frames than `batch_size`, epochs follow each other without a gap.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Frame],
        batch_size: int,
        seed: int,
        sample: Callable[[Frame, np.random.Generator], Sample],
    ) -> None:
        if not frames:
            raise UserError(f"the {name} stream has no frames; check the split, the selection and the masks")
        self.name, self.frames, self.batch_size, self.seed = name, list(frames), batch_size, seed
        self._sample = sample

    def order(self, step: int) -> list[int]:
        """Indices into `frames` of batch `step`."""
        n, b = len(self.frames), self.batch_size
        per_epoch = n // b * b if n >= b else n
        positions = range(step * b, (step + 1) * b)
        shuffles: dict[int, np.ndarray] = {}
        for epoch in {p // per_epoch for p in positions}:
            shuffles[epoch] = generator(self.seed, self.name, "order", epoch).permutation(n)
        return [int(shuffles[p // per_epoch][p % per_epoch]) for p in positions]

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return self.part(step, slice(None))

    def part(self, step: int, slots: slice) -> dict[str, torch.Tensor]:
        """The samples at some positions of batch `step`, the same as in the whole batch; no others are read."""
        samples = [
            self._sample(self.frames[i], generator(self.seed, self.name, "sample", step, slot))
            for slot, i in list(enumerate(self.order(step)))[slots]
        ]
        return default_collate(samples)


class _Steps(Dataset):
    """Step k of several streams at once, of each batch the positions that are wanted."""

    def __init__(self, streams: Sequence[Stream], slots: Sequence[slice]) -> None:
        self.streams, self.slots = streams, slots

    def __getitem__(self, step: int) -> dict[str, dict[str, torch.Tensor]]:
        return {s.name: s.part(step, slots) for s, slots in zip(self.streams, self.slots, strict=True)}


def batches(
    streams: Sequence[Stream],
    start: int,
    stop: int,
    workers: int,
    slots: Callable[[int], slice] = slice,  # slice(n): all n
) -> Iterator[dict]:
    """{stream name: batch} for the steps `start` .. `stop` - 1, prepared by `workers` processes (0 = in line).

    slots: from the size of a batch, the positions in it that are wanted.
    """
    loader = DataLoader(
        _Steps(streams, [slots(s.batch_size) for s in streams]),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


class Window:
    """A random resize, crop and flip, drawn once and applied alike to every picture of a sample."""

    def __init__(
        self,
        size: tuple[int, int],
        crop: tuple[int, int],
        rng: np.random.Generator,
        flip: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """`size` and `crop` as (width, height); `flip` a probability; `scale` a range drawn from uniformly."""
        # All draws are made whatever the settings, so that one setting does not shift the draws of another.
        u_scale, u_x, u_y, u_flip = rng.random(4)
        factor = scale[0] + (scale[1] - scale[0]) * u_scale
        self.resized = tuple(max(1, round(s * factor)) for s in size) if factor != 1 else tuple(size)
        self.crop = crop
        # One more than the largest offset, so that the last window is as likely as the first (section 3, step 5).
        self.x = int(u_x * (max(0, self.resized[0] - crop[0]) + 1))
        self.y = int(u_y * (max(0, self.resized[1] - crop[1]) + 1))
        self.flip = bool(u_flip < flip)

    def __call__(self, picture: np.ndarray, *, nearest: bool = False, fill: int = 0) -> np.ndarray:
        """The window of an (H, W) or (H, W, C) picture; what lies beyond its border is `fill`."""
        import cv2

        if self.resized != (picture.shape[1], picture.shape[0]):
            how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
            picture = cv2.resize(picture, self.resized, interpolation=how)
        if self.flip:  # before the crop, as in the reference's loader and in Camera.window
            picture = picture[:, ::-1]
        width, height = self.crop
        picture = picture[self.y : self.y + height, self.x : self.x + width]
        if picture.shape[:2] != (height, width):
            padded = np.full((height, width, *picture.shape[2:]), fill, picture.dtype)
            padded[: picture.shape[0], : picture.shape[1]] = picture
            picture = padded
        return picture


class LabelledSamples:
    """Samples {image: uint8 (3, H, W) RGB, label: uint8 (H, W)} of annotated frames, in a random window."""

    def __init__(
        self, store: FrameStore, crop: tuple[int, int], flip: float, scale: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.store, self.crop, self.flip, self.scale = store, crop, flip, scale

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        image, label = self.store.image(frame), self.store.label(frame)
        window = Window((image.shape[1], image.shape[0]), self.crop, rng, self.flip, self.scale)
        return {
            "image": np.ascontiguousarray(window(image).transpose(2, 0, 1)),
            "label": np.ascontiguousarray(window(label, nearest=True, fill=VOID)),
        }


class UnlabelledSamples:
    """Samples {image: uint8 (3, H, W) RGB} of frames with or without a mask, in a random window."""

    def __init__(
        self, store: FrameStore, crop: tuple[int, int], flip: float, scale: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.store, self.crop, self.flip, self.scale = store, crop, flip, scale

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        return {"image": self.picture(frame, self.window(frame, rng))}

    def window(self, frame: Frame, rng: np.random.Generator) -> Window:
        """A random window of `frame`."""
        image = self.store.image(frame)
        return Window((image.shape[1], image.shape[0]), self.crop, rng, self.flip, self.scale)

    def picture(self, frame: Frame, window: Window) -> np.ndarray:
        """The frame's picture in that window, uint8 (3, H, W)."""
        return np.ascontiguousarray(window(self.store.image(frame)).transpose(2, 0, 1))


def check_crop(crop: tuple[int, int], size: tuple[int, int], key: str) -> None:
    """Raise UserError if a crop is larger than the prepared frames (width, height)."""
    if crop[0] > size[0] or crop[1] > size[1]:
        raise UserError(f"params.yaml: `{key}` {list(crop)} is larger than the frames {list(size)} (width, height)")
