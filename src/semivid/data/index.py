"""The prepared index: every frame with its split, place in the video, picture, camera and label.

``frames.csv`` (columns frame, split, sequence, position, image, camera) is written by the stage frames,
``index.csv`` (the same and the column label) by the stage masks. Paths are relative to the file's own folder.
Everything after the preparation reads the index and nothing of the raw data. No torch, no pandas: this module
is imported by stages that should start at once.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from semivid.data.cameras import Camera, read_cameras
from semivid.data.classes import VOID, Classes, read_classes
from semivid.errors import UserError

__all__ = [
    "VOID",
    "Camera",
    "Classes",
    "Frame",
    "Index",
    "read_cameras",
    "read_classes",
    "read_index",
    "write_index",
]

_COLUMNS = ["frame", "split", "sequence", "position", "image", "camera"]


@dataclass(frozen=True)
class Frame:
    """One prepared frame.

    frame: name, unique in the index. split: train, val or test. sequence: the video it belongs to. position:
    integer frame number within (split, sequence); frames at t and t + 1 are true neighbours. image: RGB
    picture. camera: key of cameras.json, empty if unknown. label: PNG of train ids, None if unlabelled. Paths
    are absolute.
    """

    frame: str
    split: str
    sequence: str
    position: int
    image: Path
    camera: str
    label: Path | None


class Index:
    """Frames sorted by (split, frame). Raises UserError if a name occurs twice."""

    def __init__(self, frames: Iterable[Frame], source: str | Path = "the index"):
        self.frames = sorted(frames, key=lambda f: (f.split, f.frame))
        self.by_name = {f.frame: f for f in self.frames}
        if len(self.by_name) < len(self.frames):
            seen: set[str] = set()
            twice = next(f.frame for f in self.frames if f.frame in seen or seen.add(f.frame))
            raise UserError(f"{source}: two frames are called {twice}; rename one of the source files")
        self._places = {(f.split, f.sequence, f.position): f for f in self.frames}

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, split: str | None = None, labelled: bool | None = None) -> list[Frame]:
        """Frames of a split (None: all) that have (True) or lack (False) a label (None: either), in order."""
        return [
            f
            for f in self.frames
            if (split is None or f.split == split) and (labelled is None or (f.label is not None) == labelled)
        ]

    def neighbour(self, frame: Frame, offset: int) -> Frame | None:
        """The frame `offset` steps later (negative: earlier) in the same video and split, or None.

        Never reaches into another split: neighbours of training frames must not be validation frames.
        """
        return self._places.get((frame.split, frame.sequence, frame.position + offset))


def read_index(csv_path: str | Path) -> Index:
    """Read ``frames.csv`` (labels are None) or ``index.csv``. UserError if it is missing or malformed."""
    # abspath, not resolve: in a linked cache the link's target has no file extension
    path = Path(os.path.abspath(csv_path))
    if not path.is_file():
        stage = "frames" if path.name == "frames.csv" else "masks"
        raise UserError(f"no file {csv_path}; run the stage {stage} first")
    frames = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [c for c in _COLUMNS if c not in (rows.fieldnames or [])]
        if missing:
            raise UserError(f"{csv_path}: no column {', '.join(missing)}; run the stage that writes it again")
        for row in rows:
            if None in row.values() or not row["position"].lstrip("-").isdigit():
                raise UserError(f"{csv_path}, line {rows.line_num}: malformed row; run the stage again")
            label = row.get("label")
            frames.append(
                Frame(
                    row["frame"],
                    row["split"],
                    row["sequence"],
                    int(row["position"]),
                    path.parent / row["image"],
                    row["camera"],
                    path.parent / label if label else None,
                )
            )
    return Index(frames, csv_path)


def write_index(csv_path: str | Path, frames: Iterable[Frame], labels: bool) -> None:
    """Write ``frames.csv`` (labels False) or ``index.csv`` (True), sorted; replaces the file in one step."""
    path = Path(os.path.abspath(csv_path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")

    def relative(target: Path | None) -> str:
        return Path(os.path.relpath(target, path.parent)).as_posix() if target else ""

    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS + ["label"] * labels)
        for f in Index(frames, csv_path).frames:
            row = [f.frame, f.split, f.sequence, f.position, relative(f.image), f.camera]
            writer.writerow(row + [relative(f.label)] * labels)
    os.replace(temporary, path)
