"""What the machine tells: cores, memory, and who holds a lock file (standard library alone)."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from contextlib import suppress
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


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mb(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Megabytes (10^6 bytes) of memory that may be used: the machine's, or less where a container has a limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    with suppress(OSError, ValueError):  # no limit: the file says "max", or is not there
        total = min(total, int(cgroup.read_text()))
    return total // 10**6
