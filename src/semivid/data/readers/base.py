"""What all readers of raw data sets share: raw frames, listing files, positions, camera files."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from semivid.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class RawFrame:
    """A frame of the raw data. position: see `positions`. camera: its camera file, None if unknown."""

    name: str
    split: str
    sequence: str
    position: int
    image: Path
    camera: Path | None


class Reader:
    """A raw data set: the block `data` of the params, with ``frames`` and ``masks`` as {split: folder}.

    Sub-classes give `frames(split)`, sorted by name, and `mask(frame)`.
    """

    # the size that camera files without width and height belong to; None: that of the frames
    camera_size: tuple[int, int] | None = None
    # colours of raw masks that mean void, though no class lists them
    void_colours: tuple[tuple[int, int, int], ...] = ()

    def __init__(self, data: dict):
        self.data = data
        self.frame_folders = {split: Path(path) for split, path in data["frames"].items() if path}
        self.mask_folders = {split: Path(path) for split, path in (data.get("masks") or {}).items() if path}
        self.cameras = CameraFiles(data.get("camera"))
        if not self.frame_folders:
            raise UserError("data.frames names no folder; give at least data.frames.train")
        for key, folders in (("frames", self.frame_folders), ("masks", self.mask_folders)):
            for split, folder in folders.items():
                if not folder.is_dir():
                    raise UserError(f"data.{key}.{split}: no folder {folder}; correct the path")

    @property
    def splits(self) -> list[str]:
        """The splits of the data set, sorted."""
        return sorted(self.frame_folders)

    def frames(self, split: str) -> list[RawFrame]:
        """All frames of a split, sorted by name. UserError if there are none, or for strange file names."""
        raise NotImplementedError

    def mask(self, frame: RawFrame) -> Path | None:
        """The frame's raw mask, or None if the frame is unlabelled."""
        raise NotImplementedError

    def unmatched_masks(self, split: str) -> list[str]:
        """Masks of a split that belong to no frame, where that hints at a slip; most layouts cannot tell."""
        return []

    def build(self, split: str, found: list[tuple[str, str, int, Path]], step: int | None) -> list[RawFrame]:
        """Frames from (name, sequence, frame number, path): adds positions and cameras, sorts by name."""
        if not found:
            raise UserError(f"data.frames.{split}: no frames in {self.frame_folders[split]}; correct the path")
        count = Counter(name for name, *_ in found)
        twice = [name for name in sorted(count) if count[name] > 1]
        if twice:
            raise UserError(
                f"data.frames.{split}: {len(twice)} frame names occur more than once in "
                f"{self.frame_folders[split]}: {listing(twice)}; rename or remove files"
            )
        numbers: dict[str, list[int]] = {}
        for _, sequence, number, _ in found:
            numbers.setdefault(sequence, []).append(number)
        place = {
            sequence: dict(zip(sorted(n), positions(sorted(n), step), strict=True)) for sequence, n in numbers.items()
        }
        return [
            RawFrame(name, split, sequence, place[sequence][number], path, self.cameras.find(name, sequence))
            for name, sequence, number, path in sorted(found)
        ]


def positions(numbers: Sequence[int], step: int | None = None) -> list[int]:
    """Frame numbers of one video, ascending, to positions from 0: numbers a regular step apart differ by 1.

    step: the regular step; None takes the most common gap (the middle one if several are equally common, as
    with jittering time stamps). A gap of k steps, rounded, advances the position by k: over a cut no two
    frames look like neighbours.
    """
    gaps = [b - a for a, b in pairwise(numbers)]
    if step is None and gaps:
        counts = Counter(gaps)
        common = sorted(g for g in counts if counts[g] == max(counts.values()))
        step = common[(len(common) - 1) // 2]
    result = [0] if numbers else []
    for gap in gaps:
        result.append(result[-1] + max(1, (2 * gap + step) // (2 * step)))
    return result


def natural(text: str) -> list:
    """Sort key that puts frame10 after frame9."""
    return [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", text) if t]


def pictures(folder: Path, recursive: bool) -> list[Path]:
    """All jpg and png files of a folder, hidden ones left out, in natural order of their relative paths."""
    found = [
        p
        for p in (folder.rglob("*") if recursive else folder.iterdir())
        if p.suffix.lower() in PICTURES and not p.name.startswith(".") and not p.is_dir()
    ]
    return sorted(found, key=lambda p: natural(p.relative_to(folder).as_posix()))


def refuse_names(split: str, folder: Path, bad: list[str], form: str) -> None:
    """UserError that lists file names of another form than the data set's; nothing if `bad` is empty."""
    if bad:
        raise UserError(
            f"data.frames.{split}: {len(bad)} files in {folder} are not called {form}: {listing(bad)}; "
            "move them away or use data.source: folder"
        )


def listing(items: Sequence[str]) -> str:
    """The first ten of many problems, in one line."""
    return ", ".join(items[:10]) + (f" and {len(items) - 10} more" if len(items) > 10 else "")


class CameraFiles:
    """The camera of each frame: one json file for all, or a folder of them called ``NAME_camera.json``.

    In a folder NAME is a frame, a sequence or, as the next best in Cityscapes' naming, another frame of the
    same sequence or the same city (camera files exist for annotated frames only).
    """

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        self.by_name: dict[str, Path] = {}
        if self.path is None or self.path.is_file():
            return
        if not self.path.is_dir():
            raise UserError(f"data.camera: no file or folder {self.path}; correct the path or leave it empty")
        for file in sorted(self.path.rglob("*.json")):
            name = file.stem.removesuffix("_camera")
            while name:
                self.by_name.setdefault(name, file)
                name = name.rpartition("_")[0]
        if not self.by_name:
            raise UserError(f"data.camera: no json file in {self.path}; correct the path or leave it empty")

    def find(self, name: str, sequence: str) -> Path | None:
        """A frame's camera file; None if no camera is given at all. UserError if just this one is missing."""
        if self.path is None or not self.by_name:
            return self.path
        sequence = sequence.replace("/", "_")
        for key in (name, sequence, sequence.rpartition("_")[0]):
            if key in self.by_name:
                return self.by_name[key]
        raise UserError(
            f"data.camera: no json in {self.path} for frame {name}; add {name}_camera.json, "
            "one for its sequence, or give one json file for all frames"
        )
