"""What all readers of raw data sets share: raw frames, listing files, positions, camera files."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from semivid.errors import UserError, raise_all, shown

PICTURES = (".jpg", ".jpeg", ".png")
LONGEST_NAME = 200  # bytes; file systems take 255, and temporaries and other suffixes need some


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

    Sub-classes give `scan(split, faults)` and `mask(frame)`.
    """

    # the size that camera files without width and height belong to; None: that of the frames
    camera_size: tuple[int, int] | None = None
    # values of raw masks that mean void unless a class lists them
    void_ids: tuple[int, ...] = ()
    void_colours: tuple[tuple[int, int, int], ...] = ()
    # True if one folder may hold the frames of several splits
    one_folder = False

    def __init__(self, data: dict):
        self.data = data
        self.frame_folders = {split: Path(path) for split, path in data["frames"].items() if path}
        self.mask_folders = {split: Path(path) for split, path in (data.get("masks") or {}).items() if path}
        if not self.frame_folders:
            raise UserError("data.frames names no folder; give at least data.frames.train")
        faults = [
            f"data.{key}.{split}: no folder {shown(folder)}; correct the path"
            for key, folders in (("frames", self.frame_folders), ("masks", self.mask_folders))
            for split, folder in folders.items()
            if not folder.is_dir()
        ]
        try:
            self.cameras = CameraFiles(data.get("camera"))
        except UserError as error:
            faults.append(str(error))
        if not faults:
            faults = self._overlaps()
        raise_all(faults)

    def _overlaps(self) -> list[str]:
        """Splits whose folders lie within each other: their frames would be in both."""
        real = {split: Path(os.path.realpath(folder)) for split, folder in self.frame_folders.items()}
        return [
            f"data.frames.{a}: {shown(self.frame_folders[a])} lies in the folder of {b}, so that its frames would be "
            "in both splits; give folders beside each other"
            for pair in combinations(sorted(real), 2)
            for a, b in (pair, pair[::-1])
            if real[a].is_relative_to(real[b])
            and not (real[a] == real[b] and (self.one_folder or (a, b) != pair))  # equal: told once
        ]

    @property
    def splits(self) -> list[str]:
        """The splits of the data set, sorted."""
        return sorted(self.frame_folders)

    def scan(self, split: str, faults: list[str]) -> list[RawFrame]:
        """All usable frames of a split, sorted by name; a line per fault is added to `faults`."""
        raise NotImplementedError

    def frames(self, split: str) -> list[RawFrame]:
        """All frames of a split, sorted by name. UserError if there are none, or for strange file names."""
        faults: list[str] = []
        found = self.scan(split, faults)
        raise_all(faults)
        return found

    def mask(self, frame: RawFrame) -> Path | None:
        """The frame's raw mask, or None if the frame is unlabelled."""
        raise NotImplementedError

    def unmatched_masks(self, split: str) -> list[str]:
        """Masks of a split that belong to no frame, where that hints at a slip; most layouts cannot tell."""
        return []

    def build(
        self, split: str, found: list[tuple[str, str, int, Path]], step: int | None, faults: list[str]
    ) -> list[RawFrame]:
        """Frames from (name, sequence, frame number, path): adds positions and cameras, sorts by name.

        Adds to `faults`: no frame at all, names that cannot be used or occur twice, frame numbers that occur twice in
        a sequence, frames without a camera file.
        """
        if not found and not faults:
            faults.append(
                f"data.frames.{split}: no frames ({', '.join(PICTURES)}) in {shown(self.frame_folders[split])}; "
                "correct the path"
            )
        places: dict[str, list[tuple[str, int, Path]]] = defaultdict(list)
        for name, sequence, number, path in sorted(found):
            if reason := _unusable(name):
                faults.append(f"{shown(path)}: {reason}; rename it")
            else:
                places[name].append((sequence, number, path))
        faults += [
            f"data.frames.{split}: {len(same)} frames are called {name} ({', '.join(shown(p) for *_, p in same)}); "
            "rename or remove files"
            for name, same in places.items()
            if len(same) > 1
        ]
        numbers: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, ((sequence, number, _), *_) in places.items():
            numbers[sequence][number].append(name)
        faults += [
            f"data.frames.{split}: {', '.join(same)} have the same frame number, {number}; rename or remove files"
            for by_number in numbers.values()
            for number, same in by_number.items()
            if len(same) > 1
        ]
        place = {
            sequence: dict(zip(sorted(n), positions(sorted(n), step), strict=True)) for sequence, n in numbers.items()
        }
        frames, without = [], []
        for name, ((sequence, number, path), *_) in places.items():
            camera = self.cameras.find(name, sequence)
            if camera is None and self.cameras.path:
                without.append(name)
            frames.append(RawFrame(name, split, sequence, place[sequence][number], path, camera))
        if without:
            faults.append(
                f"data.camera: no json in {shown(self.cameras.path)} for {len(without)} frames of {split}, such as "
                f"{without[0]}; add {without[0]}_camera.json, one for its sequence, or give one json "
                "file for all frames"
            )
        return frames


def _unusable(name: str) -> str:
    """Why a frame cannot have this name (lists of frames hold one name per line), or ""."""
    if shown(name) != name:
        return "its name holds a line break, a control character or broken UTF-8"
    if name != name.strip():
        return "its name begins or ends with a space"
    if len(name.encode()) > LONGEST_NAME:
        return f"its name, folders included, is longer than {LONGEST_NAME} bytes"
    return ""


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


def odd_names(split: str, folder: Path, bad: list[Path], good: int, form: str) -> list[str]:
    """A line per file whose name has another form than the data set's; one in all if no name has it (`good` = 0)."""
    if bad and not good:
        return [
            f"data.frames.{split}: none of the {len(bad)} pictures in {shown(folder)} is called {form} (such as "
            f"{shown(bad[0].relative_to(folder))}); correct the path or data.source"
        ]
    return [f"{shown(path)}: not called {form}; rename it or move it away" for path in bad]


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
            raise UserError(
                f"data.camera: no file or folder {shown(self.path)}; correct the path, or write a file with "
                '{"fov_x": 60} if that is all you know'
            )
        for file in sorted(self.path.rglob("*.json")):
            name = file.stem.removesuffix("_camera")
            while name:
                self.by_name.setdefault(name, file)
                name = name.rpartition("_")[0]
        if not self.by_name:
            raise UserError(f"data.camera: no json file in {shown(self.path)}; correct the path")

    def find(self, name: str, sequence: str) -> Path | None:
        """A frame's camera file; None if no camera is given at all, or just this one is missing."""
        if self.path is None or not self.by_name:
            return self.path
        sequence = sequence.replace("/", "_")
        keys = (name, sequence, sequence.rpartition("_")[0])
        return next((self.by_name[key] for key in keys if key in self.by_name), None)
