"""Cityscapes' folder layout, also that of the embedded renderer (source street).

frames: ``{split}/{city}/{city}_{snippet}_{frame}_leftImg8bit.png`` (annotated frames or whole sequences),
masks: ``{split}/{city}/{city}_{snippet}_{frame}_gtFine_labelIds.png``, cameras: ``..._camera.json``.
"""

import re
from pathlib import Path

from semivid.data.cameras import CITYSCAPES_SIZE
from semivid.data.readers.base import RawFrame, Reader, odd_names, pictures

_NAME = re.compile(r"((.+)_(\d+))_(\d+)_leftImg8bit")


class CityscapesReader(Reader):
    """Frames are called ``{city}_{snippet}_{frame}``; a sequence is ``{city}_{snippet}``.

    Positions follow the frame numbers with step 1: in the long recordings (Hanover, Frankfurt, ...) many
    snippets share one snippet number, and only consecutive frame numbers are neighbours.
    """

    camera_size = CITYSCAPES_SIZE
    void_ids = (*range(34), 255)  # the official ids

    def scan(self, split: str, faults: list[str]) -> list[RawFrame]:
        folder = self.frame_folders[split]
        found, bad = [], []
        for path in pictures(folder, recursive=True):
            match = _NAME.fullmatch(path.stem)
            if match:
                found.append((path.stem.removesuffix("_leftImg8bit"), match[1], int(match[4]), path))
            else:
                bad.append(path)
        faults += odd_names(split, folder, bad, len(found), "{city}_{snippet}_{frame}_leftImg8bit.png")
        return self.build(split, found, 1, faults)

    def mask(self, frame: RawFrame) -> Path | None:
        folder = self.mask_folders.get(frame.split)
        if folder is None:
            return None
        path = folder / frame.image.parent.name / f"{frame.name}_gtFine_labelIds.png"
        return path if path.is_file() else None


class StreetReader(CityscapesReader):
    """The embedded renderer's output: its camera files belong to the size of its frames."""

    camera_size = None
