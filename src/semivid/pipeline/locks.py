"""Who holds a lock file, asked without taking it (standard library alone)."""

from __future__ import annotations

import fcntl
import struct
import sys
from pathlib import Path

_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process


def holder(path: Path) -> int | None:
    """The process that holds the `fcntl.lockf` lock on `path`; None if nobody does, or it is this process.

    Only asks (F_GETLK): taking the lock to try would make a stage that starts at that moment wait. Linux only;
    elsewhere None.
    """
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return None
    try:
        with open(path, "rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return None if kind == fcntl.F_UNLCK else pid
