"""What Snakemake needs to know of the DVC pipeline: its stages, what each reads and writes, and which are stale.

dvc.yaml is the only description. DVC judges staleness, records and caches; Snakemake schedules
one stage per job (run.py). A stamp file per stage, an input of its rule, carries DVC's verdict over:
new content makes Snakemake run the rule, an old time of change makes it leave the rule alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dvc.dependency import param
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc.rwlock import rwlock
from dvc.scm import SCMError
from dvc.stage import Stage
from ruamel.yaml import YAML

from semivid.errors import UserError
from semivid.pipeline.whole_rwlock import write_rwlock_whole

STAMPS = Path(".work/stamps")
DYING_SECONDS = 5.0
ENGINE_LOCK = Path(".work/locks/snakemake.lock")
_engine_lock: IO[str] | None = None


@dataclass
class DvcStage:
    """A stage of dvc.yaml as Snakemake sees it.

    name: DVC's address, e.g. ``train@supervised-random-12-7``. inputs, outputs: paths relative to the root, in
    dvc.yaml's order; inputs are outputs of other stages. meta: resources. stale: must run, or may have to because
    a stage before it runs.
    """

    name: str
    inputs: list[str]
    outputs: list[str]
    meta: dict
    upstream: list[str] = field(default_factory=list)
    stale: bool = False

    @property
    def rule(self) -> str:
        """A valid Snakemake rule name."""
        return "".join(c if c.isalnum() else "_" for c in self.name)

    @property
    def stamp(self) -> Path:
        """The file that carries DVC's verdict."""
        return STAMPS / self.name


def _path(out) -> str:
    return os.path.relpath(out.fs_path)


def is_folder(path: str) -> bool:
    """DVC does not tell folders from files before they exist; here an output without a suffix is a folder."""
    return not Path(path).suffix


@contextmanager
def _each_path_read_once() -> Iterator[None]:
    """While DVC compares: what many stages read (a folder, params.yaml) is looked through once."""
    hashes: dict[tuple[str, str], tuple] = {}
    files: dict[str, dict] = {}
    get_hash, load = Output._get_hash_meta, param.load_path

    def hash_once(out: Output) -> tuple:
        key = out.fs_path, out.hash_name
        if key not in hashes:
            hashes[key] = get_hash(out)
        return hashes[key]

    def load_once(path: str, fs, **kwargs) -> dict:
        if path not in files:
            files[path] = load(path, fs, **kwargs)
        return files[path]

    Output._get_hash_meta, param.load_path = hash_once, load_once
    try:
        yield
    finally:
        Output._get_hash_meta, param.load_path = get_hash, load


def _changed(repo: Repo, stages: Iterable[Stage]) -> set[str]:
    """Names of the stages that `dvc status` names; like it, refuses while another stage runs.

    The same comparisons in a fraction of the time: locks are taken for all stages together.
    """
    paths = sorted({item.fs_path for stage in stages for item in (*stage.deps, *stage.outs)})
    give_up = time.monotonic() + DYING_SECONDS
    while True:
        try:
            with rwlock(repo.tmp_dir, repo.fs, "status", paths, [], False), _each_path_read_once():
                return {name for stage in stages for name in Stage.status.__wrapped__(stage)}
        except LockError:  # perhaps of a stage whose engine was killed a moment ago, and which is still ending
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def read_stages(check: bool) -> list[DvcStage]:
    """All stages of dvc.yaml, upstream first.

    check: ask DVC which are stale (with everything downstream of them). Only one process of a run may ask: DVC
    refuses while another stage runs. Without it no stage counts as stale.
    Raises UserError if dvc.yaml or params.yaml cannot be read, there is no git, or another engine is at work in this
    checkout.
    """
    write_rwlock_whole()
    try:
        repo = Repo(".")
        with lock_repo(repo) if check else nullcontext():
            graph = repo.index.graph  # an edge leads from a stage to one it depends on
            changed = _changed(repo, graph) if check else set()
    except SCMError as error:  # an unpacked zip; `make` has set this itself
        hint = "DVC works without git after `dvc config --local core.no_scm true`"
        raise UserError(f"{error}; {hint}") from None
    except DvcException as error:
        raise UserError(f"dvc: {' '.join(str(error).split())}") from None
    stages: dict[str, DvcStage] = {}

    def visit(stage) -> DvcStage:
        name = stage.addressing
        if name in stages:
            return stages[name]
        before = [visit(s) for s in graph.successors(stage)]
        made = {o for s in before for o in s.outputs}
        declared = [_path(d) for d in stage.deps]
        # A dependency may be a file inside an upstream folder, or a folder that holds upstream files.
        inputs = sorted({m for m in made for d in declared if _overlap(m, d)})
        stages[name] = DvcStage(
            name,
            inputs,
            [_path(o) for o in stage.outs],
            dict(stage.meta or {}),
            [s.name for s in before],
            name in changed or any(s.stale for s in before),
        )
        return stages[name]

    for stage in graph:
        visit(stage)
    return list(stages.values())


def _take_engine_lock() -> IO[str]:
    ENGINE_LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = open(ENGINE_LOCK, "w")  # noqa: SIM115  (held until it is closed, or the process ends)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError("another snakemake is at work in this folder; wait for it to end, or stop it") from None
    return file


def hold_engine_lock() -> None:
    """Keep other Snakemakes out of this folder until this process ends, however it ends.

    Snakemake's own lock is a file that outlives a kill and asks for `--unlock`; profiles/default switches it off.
    Raises UserError if another Snakemake is at work here.
    """
    global _engine_lock
    _engine_lock = _take_engine_lock()


def refuse_beside_another() -> None:
    """Raise UserError if another Snakemake is at work here: it still needs the stamps as they are."""
    _take_engine_lock().close()


def remove_orphans(repo: Repo | None = None) -> list[str]:
    """Delete outputs of stages that dvc.yaml no longer makes (a seed or a label count taken out); returns the paths.

    Some stages read a folder that many others write into (results/runs). A file left over there would count as a
    change of that folder, and a fresh clone, which has no left-overs, would disagree. Only what dvc.lock records is
    deleted; DVC's run cache brings it back when the stage returns.
    """
    repo = repo or Repo(".")
    lock = Path("dvc.lock")
    if not lock.exists():
        return []
    recorded = YAML(typ="safe").load(lock.read_text()) or {}
    present = {s.addressing for s in repo.index.stages}
    wanted = {_path(o) for s in repo.index.stages for o in s.outs}
    removed = []
    for name, entry in recorded.get("stages", {}).items():
        for path in [o["path"] for o in entry.get("outs", []) if name not in present]:
            if path not in wanted and Path(path).exists():
                shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
                removed.append(path)
    return removed


def _overlap(a: str, b: str) -> bool:
    a_parts, b_parts = Path(a).parts, Path(b).parts
    shorter = min(len(a_parts), len(b_parts))
    return a_parts[:shorter] == b_parts[:shorter]


def write_stamps(stages: list[DvcStage]) -> None:
    """Tell Snakemake: a stale stage's stamp gets new content, any other's the oldest possible time of change.

    New content and not only a new time, since Snakemake compares checksums of small files.
    """
    STAMPS.mkdir(parents=True, exist_ok=True)
    known = {s.stamp for s in stages}
    for stage in stages:
        if stage.stale:
            stage.stamp.write_text(uuid.uuid4().hex)
        elif not stage.stamp.exists():
            stage.stamp.write_text("unchanged")
        if not stage.stale:
            os.utime(stage.stamp, (0, 0))
    for left_over in set(STAMPS.iterdir()) - known:
        left_over.unlink()
