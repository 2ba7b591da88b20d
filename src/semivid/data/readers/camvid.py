"""CamVid, in the layout of the SegNet release and in the original one.

SegNet: ``{split}/{stem}`` with masks ``{split}annot/{stem}.png`` (ids 0..10, 11 = void), 480x360, 367 / 101 /
233 frames. Original: 701 frames 960x720 in one folder, masks ``{stem}_L.png`` in 32 colours in another; the
lists ``splits/camvid_{train,val}.txt`` divide them, and the split test is all that is in neither list.
"""

import re
from pathlib import Path

from semivid.data.readers.base import RawFrame, Reader, odd_names, pictures
from semivid.errors import UserError, shown

_NAME = re.compile(r"(.+)_f?(\d+)")


class CamVidReader(Reader):
    """Frames are called by their file stem; a sequence is what stands before the last ``_`` (``0016E5``)."""

    void_ids = (11, 255)

    def scan(self, split: str, faults: list[str]) -> list[RawFrame]:
        folder = self.frame_folders[split]
        found, bad = [], []
        for path in self._files(split, pictures(folder, recursive=False), faults):
            match = _NAME.fullmatch(path.stem)
            if match:
                found.append((path.stem, match[1], int(match[2]), path))
            else:
                bad.append(path)
        faults += odd_names(split, folder, bad, len(found), "{sequence}_{frame}.png")
        # the regular step is 30 in train and 2 in val, with a few frames off by one
        return self.build(split, found, None, faults)

    def _files(self, split: str, files: list[Path], faults: list[str]) -> list[Path]:
        return files

    def mask(self, frame: RawFrame) -> Path | None:
        return self._existing(frame, f"{frame.name}.png")

    def _existing(self, frame: RawFrame, name: str) -> Path | None:
        folder = self.mask_folders.get(frame.split)
        return folder / name if folder and (folder / name).is_file() else None


class CamVidOriginalReader(CamVidReader):
    """The 701 frames as published by Cambridge. ``data.lists`` {split: file} replaces those in splits/."""

    void_colours = ((0, 0, 0),)
    one_folder = True

    def _files(self, split: str, files: list[Path], faults: list[str]) -> list[Path]:
        lists = {s: _names(self._list(s)) for s in ("train", "val")}
        by_stem = {path.stem: path for path in files}
        if split not in lists:
            return [path for path in files if not any(path.stem in names for names in lists.values())]
        faults += [
            f"{self._list(split)}: {shown(name)} is not in {shown(self.frame_folders[split])}; unpack the whole of "
            "701_StillsRaw_full, or take it out of the list"
            for name in lists[split]
            if name not in by_stem
        ]
        return [by_stem[name] for name in lists[split] if name in by_stem]

    def _list(self, split: str) -> Path:
        return Path((self.data.get("lists") or {}).get(split, f"splits/camvid_{split}.txt"))

    def mask(self, frame: RawFrame) -> Path | None:
        return self._existing(frame, f"{frame.name}_L.png")


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f"cannot read the list of frames {path} ({error.strerror}); restore it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; a list has one frame name per line") from None
