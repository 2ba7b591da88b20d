"""Classes of a data set: their names and colours, and how raw masks encode them.

Two files describe classes. A *classes file* (YAML, ``presets/classes`` or a user's own) says which ids or
colours of the raw masks belong to which class, and which to none; the prepared ``classes.json`` holds names and
colours only, because prepared labels hold train ids (0 .. C-1, in the order of the list) and 255 = void.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML, YAMLError

from semivid.errors import UserError, explain_yaml

VOID = 255
_KEYS = ("name", "colour", "ids", "colours")
_LARGEST_ID = 255  # also of masks with 16 bits per pixel
_SHOWN = 4


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

    kind: "ids" or "colours". train: raw id, or colour as r << 16 | g << 8 | b, to train id; VOID for values that are
    known to mean no class.
    """

    kind: str
    train: dict[int, int]

    def with_void(self, ids: Iterable[int], colours: Iterable[tuple[int, int, int]]) -> "MaskCode":
        """The code in which these raw values too are void, unless a class has them."""
        values = ids if self.kind == "ids" else [r << 16 | g << 8 | b for r, g, b in colours]
        return MaskCode(self.kind, dict.fromkeys(values, VOID) | self.train)

    def encode(self, mask: Image.Image) -> np.ndarray:
        """A decoded mask to train ids, (H, W) uint8, 255 = void. Transparent pixels (alpha 0) are void.

        Raises ValueError, with the reason, where the picture cannot be such a mask or holds values that are neither
        a class nor known to be void.
        """
        known = sorted(self.train)
        train = np.array([self.train[k] for k in known], np.uint8)
        if self.kind == "ids":
            values = _ids(mask)
            table = np.full(_LARGEST_ID + 2, -1, np.int16)
            table[known] = train
            found = table[np.where((values < 0) | (values > _LARGEST_ID), _LARGEST_ID + 1, values)]
            labels, hit = found.astype(np.uint8), found >= 0
        else:
            values = _colours(mask)
            place = np.minimum(np.searchsorted(known, values), len(known) - 1)
            labels, hit = train[place], np.array(known)[place] == values
        if mask.mode in ("RGBA", "LA"):
            seen = np.asarray(mask)[..., -1] > 0
            labels[~seen] = VOID
            hit |= ~seen
        if not hit.all():
            raise ValueError(self._unlisted(values[~hit]))
        return labels

    def _unlisted(self, values: np.ndarray) -> str:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_SHOWN]
        named = [v if self.kind == "ids" else [v >> 16, v >> 8 & 255, v & 255] for v in found[order].tolist()]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        pairs = ", ".join(f"{n} ({c} pixels)" for n, c in zip(named, counts[order].tolist(), strict=True))
        return f"{self.kind} that the classes file does not list: {pairs}{more}"


def _ids(mask: Image.Image) -> np.ndarray:
    """The numbers in a mask, int32 (H, W): grey values, palette indices, 16-bit values, or equal RGB channels."""
    if mask.mode in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
        return np.asarray(mask).astype(np.int32)
    if mask.mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"mode {mask.mode}, but the classes file lists ids (one channel)")
    channels = np.asarray(mask)
    if mask.mode != "LA" and (channels[..., :2] != channels[..., 1:3]).any():
        raise ValueError("a colour picture, but the classes file lists ids (one channel)")
    return channels[..., 0].astype(np.int32)


def _colours(mask: Image.Image) -> np.ndarray:
    """The colours of a mask, int32 (H, W), r << 16 | g << 8 | b."""
    if mask.mode not in ("RGB", "RGBA", "P", "L", "LA", "1"):
        raise ValueError(f"mode {mask.mode}, but the classes file lists colours (RGB)")
    rgb = np.asarray(mask if mask.mode == "RGB" else mask.convert("RGB")).astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _triple(value, where: str) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or any(type(v) is not int or not 0 <= v <= 255 for v in value):
        raise UserError(f"{where}: {value!r} is no colour; write [red, green, blue], each 0 to 255")
    return tuple(value)


def _entries(path: Path) -> list[dict]:
    try:
        # YAML 1.2, as params.yaml: a class called `no` keeps its name, a key given twice is an error
        entries = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"data.classes: cannot read {path} ({error.strerror}); choose one of presets/classes or write your own"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {explain_yaml(error)}; correct it") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise UserError(f"{path}: must be a list of classes, each with name, colour and ids or colours")
    return entries


def read_class_file(path: str | Path) -> tuple[Classes, MaskCode]:
    """Read a classes file: a list of ``{name, colour: [r, g, b], ids: [...]`` or ``colours: [[r, g, b]]}``.

    The position in the list is the train id. An entry ``{void: [...]}`` lists the ids or colours that mean no class.
    Raises UserError for a missing file, unknown keys, double names, ids or colours given twice, and for files that mix
    ids and colours.
    """
    path = Path(path)
    entries = _entries(path)
    voids = []
    for entry in [e for e in entries if set(e) == {"void"}]:
        if not isinstance(entry["void"], list):
            raise UserError(f"{path}, void: {entry['void']!r} is no list; write [0, 255], or [[0, 0, 0]] for colours")
        voids += entry["void"]
        entries.remove(entry)
    if not entries:
        raise UserError(f"{path}: lists no class; each has name, colour and ids or colours")
    if len(entries) > VOID:
        raise UserError(f"{path}: {len(entries)} classes, but 8-bit labels hold at most {VOID}; merge some")
    names, colours, raw = [], [], {}
    kind = "ids" if "ids" in entries[0] else "colours"
    for train, entry in enumerate(entries):
        where = f"{path}, class {train} ({entry.get('name', 'without a name')})"
        unknown = [str(key) for key in entry if key not in _KEYS]
        if unknown:
            near = get_close_matches(unknown[0], _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(_KEYS))}"
            raise UserError(f"{where}: unknown key {unknown[0]!r}; {hint}")
        if set(entry) != {"name", "colour", kind} or not isinstance(entry[kind], list) or not entry[kind]:
            raise UserError(f"{where}: needs name, colour and a list of {kind} (one kind in all classes)")
        if not isinstance(entry["name"], str) or not entry["name"].strip() or not entry["name"].isprintable():
            raise UserError(f"{where}: the name must be a text of one line; write it in quotes")
        if entry["name"] in names:
            raise UserError(f"{where}: two classes have this name; rename one")
        names.append(entry["name"])
        colours.append(_triple(entry["colour"], where))
        for value in entry[kind]:
            key = _raw(value, kind, where)
            if key in raw:
                raise UserError(f"{where}: one of its {kind} already belongs to {names[raw[key]]}; list it once")
            raw[key] = train
    for value in voids:
        key = _raw(value, kind, f"{path}, void")
        if key in raw and raw[key] != VOID:
            raise UserError(f"{path}, void: {value} already belongs to {names[raw[key]]}; list it once")
        raw[key] = VOID
    return Classes(tuple(names), np.array(colours, np.uint8)), MaskCode(kind, raw)


def _raw(value, kind: str, where: str) -> int:
    """A value of a raw mask as `MaskCode` knows it."""
    if kind == "colours":
        red, green, blue = _triple(value, where)
        return red << 16 | green << 8 | blue
    if type(value) is not int or not 0 <= value <= _LARGEST_ID:
        raise UserError(f"{where}: id {value!r} is no integer from 0 to {_LARGEST_ID}")
    return value


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
