"""Class-uniform sampling: a share of every epoch shows each class alike, in crops around where it is.

After NVIDIA's code (nvidia_segmentation.md, section 3, steps 4 to 6), without its errors: after the cut no propagated
or coarse frame is drawn any more, a class without a centroid is left out, and everything drawn is a function of the
seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import default_collate

from semivid.data.centroids import Table
from semivid.data.index import VOID, Frame
from semivid.data.streams import LabelledSamples, Sample, Stream, Window
from semivid.errors import UserError
from semivid.training.rng import generator

Point = tuple[int, int]
RANDOM_FROM = ("all", "labelled")
_NO_POINT = -1
_LEAST = 0.01
_KEPT = 2  # epochs in memory: the one being shown, and the next where a batch reaches into it


@dataclass(frozen=True)
class _Pools:
    """What is drawn from: places of frames, and by class rows (place of the frame, x, y)."""

    name: str
    images: np.ndarray
    centroids: list[np.ndarray]


class ClassUniformStream(Stream):
    """Batches of `sample(frame, rng, point)`, where point is (x, y) in the frame, or None for a crop anywhere.

    An epoch has n = int(N share / C) centroids of each of the C classes, and N - n C frames anywhere, where N is the
    number of frames. Both are drawn by going round a shuffled list, so that where there are few they repeat evenly.
    Classes without a centroid are left out. Of very few frames, N share < C, an epoch goes through so often that each
    class comes once (the reference then has no class-uniform part at all). The remainder of an epoch that fills no
    batch is dropped, as in `Stream`.
    """

    def __init__(
        self,
        name: str,
        labelled: Sequence[Frame],
        batch_size: int,
        seed: int,
        sample: Callable[[Frame, np.random.Generator, Point | None], Sample],
        table: Table,
        *,
        share: float = 0.5,
        propagated: Sequence[Frame] = (),
        coarse: Sequence[Frame] = (),
        boost: Sequence[int] = (),
        cut: int | None = None,
        random_from: str = "all",
    ) -> None:
        """The frames in their three roles, and the table of centroids of them all (others in it do not matter).

        Args:
            name, batch_size, seed: see `Stream`.
            labelled: frames with true masks.
            sample: see `CentredSamples`.
            table: by class (frame, x, y), in the frames' prepared size.
            share: of an epoch that is class-uniform, 0.01..1; 0 for plain sampling.
            propagated: frames with propagated labels; their centroids join those of all classes.
            coarse: coarsely annotated frames: only their centroids of the classes `boost` are drawn, never a crop
                anywhere.
            boost: train ids.
            cut: from this step on, labelled frames alone.
            random_from: ``all``, N counts labelled and propagated frames and both are drawn anywhere (the reference's
                Cityscapes); ``labelled``, propagated frames are seen at their centroids alone (its other data sets).

        Raises:
            UserError: no frames, a frame in two roles, unknown classes, a share that cannot be, a cut below 0, or no
                centroid at all for a share above 0.
        """
        super().__init__(name, [*labelled, *propagated, *coarse], batch_size, seed, sample)
        if not labelled:
            raise UserError(f"the {name} stream has no labelled frames; check the split, the selection and the masks")
        if share != 0 and not _LEAST <= share <= 1:
            raise UserError(f"class-uniform sampling: share {share}; give 0, or a number from {_LEAST} to 1")
        if random_from not in RANDOM_FROM:
            raise UserError(f"class-uniform sampling: no frames {random_from!r}; take {' or '.join(RANDOM_FROM)}")
        if cut is not None and cut < 0:
            raise UserError(f"class-uniform sampling: cut at step {cut}; give 0 or more, or none")
        if wrong := [c for c in boost if not 0 <= c < len(table)]:
            raise UserError(f"class-uniform sampling: boosted class {wrong[0]} is none of 0..{len(table) - 1}")
        place = {f.frame: i for i, f in enumerate(self.frames)}
        if len(place) < len(self.frames):
            twice = next(f.frame for i, f in enumerate(self.frames) if place[f.frame] != i)
            raise UserError(f"the {name} stream has the frame {twice} twice; it is labelled, propagated or coarse")
        self.share, self.classes, self.cut = share, len(table), cut
        fine, known = len(labelled), len(labelled) + len(propagated)

        def pools(title: str, images: int, wanted: Callable[[int, int], bool]) -> _Pools:
            rows = [
                [(place[f], x, y) for f, x, y in points if f in place and wanted(c, place[f])]
                for c, points in enumerate(table)
            ]
            return _Pools(title, np.arange(images), [np.array(r, np.int64).reshape(-1, 3) for r in rows])

        self._joined = pools(
            "joined", known if random_from == "all" else fine, lambda c, at: at < known or c in set(boost)
        )
        self._fine = pools("fine", fine, lambda c, at: at < fine)
        for part in (self._joined, *([self._fine] if cut is not None else [])):
            if share > 0 and not any(map(len, part.centroids)):
                raise UserError(
                    f"class-uniform sampling: no centroid for any of the {fine} frames of the {name} stream; are they "
                    "smaller than the tiles, or is the table of other frames? lower the tile, or set the share to 0"
                )
        self._epochs: dict[tuple[str, int], np.ndarray] = {}

    def epoch(self, number: int, joined: bool = True) -> list[tuple[Frame, Point | None]]:
        """All of an epoch in the order in which it is shown; joined: before the cut."""
        return [self._pick(row) for row in self._rows(self._joined if joined else self._fine, number)]

    def picks(self, step: int) -> list[tuple[Frame, Point | None]]:
        """Frame and point of every position of batch `step`."""
        return [self._pick(row) for row in self._batch(step)]

    def order(self, step: int) -> list[int]:
        return [int(row[0]) for row in self._batch(step)]

    def part(self, step: int, slots: slice) -> dict[str, torch.Tensor]:
        samples = [
            self._sample(frame, generator(self.seed, self.name, "sample", step, slot), point)
            for slot, (frame, point) in list(enumerate(self.picks(step)))[slots]
        ]
        return default_collate(samples)

    def _pick(self, row: np.ndarray) -> tuple[Frame, Point | None]:
        at, x, y = row.tolist()
        return self.frames[at], None if x == _NO_POINT else (x, y)

    def _batch(self, step: int) -> np.ndarray:
        pools, first = (self._joined, step) if self.cut is None or step < self.cut else (self._fine, step - self.cut)
        each, anywhere = self._counts(pools)
        length, b = each * sum(len(points) > 0 for points in pools.centroids) + anywhere, self.batch_size
        per_epoch = length // b * b if length >= b else length
        return np.array([self._rows(pools, p // per_epoch)[p % per_epoch] for p in range(first * b, (first + 1) * b)])

    def _counts(self, pools: _Pools) -> tuple[int, int]:
        """How many items an epoch has of each class, and anywhere."""
        frames = size = len(pools.images)
        while self.share and int(size * self.share / self.classes) < 1:
            size += frames
        each = int(size * self.share / self.classes)
        return each, size - each * self.classes

    def _rows(self, pools: _Pools, epoch: int) -> np.ndarray:
        """(place of the frame, x, y) of an epoch, int64 (length, 3)."""
        key = pools.name, epoch
        if key not in self._epochs:
            while len(self._epochs) >= _KEPT:  # a memo: the rows are the same when they are made again
                del self._epochs[next(iter(self._epochs))]
            self._epochs[key] = self._draw(pools, epoch)
        return self._epochs[key]

    def _draw(self, pools: _Pools, epoch: int) -> np.ndarray:
        def round_and_round(values: np.ndarray, count: int, *purpose: str | int) -> np.ndarray:
            order = generator(self.seed, self.name, pools.name, *purpose, epoch).permutation(len(values))
            return values[np.resize(order, count)]

        each, count = self._counts(pools)
        rows = [round_and_round(p, each, "class", c) for c, p in enumerate(pools.centroids) if each and len(p)]
        anywhere = round_and_round(pools.images, count, "anywhere")
        rows.append(np.stack([anywhere, *[np.full(count, _NO_POINT)] * 2], 1))
        drawn = np.concatenate(rows)
        return drawn[generator(self.seed, self.name, pools.name, "order", epoch).permutation(len(drawn))]


class CentredWindow(Window):
    """A `Window` that contains a point of the picture, and is as likely at every place where it does."""

    def __init__(
        self,
        size: tuple[int, int],
        crop: tuple[int, int],
        rng: np.random.Generator,
        flip: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        point: Point | None = None,
    ) -> None:
        """point: (x, y) in the picture before it is resized; None for a `Window`. Other arguments as there."""
        super().__init__(size, crop, rng, flip, scale)
        if point is None:
            return
        # Where the point is after resizing; the window is cut out after the flip.
        x, y = (p * new // old for p, new, old in zip(point, self.resized, size, strict=True))
        x = self.resized[0] - 1 - x if self.flip else x
        self.x, self.y = (
            # The reference's lowest draw, p - crop, leaves the point out by one pixel (section 4).
            min(max(int(rng.integers(p - side + 1, p + 1)), 0), max(0, whole - side))
            for p, side, whole in zip((x, y), crop, self.resized, strict=True)
        )


class CentredSamples(LabelledSamples):
    """Samples as those of `LabelledSamples`, whose window contains a given point of the frame."""

    def __call__(self, frame: Frame, rng: np.random.Generator, point: Point | None = None) -> Sample:
        """Raises UserError for a mask of another size than its picture, and for a point outside."""
        image, label = self.store.image(frame), self.store.label(frame)
        if image.shape[:2] != label.shape:
            raise UserError(
                f"{frame.label}: a mask of {label.shape[1]}x{label.shape[0]} for a picture of "
                f"{image.shape[1]}x{image.shape[0]}; run the stage that makes it again"
            )
        if point is not None and not (point[0] < image.shape[1] and point[1] < image.shape[0]):
            raise UserError(
                f"{frame.frame}: a centroid at {point} in a picture of {image.shape[1]}x{image.shape[0]}; the table is "
                "of frames of another size: run the stage that makes it again"
            )
        window = CentredWindow((image.shape[1], image.shape[0]), self.crop, rng, self.flip, self.scale, point)
        return {
            "image": np.ascontiguousarray(window(image).transpose(2, 0, 1)),
            "label": np.ascontiguousarray(window(label, nearest=True, fill=VOID)),
        }
