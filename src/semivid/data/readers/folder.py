"""A user's own video: a folder of frames, optionally a folder of masks, no code.

Frames: jpg or png; every sub-folder is a sequence. Masks: png of the same relative path and stem, for as many
frames as there are. If data.frames.train and data.frames.val are the same folder, the last part of each
sequence (the fraction data.holdout) is the validation split.
"""

import os
import re
import unicodedata
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from semivid.data.readers.base import RawFrame, Reader, pictures
from semivid.errors import UserError, raise_all, shown

_NUMBER = re.compile(r"(.*?)(\d+)")


class FolderReader(Reader):
    """Frames are called ``{sub-folders}_{stem}``; if two splits share a name, ``{split}_`` is put before all.

    A sequence is the relative path of the sub-folder ("." for frames at the top). If the file names of a
    sequence differ in their last number only, that number makes the positions, and larger gaps count as cuts;
    otherwise the files follow each other in natural order.
    """

    # where no class lists them: what painting and labelling programs write for "nothing"
    void_ids = (0, 255)
    void_colours = ((0, 0, 0),)
    one_folder = True

    def __init__(self, data: dict):
        super().__init__(data)
        folders = {split: os.path.realpath(path) for split, path in self.frame_folders.items()}
        self.shared = "val" in folders and folders["val"] == folders.get("train")
        if self.shared and not (isinstance(data.get("holdout"), float) and 0 < data["holdout"] < 1):
            raise UserError(
                "data.holdout: train and val are one folder, so a fraction between 0 and 1 of each sequence "
                f"must be held out for val, not {data.get('holdout')!r}"
            )
        raise_all(
            [
                # the frames stage, which knows no masks, would take them for frames
                f"data.masks.{split}: {shown(path)} lies in a folder of frames; move the masks elsewhere"
                for split, path in self.mask_folders.items()
                if any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in folders.values())
            ]
        )
        self._masks = {split: self._find_masks(split) for split in self.mask_folders}
        names = [{name for _, _, name, _ in self._scan(split)} for split in self.splits]
        self._prefix = not self.shared and sum(map(len, names)) > len(set().union(*names))

    def scan(self, split: str, faults: list[str]) -> list[RawFrame]:
        sequences = defaultdict(list)
        for path, sequence, name, _ in self._scan(split):
            sequences[sequence].append((f"{split}_{name}" if self._prefix else name, path))
        found = []
        for sequence, files in sequences.items():
            files = list(zip(files, _numbers([path.stem for _, path in files]), strict=True))
            if self.shared:
                cut = len(files) - round(self.data["holdout"] * len(files))
                files = files[:cut] if split == "train" else files[cut:]
            found += [(name, sequence, number, path) for (name, path), number in files]
        if self.shared and not found and any(sequences.values()):
            faults.append(
                f"data.holdout: {self.data['holdout']} of each sequence leaves no frame for {split} (the longest has "
                f"{max(map(len, sequences.values()))}); change it"
            )
        return self.build(split, found, None, faults)

    def mask(self, frame: RawFrame) -> Path | None:
        return self._masks.get(frame.split, {}).get(_key(frame.image.relative_to(self.frame_folders[frame.split])))

    def unmatched_masks(self, split: str) -> list[str]:
        """Masks without a frame of the same name: most likely misspelt, and silently lost otherwise."""
        keys = {key for _, _, _, key in self._scan(split)}
        return [k for k in self._masks.get(split, {}) if k not in keys]

    def _scan(self, split: str) -> list[tuple[Path, str, str, str]]:
        """(path, sequence, name, key) of all frames below the split's folder, natural order."""
        folder = self.frame_folders[split]
        result = []
        for path in pictures(folder, recursive=True):
            relative = path.relative_to(folder)
            stem = relative.with_suffix("")
            result.append((path, stem.parent.as_posix(), "_".join(stem.parts), _key(relative)))
        return result

    def _find_masks(self, split: str) -> dict[str, Path]:
        folder = self.mask_folders[split]
        # a png goes before a jpg of the same name, which cannot be a mask and is refused if it stands alone
        files = sorted(pictures(folder, recursive=True), key=lambda p: p.suffix.lower() == ".png")
        return {_key(p.relative_to(folder)): p for p in files}


def _key(relative: Path) -> str:
    """What a frame and its mask share; letters with accents may be written in two ways (macOS splits them)."""
    return unicodedata.normalize("NFC", relative.with_suffix("").as_posix())


def _numbers(stems: list[str]) -> list[int]:
    """Frame numbers of a sequence in natural order: the last number if only that varies, else 0, 1, ..."""
    matches = [_NUMBER.fullmatch(stem) for stem in stems]
    if all(matches) and len({m[1] for m in matches}) == 1:
        numbers = [int(m[2]) for m in matches]
        if all(b > a for a, b in pairwise(numbers)):
            return numbers
    return list(range(len(stems)))
