"""From a raw data set to the prepared layout: frames and labels at the training size, index, cameras.

Frames: Pillow LANCZOS, JPEG quality 98 without chroma subsampling by default (Three Ways,
prepare_cityscapes). Labels: NEAREST on the raw ids or colours, then train ids. Every unusable file is
reported at once.
"""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from semivid.data.cameras import Camera, read_camera_json, write_cameras
from semivid.data.classes import VOID, MaskCode, colour_codes, read_class_file, write_classes
from semivid.data.index import Frame, read_index, write_index
from semivid.data.readers import RawFrame, Reader, get_reader
from semivid.data.readers.base import listing
from semivid.errors import UserError

_SUFFIX = {"jpg": ".jpg", "png": ".png"}
_FORMAT = {"jpg": "JPEG", "png": "PNG"}
_RGB_MODES = ("RGB", "RGBA", "L")

Size = tuple[int, int]
Progress = Callable[[int, int], None]


class Bad(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


def prepare_frames(
    data: dict,
    *,
    size: Size,
    format: str,
    quality: int,
    out_images: str | Path,
    out_csv: str | Path,
    out_cameras: str | Path,
    workers: int,
    progress: Progress | None = None,
) -> dict:
    """Resize all frames; write ``images/{split}/{frame}.jpg`` (or png), ``frames.csv`` and ``cameras.json``.

    data: the params' block (see semivid.data.readers). size: (width, height) in pixels. format: "jpg" or
    "png". quality: of JPEG, 1..100. workers: threads; the bytes do not depend on it. progress: called with
    (done, total). out_images may be a temporary folder: frames.csv always calls it ``images``, beside itself.
    A source that already has the size and format is copied byte by byte.

    Returns {"frames": {split: count}, "sequences": count, "cameras": count}. Raises UserError that lists all
    frames which do not decode, hold no RGB picture, or differ in size from the rest of their sequence.
    """
    reader, size = get_reader(data), tuple(size)
    raw = [frame for split in reader.splits for frame in reader.frames(split)]
    places = [Path(f.split, f"{f.name}{_SUFFIX[format]}") for f in raw]
    targets = [Path(out_images) / place for place in places]
    for folder in {Path(out_cameras).parent, *(t.parent for t in targets)}:
        folder.mkdir(parents=True, exist_ok=True)

    def one(job: tuple[RawFrame, Path]) -> Size | Bad:
        return _prepare_frame(job[0].image, job[1], size, format, quality)

    sizes = _run(one, list(zip(raw, targets, strict=True)), workers, progress)
    bad = [s for s in sizes if isinstance(s, Bad)]
    bad += _odd_sizes((f, s) for f, s in zip(raw, sizes, strict=True) if not isinstance(s, Bad))
    if bad:
        raise UserError(
            f"{len(bad)} of {len(raw)} frames cannot be used: {_reasons(bad)}; replace or remove these files"
        )
    cameras, names = _cameras(reader, raw, sizes, size)
    write_cameras(out_cameras, cameras)
    images = Path(os.path.abspath(out_csv)).parent / "images"
    frames = [
        Frame(f.name, f.split, f.sequence, f.position, images / place, camera, None)
        for f, place, camera in zip(raw, places, names, strict=True)
    ]
    write_index(out_csv, frames, labels=False)
    return {
        "frames": dict(Counter(f.split for f in raw)),
        "sequences": len({(f.split, f.sequence) for f in raw}),
        "cameras": len(cameras),
    }


def prepare_masks(
    data: dict,
    *,
    size: Size,
    csv_in: str | Path,
    out_labels: str | Path,
    out_csv: str | Path,
    out_classes: str | Path,
    workers: int,
    progress: Progress | None = None,
) -> dict:
    """Encode all masks; write ``labels/{split}/{frame}.png``, ``index.csv`` and ``classes.json``.

    csv_in: the frames.csv that prepare_frames wrote. size: (width, height), the one of the frames. Labels are
    8-bit PNG of train ids, 255 = void. Frames without a mask stay unlabelled, as do splits without masks.
    out_labels may be a temporary folder: index.csv always calls it ``labels``, beside itself.

    Returns {"labels": {split: count}, "void": fraction of void pixels, "classes": pixels per class by name,
    "unknown_colours": {"r,g,b": number of masks} (colours that neither the classes file nor the data set
    knows), "unmatched_masks": names of masks without a frame (source folder)}. Raises UserError that lists
    all masks which do not decode, have the wrong mode, another aspect ratio than their frame, or no pixel of
    any class; and if a folder of masks matches no frame at all.
    """
    reader, size = get_reader(data), tuple(size)
    classes, code = read_class_file(data["classes"])
    index = read_index(csv_in)
    raw = {f.name: f for split in reader.splits for f in reader.frames(split)}
    strangers = [f.frame for f in index.frames if f.frame not in raw]
    if strangers or len(raw) != len(index):
        raise UserError(
            f"{csv_in} does not belong to the raw data (it has {len(index)} frames, the data {len(raw)}"
            f"{', such as ' + strangers[0] if strangers else ''}); run the stage frames again"
        )
    jobs = [(f, raw[f.frame].image, mask) for f in index.frames if (mask := reader.mask(raw[f.frame]))]
    out = Path(out_labels)
    out.mkdir(parents=True, exist_ok=True)  # also where nothing is labelled
    Path(out_classes).parent.mkdir(parents=True, exist_ok=True)
    used = {reader.mask_folders[f.split] for f, _, _ in jobs}
    for split, folder in reader.mask_folders.items():
        if folder not in used:
            example = next((f"(such as {f.frame})" for f in index.select(split)), "(it has none)")
            raise UserError(
                f"data.masks.{split}: no mask in {folder} belongs to a frame of {split} {example}; "
                "correct the path, the names, or leave it empty"
            )
        (out / split).mkdir(parents=True, exist_ok=True)
    known = None if code.codes is None else _known_codes(code, reader)

    def one(job: tuple[Frame, Path, Path]) -> tuple[np.ndarray, list[int]] | Bad:
        frame, image, mask = job
        return _prepare_mask(mask, image, out / frame.split / f"{frame.frame}.png", size, code, known)

    results = _run(one, jobs, workers, progress)
    bad = [r for r in results if isinstance(r, Bad)]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(jobs)} masks cannot be used: {_reasons(bad)}; "
            f"replace or remove these files, or correct the classes file {data['classes']}"
        )
    final = Path(os.path.abspath(out_csv)).parent / "labels"
    labels = {f.frame: final / f.split / f"{f.frame}.png" for f, _, _ in jobs}
    write_index(out_csv, [replace(f, label=labels.get(f.frame)) for f in index.frames], labels=True)
    write_classes(out_classes, classes)
    counts = sum((r[0] for r in results), np.zeros(256, np.int64))
    unmatched = {name for split in reader.mask_folders for name in reader.unmatched_masks(split)}
    unknown = Counter(c for _, colours in results for c in colours)
    return {
        "labels": dict(Counter(f.split for f, _, _ in jobs)),
        "void": float(counts[VOID] / max(counts.sum(), 1)),
        "classes": {name: int(counts[i]) for i, name in enumerate(classes.names)},
        "unknown_colours": {f"{c >> 16},{c >> 8 & 255},{c & 255}": n for c, n in sorted(unknown.items())},
        "unmatched_masks": sorted(unmatched),
    }


def resize_frame(image: Image.Image, size: Size) -> Image.Image:
    """An RGB picture at `size` (width, height), Pillow LANCZOS; unchanged if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def resize_mask(mask: Image.Image, size: Size) -> Image.Image:
    """A mask at `size` (width, height), Pillow NEAREST: at exactly half the size the odd source pixels."""
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def _load(path: Path) -> Image.Image | Bad:
    """The decoded picture, or why there is none."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    # Pillow raises these for broken files; anything else is no fault of the file
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        none = isinstance(error, Image.UnidentifiedImageError)
        reason = "no picture" if none else getattr(error, "strerror", None) or " ".join(str(error).split())
        return Bad(path, reason or type(error).__name__)


def _prepare_frame(source: Path, target: Path, size: Size, format: str, quality: int) -> Size | Bad:
    """Write one prepared frame; returns the source's (width, height)."""
    image = _load(source)
    if isinstance(image, Bad):
        return image
    if image.mode not in _RGB_MODES:
        return Bad(source, f"mode {image.mode}, not an RGB picture")
    part = target.with_name(f".{target.name}.part")
    if image.size == size and image.format == _FORMAT[format] and image.mode == "RGB":
        shutil.copyfile(source, part)
    else:
        picture = resize_frame(image.convert("RGB"), size)
        options = {"quality": quality, "subsampling": 0} if format == "jpg" else {"compress_level": 4}
        picture.save(part, _FORMAT[format], **options)
    os.replace(part, target)
    return image.size


def _prepare_mask(
    source: Path, frame: Path, target: Path, size: Size, code: MaskCode, known: np.ndarray | None
) -> tuple[np.ndarray, list[int]] | Bad:
    """Write one label; returns pixels per train id (256,) and the unknown colour codes it holds."""
    mask = _load(source)
    if isinstance(mask, Bad):
        return mask
    with Image.open(frame) as picture:
        width, height = picture.size  # the header alone: nothing is decoded
    if abs(mask.width * height / (mask.height * width) - 1) > 0.01:
        return Bad(source, f"{mask.width}x{mask.height}, but its frame is {width}x{height}")
    small = resize_mask(mask, size)
    try:
        labels = code.encode(small)
    except ValueError as error:
        return Bad(source, str(error))
    # small objects may vanish with the resizing: judge by the whole mask
    if labels.min() == VOID and code.encode(mask).min() == VOID:
        return Bad(source, "no pixel belongs to any class")
    part = target.with_name(f".{target.name}.part")
    Image.fromarray(labels).save(part, "PNG")
    os.replace(part, target)
    unknown = [] if known is None else np.setdiff1d(colour_codes(small), known).tolist()
    return np.bincount(labels.ravel(), minlength=256), unknown


def _reasons(bad: list[Bad]) -> str:
    return listing([f"{b.path} ({b.reason})" for b in bad])


def _odd_sizes(pairs: Iterable[tuple[RawFrame, Size]]) -> list[Bad]:
    """Frames whose size differs from that of most frames of their sequence."""
    sequences = defaultdict(list)
    for frame, size in pairs:
        sequences[frame.split, frame.sequence].append((frame, size))
    bad = []
    for frames in sequences.values():
        usual = Counter(size for _, size in frames).most_common(1)[0][0]
        bad += [
            Bad(f.image, f"{s[0]}x{s[1]}, but its sequence is {usual[0]}x{usual[1]}") for f, s in frames if s != usual
        ]
    return bad


def _known_codes(code: MaskCode, reader: Reader) -> np.ndarray:
    void = [r << 16 | g << 8 | b for r, g, b in reader.void_colours]
    return np.concatenate([code.codes, np.array(void, np.int32)])


def _cameras(reader: Reader, raw: list[RawFrame], sizes: list[Size], size: Size) -> tuple[dict[str, Camera], list[str]]:
    """Cameras at the prepared size, and each frame's camera name; equal cameras share one entry."""
    cache: dict[tuple[Path, Size], str] = {}
    names: dict[Camera, str] = {}
    result = []
    for frame, source_size in zip(raw, sizes, strict=True):
        if frame.camera is None:
            result.append("")
            continue
        key = (frame.camera, source_size)
        if key not in cache:
            camera = read_camera_json(frame.camera, source_size, reader.camera_size).resized(*size)
            if camera not in names:
                name = frame.camera.stem.removesuffix("_camera")
                same = sum(n == name or n.startswith(f"{name}.") for n in names.values())
                names[camera] = f"{name}.{same}" if same else name
            cache[key] = names[camera]
        result.append(cache[key])
    return {name: camera for camera, name in names.items()}, result


def _run(function: Callable, jobs: list, workers: int, progress: Progress | None) -> list:
    """All results in order. Threads suffice: Pillow decodes, resizes and encodes without Python's lock."""
    results = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for result in pool.map(function, jobs):
                results.append(result)
                if progress:
                    progress(len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
