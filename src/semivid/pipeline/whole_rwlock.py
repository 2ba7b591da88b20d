"""DVC's list of who reads and writes which path (.dvc/tmp/rwlock), replaced whole so that a kill cannot truncate it."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dvc import rwlock
from dvc.lock import make_lock
from voluptuous import Invalid


def _read(path: Path) -> dict:
    try:
        return rwlock.SCHEMA(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return rwlock.SCHEMA({})
    except ValueError:
        # A `dvc` killed while it wrote in place. What was listed is lost; the locks under .work/locks, which the
        # system keeps, still hold two writers of one stage apart.
        return rwlock.SCHEMA({})
    except Invalid as error:
        raise rwlock.RWLockFileFormatError(path) from error


@contextlib.contextmanager
def _edit_rwlock(lock_dir: str, fs, hardlink: bool) -> Iterator[dict]:
    """In place of DVC's function of this name, which truncates the file before it writes."""
    path = Path(lock_dir) / rwlock.RWLOCK_FILE
    guard = make_lock(fs.join(lock_dir, rwlock.RWLOCK_LOCK), tmp_dir=lock_dir, hardlink_lock=hardlink)
    with guard:
        lock = _read(path)
        lock["read"] = defaultdict(list, lock["read"])
        lock["write"] = defaultdict(dict, lock["write"])
        yield lock
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(lock), encoding="utf-8")
        os.replace(temporary, path)


def write_rwlock_whole() -> None:
    """From now on, DVC in this process replaces the file whole, and takes a truncated one for an empty one."""
    rwlock._edit_rwlock = _edit_rwlock
