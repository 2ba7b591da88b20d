"""Classes of a data set: their names and colours, and how raw masks encode them.

Two files describe classes. A *classes file* (YAML, ``presets/classes`` or a user's own) says which ids or
colours of the raw masks belong to which class; the prepared ``classes.json`` holds names and colours only,
because prepared labels hold train ids (0 .. C-1, in the order of the list) and 255 = void.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from semivid.errors import UserError

VOID = 255
_KEYS = {"name", "colour", "ids", "colours"}


@dataclass(frozen=True)
class Classes:
    """Names (C strings) and display colours ((C, 3) uint8, RGB) by train id."""

    names: tuple[str, ...]
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def paint(self, labels: np.ndarray) -> np.ndarray:
        """Train ids (H, W) to an RGB picture (H, W, 3) uint8; void is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colours
        return table[labels]


@dataclass(frozen=True)
class MaskCode:
    """How raw masks encode classes: by ids in one channel, or by RGB colours.

    ids: (256,) uint8, raw id -> train id, or None for colour masks. codes: (N,) int32, ascending, r << 16 | g
    << 8 | b; train: (N,) uint8, train id of each; None for id masks.
    """

    ids: np.ndarray | None
    codes: np.ndarray | None
    train: np.ndarray | None

    def encode(self, mask: Image.Image) -> np.ndarray:
        """A decoded mask to train ids, (H, W) uint8; whatever the classes file does not list becomes 255.

        Raises ValueError where the picture's mode cannot hold such a mask.
        """
        if self.ids is not None:
            if mask.mode not in ("L", "P"):
                raise ValueError(f"mode {mask.mode}, but the classes file lists ids (8-bit, one channel)")
            return self.ids[np.asarray(mask)]
        codes = colour_codes(mask)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.train[place], np.uint8(VOID))


def colour_codes(mask: Image.Image) -> np.ndarray:
    """A colour mask to (H, W) int32, r << 16 | g << 8 | b. ValueError where the mode holds no colours."""
    if mask.mode not in ("RGB", "RGBA", "P"):
        raise ValueError(f"mode {mask.mode}, but the classes file lists colours")
    rgb = np.asarray(mask if mask.mode == "RGB" else mask.convert("RGB")).astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _triple(value, where: str) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or any(type(v) is not int or not 0 <= v <= 255 for v in value):
        raise UserError(f"{where}: {value!r} is no colour; write [red, green, blue], each 0 to 255")
    return tuple(value)


def read_class_file(path: str | Path) -> tuple[Classes, MaskCode]:
    """Read a classes file: a list of ``{name, colour: [r, g, b], ids: [...]`` or ``colours: [[r, g, b]]}``.

    The position in the list is the train id. Raises UserError for a missing file, unknown keys, double names,
    ids or colours given twice, and for files that mix ids and colours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"data.classes: no file {path}; choose one of presets/classes or write your own")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise UserError(f"{path}: must be a list of classes, each with name, colour and ids or colours")
    if len(entries) > VOID:
        raise UserError(f"{path}: {len(entries)} classes, but 8-bit labels hold at most {VOID}; merge some")
    names, colours, raw = [], [], {}
    kind = "ids" if "ids" in entries[0] else "colours"
    for train, entry in enumerate(entries):
        where = f"{path}, class {train} ({entry.get('name', 'without a name')})"
        if set(entry) - _KEYS:
            raise UserError(f"{where}: unknown key {min(set(entry) - _KEYS)!r}; known are {sorted(_KEYS)}")
        if set(entry) != {"name", "colour", kind} or not isinstance(entry[kind], list) or not entry[kind]:
            raise UserError(f"{where}: needs name, colour and a list of {kind} (one kind in all classes)")
        if entry["name"] in names:
            raise UserError(f"{where}: two classes have this name; rename one")
        names.append(str(entry["name"]))
        colours.append(_triple(entry["colour"], where))
        for key in entry[kind]:
            if kind == "colours":
                red, green, blue = _triple(key, where)
                key = red << 16 | green << 8 | blue
            elif type(key) is not int or not 0 <= key <= 255:
                raise UserError(f"{where}: id {key!r} is no integer from 0 to 255")
            if key in raw:
                raise UserError(f"{where}: one of its {kind} already belongs to {names[raw[key]]}; list it once")
            raw[key] = train
    classes = Classes(tuple(names), np.array(colours, np.uint8))
    if kind == "ids":
        table = np.full(256, VOID, np.uint8)
        table[list(raw)] = list(raw.values())
        return classes, MaskCode(table, None, None)
    codes = sorted(raw)
    return classes, MaskCode(None, np.array(codes, np.int32), np.array([raw[c] for c in codes], np.uint8))


def write_classes(path: str | Path, classes: Classes) -> None:
    """Write ``classes.json``: names, colours (r, g, b in 0..255) and the void id 255."""
    content = {"names": list(classes.names), "colours": classes.colours.tolist(), "void": VOID}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_classes(path: str | Path) -> Classes:
    """Read the prepared ``classes.json``; UserError if it is missing or broken."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Classes(tuple(content["names"]), np.array(content["colours"], np.uint8).reshape(-1, 3))
    except FileNotFoundError:
        raise UserError(f"no file {path}; run the stage masks first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no classes.json ({error}); run the stage masks again") from None
