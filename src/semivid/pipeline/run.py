"""One stage for Snakemake: `python -m semivid.pipeline.run STAGE`, in place of `dvc repro --single-item STAGE`.

DVC's own code decides, restores, runs and records, as in `dvc repro`. Three things are added. The stage's entry in
dvc.lock is read and replaced without parsing and rewriting all others, which took most of the CPU time of a job; the
file is replaced whole, so that a kill cannot truncate it. The runner dies with its engine, and its stage with it. And
it waits for a stage command that a killed engine left behind, before DVC deletes that stage's outputs.
"""

from __future__ import annotations

import fcntl
import gc
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

from semivid.pipeline.process import die_with_parent

if __name__ == "__main__":  # before the imports that take time
    die_with_parent()
    gc.disable()  # of a short-lived process that keeps nearly all it makes

from dvc import dvcfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml, parse_yaml

from semivid.pipeline.artifacts import write_text
from semivid.pipeline.whole_rwlock import write_rwlock_whole

LOCKS = Path(".work/locks")
_EMPTY = "schema: '2.0'\nstages:\n"


def _lines(name: str, entry: dict) -> list[str]:
    """The lines of a stage's entry as DVC writes them: its name, then what it holds."""
    return dumps_yaml({"stages": {name: entry}}).splitlines(keepends=True)[1:]


def _find(lines: list[str], head: str) -> tuple[int, int] | None:
    """Where the entry that begins with the line `head` begins and ends."""
    try:
        start = lines.index(head)
    except ValueError:
        return None
    return start, next((i for i in range(start + 1, len(lines)) if not lines[i].startswith("   ")), len(lines))


def _as_dvc_writes(text: str) -> bool:
    return text.startswith(_EMPTY) and not re.search(r"^[^ \n]", text[len(_EMPTY) :], re.M)


def only_entry(text: str, name: str) -> str:
    """dvc.lock's `text` without the entries of other stages, or all of it if it is not laid out as DVC writes it."""
    if not _as_dvc_writes(text):
        return text
    lines = text.splitlines(keepends=True)
    found = _find(lines, _lines(name, {})[0].replace("{}", "").rstrip() + "\n")
    return _EMPTY + "".join(lines[slice(*found)]) if found else "schema: '2.0'\nstages: {}\n"


def replace_entry(text: str, name: str, entry: dict) -> str | None:
    """dvc.lock's `text` with the entry of stage `name` replaced, or appended: the bytes that DVC itself would write.

    None if the text is not laid out as DVC writes it; DVC must then rewrite it.
    """
    if not _as_dvc_writes(text):
        return None
    entry_lines, lines = _lines(name, entry), text.splitlines(keepends=True)
    found = _find(lines, entry_lines[0])
    start, end = found or (len(lines), len(lines))
    return "".join([*lines[:start], *entry_lines, *lines[end:]])


def _dump_stages(lockfile: dvcfile.Lockfile, stages: list, **kwargs) -> None:
    """In place of `Lockfile.dump_stages`; called under DVC's lock."""
    path = Path(lockfile.path)
    before = path.read_text(encoding="utf-8") if path.exists() else _EMPTY
    after: str | None = before
    for stage in stages:
        for name, entry in to_lockfile(stage, **kwargs).items():
            after = after and replace_entry(after, name, entry)
    if after is None:
        _dvc_dump_stages(lockfile, stages, **kwargs)
    elif after != before:
        write_text(path, after)
        lockfile.repo.scm_context.track_file(lockfile.relpath)


def _load_one(name: str):
    """In place of `Lockfile._load`: a stage needs its own entry, and parsing all of them takes longer than all else."""

    def load(lockfile: dvcfile.Lockfile, **kwargs) -> tuple[dict, str]:
        path = Path(lockfile.path)
        if not path.exists():
            return {}, ""
        text = only_entry(path.read_text(encoding="utf-8"), name)
        return lockfile.validate(parse_yaml(text, lockfile.path), lockfile.path), text

    return load


_dvc_dump_stages = dvcfile.Lockfile.dump_stages


def _lock(path: Path) -> io.TextIOWrapper:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115  (held until the process ends)
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


def run(name: str) -> None:
    """Bring the outputs of stage `name` up to date: nothing, a restore from the run cache, or its command.

    Raises DvcException if the command fails or dvc.yaml cannot be read.
    """
    runner = _lock(LOCKS / f"{name}.runner.lock")
    _lock(LOCKS / f"{name}.lock").close()  # a stage command that outlived its engine has ended now
    dvcfile.Lockfile.dump_stages, dvcfile.Lockfile._load = _dump_stages, _load_one(name)
    write_rwlock_whole()
    logging.getLogger("dvc").setLevel(logging.WARNING)
    # DVC starts commands through $SHELL; one that does not exec would stand between the stage and its engine.
    os.environ["SHELL"] = shutil.which("bash") or "/bin/sh"
    with Repo(".", _wait_for_lock=True) as repo:
        repo.reproduce(name, single_item=True)
    runner.close()


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m semivid.pipeline.run STAGE")
    try:
        run(sys.argv[1])
    except DvcException as error:
        cause = error.__cause__ or error
        raise SystemExit(f"{sys.argv[1]}: {' '.join(str(cause).split())}") from None


if __name__ == "__main__":
    main()
