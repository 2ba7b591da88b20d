"""Decode and augment: from files to normalised batches, in frames per second."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from benchmarks import plain
from benchmarks.cases import CLASSES, settings, source_size
from benchmarks.harness import PLAIN, Row, alternate, rate, require
from semivid.data.index import Frame, read_index
from semivid.data.prepare import prepare_frames, prepare_masks
from semivid.data.readers import get_reader
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, Window, batches
from semivid.data.street.write import render_dataset
from semivid.training.rng import generator
from semivid.training.runtime import as_float

FRAMES = {"street": 8, "camvid": 8, "cityscapes": 2}
GREY_LEVELS = 2.0  # mean difference that JPEG may make
STREAM, SEED = "labelled", 0


def generate(case: str, folder: Path, image_format: str | None = None) -> None:
    """Render source frames of the case and prepare them: `folder`/raw and `folder`/prepared."""
    params = settings(case)
    options = {"size": source_size(params), "frames_per_snippet": FRAMES[case], "annotated": range(FRAMES[case])}
    raw, prepared = folder / "raw", folder / "prepared"
    render_dataset(raw, seed=SEED, snippets={"train": 1}, **options)
    data, size = _data(folder), params.frames.size
    prepare_frames(
        data,
        size=size,
        format=image_format or params.frames.format,
        quality=params.frames.quality,
        out_images=prepared / "images",
        out_csv=prepared / "frames.csv",
        out_cameras=prepared / "cameras.json",
        workers=1,
    )
    prepare_masks(
        data,
        size=size,
        csv_in=prepared / "frames.csv",
        out_labels=prepared / "labels",
        out_csv=prepared / "index.csv",
        out_classes=prepared / "classes.json",
        workers=1,
    )


def _data(folder: Path) -> dict:
    raw = folder / "raw"
    return {
        "source": "street",
        "frames": {"train": str(raw / "leftImg8bit/train")},
        "masks": {"train": str(raw / "gtFine/train")},
        "camera": str(raw / "camera"),
        "classes": str(CLASSES),
    }


class Loaders:
    """Both ways from the files of one case to normalised batches, with the same windows."""

    def __init__(self, case: str, folder: Path) -> None:
        self.params = settings(case)
        self.frames = read_index(folder / "prepared/index.csv").select("train", labelled=True)
        reader = get_reader(_data(folder))
        self.sources = {f.name: (f.image, reader.mask(f)) for f in reader.frames("train")}
        self.ids = [entry["ids"][0] for entry in yaml.safe_load(CLASSES.read_text())]

    def stream(self, store: FrameStore) -> Stream:
        """semivid's way; every frame at its own size, without random resizing."""
        train = self.params.train
        samples = LabelledSamples(store, train.crop, train.flip)
        return Stream(STREAM, self.frames, train.batch_size, SEED, samples)

    def semivid(self, store: FrameStore, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The first batches (image float, normalised; label int64), as training makes them."""
        return [
            ((as_float(batch[STREAM]["image"]) - plain.MEAN) / plain.STD, batch[STREAM]["label"].long())
            for batch in batches([self.stream(store)], 0, steps, workers=0)
        ]

    def plain(self, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same batches from the source files."""
        return [self._plain_batch(step) for step in range(steps)]

    def _plain_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = self.stream(FrameStore()).order(step)
        samples = [self._plain_sample(self.frames[i], step, slot) for slot, i in enumerate(order)]
        return torch.stack([image for image, _ in samples]), torch.stack([label for _, label in samples])

    def _plain_sample(self, frame: Frame, step: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        size, (width, height) = self.params.frames.size, self.params.train.crop
        drawn = Window(size, (width, height), generator(SEED, STREAM, "sample", step, slot), self.params.train.flip)
        window = (drawn.x, drawn.y, drawn.x + width, drawn.y + height)
        return plain.sample(*self.sources[frame.frame], size, window, drawn.flip, self.ids)

    def grey_levels(self, steps: int) -> float:
        """Mean difference of both ways' images, in grey levels of 0..255. AssertionError if labels differ."""
        difference = 0.0
        for (image, label), (plain_image, plain_label) in zip(
            self.semivid(FrameStore(), steps), self.plain(steps), strict=True
        ):
            if not torch.equal(label, plain_label):
                raise AssertionError("plain and semivid load different labels")
            difference += float((image - plain_image).abs().mean()) * plain.STD * 255 / steps
        return difference


def run(case: str, folder: Path, threads: int, quick: bool) -> list[Row]:
    """Frames per second: the first time that a frame is read, and from then on."""
    loaders = Loaders(case, folder)
    batch_size = loaders.params.train.batch_size
    once = max(1, FRAMES[case] // batch_size)  # steps that read every frame once
    often = once * (3 if quick else 10)
    agreement = require(loaders.grey_levels(once), GREY_LEVELS, "frames", "grey levels (JPEG)")
    store = FrameStore()
    seconds = alternate(
        {
            PLAIN: lambda: loaders.plain(once),
            "cold": lambda: loaders.semivid(FrameStore(), once),
            "warm": lambda: loaders.semivid(store, often),
        },
        rounds=2 if quick else 4,
        threads=threads,
    )
    (width, height), (crop_width, crop_height) = loaders.params.frames.size, loaders.params.train.crop
    size = f"{case}, {width}x{height}" + (
        f" crop {crop_width}x{crop_height}" if (width, height) != (crop_width, crop_height) else ""
    )
    return [
        rate(
            "Decode and augment",
            f"{size}, {name}",
            seconds[PLAIN],
            once * batch_size,
            seconds[key],
            steps * batch_size,
            agreement,
        )
        for key, name, steps in (("cold", "first reading", once), ("warm", "frames in memory", often))
    ]
