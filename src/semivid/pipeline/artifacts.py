"""Atomic outputs: a file or folder appears whole under its name, or the old one stays."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap_folders(new: Path, path: Path, aside: Path) -> None:
    """Put the folder `new` in the place of `path`. Renames cannot replace a folder, so the old one steps aside."""
    if os.path.lexists(path):
        os.rename(path, aside)
    try:
        os.rename(new, path)
    except OSError:
        if os.path.lexists(aside):
            os.rename(aside, path)
        raise
    _remove(aside)


def _name_the_file(error: Exception, path: Path) -> OSError | None:
    """The system's error as an OSError with a file name, which writing to a full disk does not give by itself."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
    elif type(error).__name__ == "SafetensorError" and (code := re.search(r"os error (\d+)", str(error))):
        return OSError(int(code[1]), os.strerror(int(code[1])), str(path))
    return None


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary sibling to write (a file, or a folder that the caller makes); rename it to `path` on success.

    On an error the temporary is removed and whatever `path` held before is untouched; after a kill the next call
    sees to that. Old outputs are never written in place, since DVC may have linked them read-only into its cache.
    Raises OSError that names `path` if it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = path.parent / f".{path.name}.tmp", path.parent / f".{path.name}.old.tmp"
    _remove(temporary)
    if os.path.lexists(aside) and not os.path.lexists(path):
        os.rename(aside, path)
    _remove(aside)
    try:
        yield temporary
        if temporary.is_dir():
            _swap_folders(temporary, path, aside)
        else:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, Exception) and (named := _name_the_file(error, path)):
            raise named from error
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON with a final newline; not-a-number is refused (use null)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
