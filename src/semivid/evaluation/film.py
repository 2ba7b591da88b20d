"""Pictures and video from anywhere in, an mp4 out: what inference reads and writes besides prepared frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from PIL import Image, ImageOps

from semivid.data.readers.base import natural
from semivid.errors import UserError, shown

log = logging.getLogger("semivid")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_DEEP = ("I", "F")  # and all that begin with "I;": converted to RGB, Pillow would cut them off at 255


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 (H, W, 3) RGB, upright by its EXIF data; alpha is left out.

    Raises UserError for what is no picture, is damaged, or has one channel of 16 or more bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _DEEP or image.mode.startswith("I;"):
                raise UserError(f"{shown(path)}: one channel of 16 or more bits; save it with 8 bits per channel")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{shown(path)}: not a picture; remove it or save it again") from None
    except Exception as error:  # Pillow raises nearly anything for broken files (struct.error, zlib.error, ...)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(path)}: cannot be read ({shown(reason)}); remove it or save it again") from None


@dataclass
class Source:
    """Pictures in order, each with a name for its results.

    fps: of a video; None for pictures. total: how many are promised, 0 if unknown. faults: filled while reading, a
    line for every picture that was left out.
    """

    path: Path
    fps: float | None = None
    total: int = 0
    faults: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, picture uint8 (H, W, 3) RGB)."""
        raise NotImplementedError


class Pictures(Source):
    """A picture, or all pictures of a folder (not of its sub-folders) as people sort them: 2 before 10."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in PICTURES and p.is_file()]
            files = sorted((p for p in files if not p.name.startswith(".")), key=lambda p: (natural(p.stem), p.name))
        else:
            files = [path]
        if not files:
            raise UserError(_no_pictures(path))
        by_stem: dict[str, Path] = {}
        for file in files:
            other = by_stem.setdefault(file.stem, file)
            if other is not file:
                raise UserError(
                    f"{shown(file)} and {shown(other.name)} would have results of one name; rename one, or give "
                    "folders of their own"
                )
        super().__init__(path, total=len(files))
        self._files = by_stem

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, file in self._files.items():
            try:
                picture = read_picture(file)
            except UserError as error:
                self.faults.append(str(error))
                continue
            yield name, picture


class Video(Source):
    """A video file; its frames are called 000000, 000001, ..."""

    def __init__(self, path: Path) -> None:
        # No lines of FFmpeg and OpenCV on stderr: ours tell what to do.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        self._first = self._capture.read()[1] if self._capture.isOpened() else None
        if self._first is None:
            raise UserError(
                f"{shown(path)}: cannot be read as a picture or a video; convert it (ffmpeg -i IN out.mp4), or give a "
                "folder of pictures"
            )
        fps, total = (self._capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(path, fps if 0 < fps < 1000 else None, max(0, int(total)))

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        frame, count = self._first, 0
        while frame is not None:
            yield f"{count:06d}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frame, count = self._capture.read()[1], count + 1
        self._capture.release()
        if count < self.total:
            # Not a fault: some containers do not know their number of frames and promise an estimate.
            log.warning("warning: %s: %d of about %d frames could be decoded", shown(self.path), count, self.total)


def open_source(path: Path) -> Source:
    """The pictures of a folder, a picture file, or a video file. UserError if there are none or it is neither."""
    if path.is_dir() or (path.is_file() and path.suffix.lower() in PICTURES):
        return Pictures(path)
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file or folder; give a folder of pictures, a picture or a video")
    return Video(path)


def _no_pictures(folder: Path) -> str:
    below = sorted({p.parent for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()})
    if below:
        more = f" (and {len(below) - 1} more)" if len(below) > 1 else ""
        return f"{shown(folder)}: holds no pictures itself, but {shown(below[0])} does{more}; give that folder"
    return f"{shown(folder)}: holds no pictures ({', '.join(PICTURES)}); correct the path"


class Film:
    """Writes an mp4 (MPEG-4 part 2, ``mp4v``), frame by frame; the first one sets the size.

    Encoders want even sides: an odd last row or column is left out. Frames of another size are brought to the film's,
    in proportion, with black beside them. Used as a context manager; the caller sees to it that `path` is a temporary.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, picture: np.ndarray) -> None:
        """Append uint8 (H, W, 3) RGB. UserError if no film can be written."""
        if self._writer is None:
            height, width = picture.shape[:2]
            self._size = (max(2, width & ~1), max(2, height & ~1))
            self._writer = cv2.VideoWriter(
                str(self.path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), self.fps, self._size
            )
            if not self._writer.isOpened():
                size = "x".join(map(str, self._size))
                raise UserError(f"cannot write a film of {size} pixels at {self.fps:g} frames/s; leave `film` out")
        self._writer.write(cv2.cvtColor(on_canvas(picture, self._size), cv2.COLOR_RGB2BGR))

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()


def on_canvas(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) at `size` (width, height): as it is if at most a pixel larger, else fitted in black."""
    width, height = size
    rows, columns = picture.shape[:2]
    if 0 <= rows - height <= 1 and 0 <= columns - width <= 1:
        return np.ascontiguousarray(picture[:height, :width])
    factor = min(width / columns, height / rows)
    inner = (min(width, max(1, round(columns * factor))), min(height, max(1, round(rows * factor))))
    resized = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = resized
    return canvas
