"""A digest of all that unfinished work may only be taken up with: parameters, inputs, sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent


def fingerprint(settings: str, inputs: Sequence[Path | str]) -> str:
    """A digest of everything a resume file may only be used with.

    `settings` names all parameters; of `inputs` (files, folders) and of this package's sources every file's path,
    size and time of change count. Too strict costs a fresh start, never a wrong one.
    """
    digest = hashlib.sha256(settings.encode())
    for root in [*map(Path, inputs), SOURCES]:
        files = sorted(p for p in root.rglob("*") if p.suffix != ".pyc") if root.is_dir() else [root]
        for file in files:
            if file.is_file():
                stat = file.stat()
                digest.update(f"{file}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
