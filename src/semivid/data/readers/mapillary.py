"""Mapillary Vistas, as released in version 1.2 (and 1.1, of the same layout).

``{training,validation}/images/{key}.jpg``, ``{training,validation}/labels/{key}.png`` (palette PNG of ids 0..65, 65 =
unlabelled) and ``config.json`` (class names) beside both. Single photographs of many cameras and sizes: there is no
video and no calibration, so every frame is a sequence of its own, and all are brought to ``frames.size`` whatever
their shape (Three Ways, section 3: 704x512).
"""

import json
import re
from pathlib import Path

from semivid.data.readers.base import RawFrame, Reader, pictures
from semivid.errors import UserError, raise_all, shown

CLASSES = 66  # of versions 1.1 and 1.2, "unlabelled" included; 2.0 has 124, numbered otherwise


class MapillaryReader(Reader):
    """Frames are called by their key (``-0A1b2C_...``), which is their sequence too.

    ``data.frames`` names the folders ``images``, ``data.masks`` the folders ``labels`` (or ``v1.2/labels`` of the
    later download). Ids that no class of the classes file lists are void.
    """

    void_ids = (*range(CLASSES), 255)

    def __init__(self, data: dict):
        super().__init__(data)
        raise_all([fault for split, folder in self.mask_folders.items() for fault in _other_release(split, folder)])

    def scan(self, split: str, faults: list[str]) -> list[RawFrame]:
        folder = self.frame_folders[split]
        files = pictures(folder, recursive=False)
        if not files and (folder / "images").is_dir():
            faults.append(f"data.frames.{split}: {shown(folder)} holds no pictures; give {shown(folder / 'images')}")
        return self.build(split, [(path.stem, path.stem, 0, path) for path in files], None, faults)

    def mask(self, frame: RawFrame) -> Path | None:
        folder = self.mask_folders.get(frame.split)
        path = folder / f"{frame.name}.png" if folder else None
        return path if path and path.is_file() else None


def classes_file(config: Path | str) -> str:
    """A classes file (YAML) of all 65 classes, with the names and colours of a release's config.json.

    Three Ways trains on these (section 3); ``presets/classes/mapillary19.yaml`` has Cityscapes' 19 instead.
    ``python -m semivid.data.mapillary_classes config.json`` prints it.
    Raises UserError if the file is no config.json of version 1.1 or 1.2.
    """
    labels = _labels(Path(config))
    if len(labels) != CLASSES:
        raise UserError(f"{shown(config)} lists {len(labels)} classes, not the {CLASSES} of version 1.2")
    try:
        named = [(json.dumps(label["readable"], ensure_ascii=False), label["color"][:3]) for label in labels[:-1]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{shown(config)} has a class without name or colour ({error}); unpack it again") from None
    lines = [f"- {{name: {name}, colour: {colour}, ids: [{raw}]}}" for raw, (name, colour) in enumerate(named)]
    return "\n".join([*lines, f"- void: [{CLASSES - 1}]"])


def _labels(config: Path) -> list[dict]:
    """The classes of a config.json, by id."""
    try:
        labels = json.loads(config.read_text(encoding="utf-8"))["labels"]
        len(labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown(config)} is no config.json of Mapillary Vistas ({error}); unpack it again") from None
    return labels


def _other_release(split: str, masks: Path) -> list[str]:
    """A line if the masks' folder, or the file of class names above it, belongs to another release."""
    where = f"data.masks.{split}"
    if masks.name in ("instances", "panoptic", "polygons"):
        return [f"{where}: {shown(masks)} holds {masks.name}; give {shown(masks.with_name('labels'))}"]
    version = masks.parent.name if re.fullmatch(r"v\d.*", masks.parent.name) else ""
    if version and version != "v1.2":
        return [f"{where}: {shown(masks)} holds the labels of {version}; give those of v1.2"]
    config = masks.parent.parent.parent / f"config_{version}.json" if version else masks.parent.parent / "config.json"
    if not config.is_file():
        return []
    count = len(_labels(config))
    if count == CLASSES:
        return []
    return [f"{where}: {shown(config)} lists {count} classes, not the {CLASSES} of version 1.2; give that release"]
