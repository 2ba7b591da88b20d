"""From a raw data set to the prepared layout: frames and labels at the training size, index, cameras.

Frames: Pillow LANCZOS, JPEG quality 98 without chroma subsampling by default (Three Ways,
prepare_cityscapes). Labels: NEAREST on the raw ids or colours, then train ids. Which odd pictures work and which do
not: docs/own_data.md. Every unusable file is reported at once, one line each.
"""

import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from semivid.data.cameras import Camera, read_camera_json, write_cameras
from semivid.data.classes import VOID, MaskCode, read_class_file, write_classes
from semivid.data.index import Frame, read_index, write_index
from semivid.data.readers import RawFrame, Reader, get_reader
from semivid.errors import UserError, raise_all, shown

_SUFFIX = {"jpg": ".jpg", "png": ".png"}
_FORMAT = {"jpg": "JPEG", "png": "PNG"}
_COLOUR_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1", "CMYK", "YCbCr")
_DEEP_MODES = ("I", "F")  # and all that begin with "I;"
_LOSSY = ("JPEG", "MPO", "WEBP")
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT, _ON_ITS_SIDE = 1, (5, 6, 7, 8)

Size = tuple[int, int]
Progress = Callable[[int, int], None]


class Bad(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


class Source(NamedTuple):
    """What is kept of a raw frame: its upright (width, height), and a digest of the file."""

    size: Size
    digest: bytes


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

    Returns {"frames": {split: count}, "sequences": count, "cameras": count}. Raises UserError with a line for every
    frame whose name or picture cannot be used, that differs in size from the rest of its sequence, or that is in two
    splits.
    """
    reader, size = get_reader(data), tuple(size)
    raw, faults = _scan(reader)
    places = [Path(f.split, f"{f.name}{_SUFFIX[format]}") for f in raw]
    targets = [Path(out_images) / place for place in places]
    for folder in {Path(out_cameras).parent, *(t.parent for t in targets)}:
        folder.mkdir(parents=True, exist_ok=True)

    def one(job: tuple[RawFrame, Path]) -> Source | Bad:
        return _prepare_frame(job[0].image, job[1], size, format, quality)

    sources = _run(one, list(zip(raw, targets, strict=True)), workers, progress)
    good = [(f, s) for f, s in zip(raw, sources, strict=True) if isinstance(s, Source)]
    bad = [s for s in sources if isinstance(s, Bad)] + _odd_sizes(good) + _in_two_splits(reader, good)
    if bad:
        faults.append(f"{len(bad)} of {len(raw)} frames cannot be used; replace or remove these files:")
        faults += _reasons(bad)
    cameras, names = _cameras(reader, good, size, faults)
    raise_all(faults)
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
    "unmatched_masks": names of masks without a frame (source folder)}. Raises UserError with a line for every mask
    that does not decode, cannot hold what the classes file lists, holds values that are neither a class nor void,
    has another aspect ratio than its frame, or no pixel of any class; and if a folder of masks matches no frame at all.
    """
    reader, size = get_reader(data), tuple(size)
    classes, code = read_class_file(data["classes"])
    code = code.with_void(reader.void_ids, reader.void_colours)
    index = read_index(csv_in)
    scanned, faults = _scan(reader)
    raise_all(faults)
    raw = {f.name: f for f in scanned}
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
        if folder not in used and any(p.is_file() for p in folder.rglob("*")):  # an empty one: no masks
            example = next((f"(such as {f.frame})" for f in index.select(split)), "(it has none)")
            faults.append(
                f"data.masks.{split}: no mask in {shown(folder)} belongs to a frame of {split} {example}; correct the "
                "path or the names, or give an empty folder"
            )
        (out / split).mkdir(parents=True, exist_ok=True)

    def one(job: tuple[Frame, Path, Path]) -> np.ndarray | Bad:
        frame, image, mask = job
        return _prepare_mask(mask, image, out / frame.split / f"{frame.frame}.png", size, code)

    results = _run(one, jobs, workers, progress)
    bad = [r for r in results if isinstance(r, Bad)]
    if bad:
        faults.append(
            f"{len(bad)} of {len(jobs)} masks cannot be used; correct or remove these files, or list more values in "
            f"{shown(data['classes'])} (such as `- void: [...]`):"
        )
        faults += _reasons(bad)
    raise_all(faults)
    final = Path(os.path.abspath(out_csv)).parent / "labels"
    labels = {f.frame: final / f.split / f"{f.frame}.png" for f, _, _ in jobs}
    write_index(out_csv, [replace(f, label=labels.get(f.frame)) for f in index.frames], labels=True)
    write_classes(out_classes, classes)
    counts = sum(results, np.zeros(256, np.int64))
    unmatched = {name for split in reader.mask_folders for name in reader.unmatched_masks(split)}
    return {
        "labels": dict(Counter(f.split for f, _, _ in jobs)),
        "void": float(counts[VOID] / max(counts.sum(), 1)),
        "classes": {name: int(counts[i]) for i, name in enumerate(classes.names)},
        "unmatched_masks": sorted(unmatched),
    }


def resize_frame(image: Image.Image, size: Size) -> Image.Image:
    """An RGB picture at `size` (width, height), Pillow LANCZOS; unchanged if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def resize_mask(mask: Image.Image, size: Size) -> Image.Image:
    """A mask at `size` (width, height), Pillow NEAREST: at exactly half the size the odd source pixels."""
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def _scan(reader: Reader) -> tuple[list[RawFrame], list[str]]:
    """The usable frames of all splits, and a line for every fault of their names, cameras and lists."""
    raw: list[RawFrame] = []
    faults: list[str] = []
    for split in reader.splits:
        found: list[str] = []
        raw += reader.scan(split, found)
        faults += found
    by_name: dict[str, list[RawFrame]] = defaultdict(list)
    for frame in raw:
        by_name[frame.name].append(frame)
    for name, frames in by_name.items():
        if len({f.split for f in frames}) > 1:
            places = ", ".join(f"{f.split} ({shown(f.image)})" for f in frames)
            faults.append(f"the frame {shown(name)} is in two splits: {places}; keep it in one of them")
    return raw, faults


def _load(path: Path) -> tuple[Image.Image, int, bytes] | Bad:
    """The decoded picture, its EXIF orientation and the file's content, or why there is none."""
    try:
        content = path.read_bytes()
        if not content:
            return Bad(path, "an empty file")
        with Image.open(io.BytesIO(content)) as image:
            orientation = _orientation(image)
            image.load()
            return image, orientation, content
    except Exception as error:  # Pillow raises nearly anything for broken files (struct.error, zlib.error, ...)
        if isinstance(error, Image.UnidentifiedImageError):
            return Bad(path, "not a picture")
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        return Bad(path, reason or type(error).__name__)


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the picture is to be turned, 1..8; 1 = not at all."""
    if "exif" not in image.info and image.format == "PNG":
        return _UPRIGHT  # else Pillow decodes the whole picture to look behind it
    try:
        value = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # broken EXIF is none
        return _UPRIGHT
    return value if value in range(1, 9) else _UPRIGHT


def _upright_size(path: Path) -> Size:
    """(width, height) of a frame as `_prepare_frame` turns it; from the header alone: nothing is decoded."""
    with Image.open(path) as image:
        return image.size[::-1] if _orientation(image) in _ON_ITS_SIDE else image.size


def _prepare_frame(source: Path, target: Path, size: Size, format: str, quality: int) -> Source | Bad:
    """Write one prepared frame, upright and RGB."""
    loaded = _load(source)
    if isinstance(loaded, Bad):
        return loaded
    image, orientation, content = loaded
    if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
        return Bad(source, "one channel of 16 or more bits; save it with 8 bits per channel")
    if image.mode not in _COLOUR_MODES:
        return Bad(source, f"mode {image.mode}, not an RGB picture")
    upright = image.size[::-1] if orientation in _ON_ITS_SIDE else image.size
    part = target.with_name(f".{target.name}.part")
    if image.size == size and image.format == _FORMAT[format] and image.mode == "RGB" and orientation == _UPRIGHT:
        part.write_bytes(content)
    else:
        if orientation != _UPRIGHT:
            image = ImageOps.exif_transpose(image)
        picture = resize_frame(image.convert("RGB"), size)
        options = {"quality": quality, "subsampling": 0} if format == "jpg" else {"compress_level": 4}
        picture.save(part, _FORMAT[format], **options)
    os.replace(part, target)
    return Source(upright, hashlib.sha256(content).digest())


def _prepare_mask(source: Path, frame: Path, target: Path, size: Size, code: MaskCode) -> np.ndarray | Bad:
    """Write one label; returns pixels per train id (256,)."""
    loaded = _load(source)
    if isinstance(loaded, Bad):
        return loaded
    mask = loaded[0]
    if mask.format in _LOSSY:
        return Bad(source, f"a {mask.format} picture, whose compression changes values; save it as PNG")
    try:
        width, height = _upright_size(frame)
    except (OSError, ValueError) as error:
        return Bad(source, f"its frame {shown(frame)} cannot be read ({error})")
    if abs(mask.width * height / (mask.height * width) - 1) > 0.01:
        return Bad(source, f"{mask.width}x{mask.height}, but its frame is {width}x{height}")
    try:
        labels = code.encode(resize_mask(mask, size))
        # small objects may vanish with the resizing: judge by the whole mask
        if labels.min() == VOID and code.encode(mask).min() == VOID:
            return Bad(source, "no pixel belongs to any class")
    except ValueError as error:
        return Bad(source, str(error))
    part = target.with_name(f".{target.name}.part")
    Image.fromarray(labels).save(part, "PNG")
    os.replace(part, target)
    return np.bincount(labels.ravel(), minlength=256)


def _reasons(bad: list[Bad]) -> list[str]:
    return [f"{shown(b.path)}: {shown(b.reason)}" for b in bad]


def _odd_sizes(frames: Iterable[tuple[RawFrame, Source]]) -> list[Bad]:
    """Frames whose size differs from that of most frames of their sequence."""
    sequences = defaultdict(list)
    for frame, source in frames:
        sequences[frame.split, frame.sequence].append((frame, source.size))
    bad = []
    for members in sequences.values():
        usual = Counter(size for _, size in members).most_common(1)[0][0]
        bad += [
            Bad(f.image, f"{s[0]}x{s[1]}, but its sequence is {usual[0]}x{usual[1]}") for f, s in members if s != usual
        ]
    return bad


def _in_two_splits(reader: Reader, frames: Iterable[tuple[RawFrame, Source]]) -> list[Bad]:
    """Frames of one split that are, byte by byte, also in another: a network would be tested on what it has learnt.

    Not where one video is cut into both splits: it may stand still at the cut.
    """
    if len(set(reader.frame_folders.values())) < len(reader.frame_folders):
        return []
    first: dict[bytes, RawFrame] = {}
    bad = []
    for frame, source in frames:
        same = first.setdefault(source.digest, frame)
        if same.split != frame.split and same.name != frame.name:  # of equal names `_scan` has told
            bad.append(Bad(frame.image, f"the same picture as {shown(same.image)} of {same.split}"))
    return bad


def _cameras(
    reader: Reader, frames: list[tuple[RawFrame, Source]], size: Size, faults: list[str]
) -> tuple[dict[str, Camera], list[str]]:
    """Cameras at the prepared size, and each frame's camera name; equal cameras share one entry.

    A line per camera file that cannot be used is added to `faults`.
    """
    cache: dict[tuple[Path, Size], str] = {}
    names: dict[Camera, str] = {}
    result = []
    for frame, source in frames:
        if frame.camera is None:
            result.append("")
            continue
        key = (frame.camera, source.size)
        if key not in cache:
            cache[key] = ""
            try:
                camera = read_camera_json(frame.camera, source.size, reader.camera_size).resized(*size)
            except UserError as error:
                faults += [str(error)] * (str(error) not in faults)  # once for all sizes of frames
                continue
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
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("ignore")  # Pillow's, of broken EXIF and the like
        try:
            for result in pool.map(function, jobs):
                results.append(result)
                if progress:
                    progress(len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
