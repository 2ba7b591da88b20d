"""Say what would run and why: `python -m semivid.pipeline.plan [STAGE or OUTPUT ...] [--cores N] [--json]`.

DVC's own records are compared with what lies here, stage by stage, upstream first, as `dvc repro` would do it. Where
the outputs of the stages before are known (nothing runs there, or they come back from the run cache), so is what
happens to a stage; below a stage that runs it is open. Nothing is written, and no lock is taken or waited for.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import dpath
import yaml
from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import SCMError
from dvc.stage import PipelineStage
from dvc.stage import cache as run_cache
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import load_path
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from semivid.errors import UserError
from semivid.pipeline.machine import holder, usable_cores
from semivid.pipeline.plan_text import cut, render, some

COSTS, LOCKS, LOGS = Path(".work/costs"), Path(".work/locks"), Path("logs")
MISSING = HashInfo()  # the hash of a path that is not there; None stands for "not known yet"


@dataclass
class Reason:
    """Why a stage is stale in itself.

    kind: never run, command, param, dep, out, always. what: dotted key or path. state: changed, missing, new, gone,
    not in cache. old, new: values of params, commands. files: names in a changed folder, as "added x", "removed x",
    "modified x", or a hint where they cannot be known.
    """

    kind: str
    what: str = ""
    state: str = ""
    old: Any = None
    new: Any = None
    files: list[str] = field(default_factory=list)


@dataclass
class Step:
    """A stage that is stale, or has to wait for one that is.

    verdict: a key of plan_text.VERDICTS. because: the nearest stale stages before it (above: all). threads: cores it
    takes. seconds: expected time of its command; seconds_from: recorded | mean of ... | limit (meta.minutes) |
    unknown. bytes: expected size of its new outputs (None: unknown); bytes_from likewise. note: what else is known.
    """

    name: str
    verdict: str
    reasons: list[Reason]
    because: list[str]
    threads: int = 1
    seconds: float = 0.0
    seconds_from: str = "unknown"
    bytes: int | None = None
    bytes_from: str = "unknown"
    note: str = ""
    above: set[str] = field(default_factory=set)

    @property
    def family(self) -> str:
        return self.name.partition("@")[0]


@dataclass
class Plan:
    """All that the command says. names: every stage of the pipeline; steps: the stale ones, upstream first."""

    names: list[str]
    targets: list[str]
    steps: list[Step]
    left_over: list[str]
    upstream: dict[str, list[str]]
    cores: int
    free: int
    at_work: str = ""

    def seconds(self, verdicts: Sequence[str], cores: int) -> float:
        """Wall time of the steps with one of `verdicts` on `cores` cores."""
        jobs = {s.name: (s.seconds if s.verdict in verdicts else 0.0, s.threads) for s in self.steps}
        return wall_time(jobs, self.upstream, cores)

    def as_json(self) -> dict:
        """The plan for machines; `wall_seconds` of what certainly runs, and of all that may."""
        runs = [s for s in self.steps if s.verdict in ("runs", "maybe")]
        return {
            "stages": len(self.names),
            "targets": self.targets,
            "stale": [asdict(s) | {"above": sorted(s.above)} for s in self.steps],
            "left_over": self.left_over,
            "at_work": self.at_work,
            "expected": {
                "cores": self.cores,
                "wall_seconds": {
                    "certain": self.seconds(["runs"], self.cores),
                    "at_most": self.seconds(["runs", "maybe"], self.cores),
                },
                "stage_seconds": sum(s.seconds for s in runs),
                "new_bytes": sum(s.bytes or 0 for s in runs),
                "free_bytes": self.free,
            },
        }


class Checkout:
    """What DVC records and what lies here; every file is looked at once."""

    def __init__(self) -> None:
        self.repo = Repo(".")
        self.graph = self.repo.index.graph  # an edge leads from a stage to one it depends on
        self.odb = self.repo.cache.local
        lock = Path("dvc.lock")
        # Names, commands and paths alone are read here: texts, for which the fast reader serves. Values come from DVC.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.recorded = (yaml.load(lock.read_text(), loader) or {}).get("stages", {}) if lock.exists() else {}
        self._present: dict[str, tuple[Meta, HashInfo, Tree | None]] = {}
        self._params: dict[str, dict] = {}
        self._trees: dict[str, Tree | None] = {}

    def order(self) -> list:
        """All stages, upstream first, else as in dvc.yaml."""
        done: dict = {}

        def visit(stage) -> None:
            if stage not in done:
                for before in self.graph.successors(stage):
                    visit(before)
                done[stage] = True

        for stage in self.graph:
            visit(stage)
        return list(done)

    def present(self, item) -> tuple[Meta, HashInfo, Tree | None]:
        """Meta, hash (MISSING if absent) and, of a folder, the tree of what lies at `item`'s path now."""
        path = item.fs_path
        if path not in self._present:
            if not item.exists:
                self._present[path] = Meta(), MISSING, None
            else:
                _, meta, found = build(self.odb, path, item.fs, "md5", dry_run=True, ignore=item.dvcignore)
                self._present[path] = meta, found.hash_info, found if isinstance(found, Tree) else None
        return self._present[path]

    def tree(self, hash_info: HashInfo | None) -> Tree | None:
        """The folder with this hash, if the cache knows it."""
        if not hash_info or not hash_info.isdir:
            return None
        if hash_info.value not in self._trees:
            try:
                self._trees[hash_info.value] = Tree.load(self.odb, hash_info)
            except (FileNotFoundError, ObjectFormatError):
                self._trees[hash_info.value] = None
        return self._trees[hash_info.value]

    def assemble(self, path: str, base: Tree | None, outs: dict[str, HashInfo]) -> Tree | HashInfo | None:
        """What lies at `path` when the outputs `outs` {path: hash} have those hashes; None if that cannot be known.

        A hash if `path` is one of them or a file inside one, else a digested tree: a part of one, or `base` (what
        else lies at `path`) with the outputs that lie inside it put in.
        """
        if path in outs:
            return outs[path]
        for out, hash_info in outs.items():
            if _inside(path, out):
                tree, prefix = self.tree(hash_info), Path(path).relative_to(out).parts
                if tree is None:
                    return None
                entry = tree.get(prefix)
                part = None if entry else tree.get_obj(self.odb, prefix)
                return entry[1] if entry else part if part is not None else MISSING
        files = {key: value for key, value in base.as_dict().items()} if base else {}
        for out, hash_info in outs.items():
            at = Path(out).relative_to(path).parts
            files = {k: v for k, v in files.items() if k[: len(at)] != at}
            if hash_info.isdir:
                if (tree := self.tree(hash_info)) is None:
                    return None
                files |= {at + key: (meta, entry) for key, meta, entry in tree}
            elif hash_info:
                files[at] = (Meta(), hash_info)
        whole = Tree()
        for key, (meta, entry) in files.items():
            whole.add(key, meta, entry)
        whole.digest()
        return whole

    def recorded_tree(self, item) -> Tree | None:
        """The folder that the stage saw when it last ran, if the cache or the records of other stages tell."""
        if (tree := self.tree(item.hash_info)) is not None:
            return tree
        path, before = item.fs_path, {}
        for stage in self.graph:
            before |= {o.fs_path: o.hash_info for o in stage.outs if o.hash_info and _overlap(path, o.fs_path)}
        # What no stage makes may have been there too: the files that lie here now are tried as well.
        for base in (None, self.present(item)[2]) if before else ():
            found = self.assemble(path, base, before)
            if isinstance(found, Tree) and found.hash_info == item.hash_info:
                return found
        return None

    def params(self, dep: ParamsDependency) -> dict:
        """The present values of the keys that `dep` declares; keys that are not there are left out."""
        if dep.fs_path not in self._params:
            self._params[dep.fs_path] = load_path(dep.fs_path, dep.fs) if dep.exists else {}
        whole, found = self._params[dep.fs_path], {}
        for key in dep.params or whole:
            try:
                found[key] = dpath.get(whole, key, separator=".")
            except KeyError:
                continue
        return found

    def left_over(self) -> list[str]:
        """Outputs that lie here of stages that dvc.yaml no longer has; Snakemake removes them when it starts."""
        present = {s.addressing for s in self.graph}
        wanted = {os.path.relpath(o.fs_path) for s in self.graph for o in s.outs}
        gone = [o["path"] for n, s in self.recorded.items() if n not in present for o in s.get("outs", [])]
        return [p for p in gone if p not in wanted and Path(p).exists()]

    # ---- why

    def reasons(self, stage, explained: set[str]) -> list[Reason]:
        """Why `stage` is stale in itself. explained: outputs of stale stages, whose own reasons say it all."""
        if not isinstance(stage, PipelineStage):
            pass  # a file of `dvc add` has neither a command nor dependencies
        elif stage.name not in self.recorded:
            return [Reason("never run")]
        found = [Reason("always")] if stage.always_changed else []
        if getattr(stage, "cmd_changed", False):
            found.append(Reason("command", old=self.recorded[stage.name].get("cmd"), new=stage.cmd))
        for dep in [] if stage.frozen else stage.deps:
            if isinstance(dep, ParamsDependency):
                found += self._changed_params(dep)
            elif not any(_overlap(dep.fs_path, out) for out in explained):
                found += self._changed_item(stage, dep, "dep")
        for out in stage.outs:
            found += self._changed_item(stage, out, "out")
        return found

    def _changed_params(self, dep: ParamsDependency) -> list[Reason]:
        now, before = self.params(dep), dep.hash_info.value or {}
        found = []
        for key in dep.params or list(dict.fromkeys([*now, *before])):
            found += _changes(key, before.get(key, _NOTHING), now.get(key, _NOTHING))
        prefix = "" if dep.def_path == dep.DEFAULT_PARAMS_FILE else f"{dep.def_path}: "
        return [Reason("param", prefix + r.what, r.state, r.old, r.new) for r in found]

    def _changed_item(self, stage, item, kind: str) -> list[Reason]:
        now, name = self.present(item)[1], item.def_path
        if now == MISSING:
            return [Reason(kind, name, "missing")]
        if not item.hash_info:
            return [Reason(kind, name, "new")]
        if now != item.hash_info:
            return [Reason(kind, name, "changed", files=self._changed_files(stage, item))]
        if kind == "out" and item.use_cache and item.changed_cache():
            return [Reason(kind, name, "not in cache")]
        return []

    def _changed_files(self, stage, item) -> list[str]:
        meta, _, tree = self.present(item)
        if tree is None:
            return []
        if (old := self.recorded_tree(item)) is not None:
            return changed_names(old, tree)
        hints = []
        if item.meta and item.meta.nfiles and item.meta.nfiles != meta.nfiles:
            hints.append(f"{item.meta.nfiles} -> {meta.nfiles} files")
        cost = COSTS / f"{stage.addressing}.json"  # written when the stage has last run
        if cost.exists():
            since = cost.stat().st_mtime
            names = ["/".join(key) for key, _, _ in tree]
            changed = [n for n in names if (Path(item.fs_path) / n).lstat().st_ctime > since]
            hints += [f"since its last run {some(changed, 4)}"] if changed else []
        return hints

    # ---- what will happen

    def expected(self, dep, made: dict[str, HashInfo | None], left_over: list[str]) -> HashInfo | None:
        """The hash that `dep` will have when the stages before have been dealt with; None if that is open.

        made: outputs of stale stages upstream {path: hash, None if open}.
        """
        path = dep.fs_path
        touched = {out: h for out, h in made.items() if _overlap(path, out)}
        if not touched:
            return self.present(dep)[1]
        if None in touched.values() or any(_inside(os.path.abspath(p), path) for p in left_over):
            return None
        found = self.assemble(path, self.present(dep)[2], touched)
        return found.hash_info if isinstance(found, Tree) else found

    def known_result(self, stage, hashes: dict[str, HashInfo]) -> dict | None:
        """The lock entry that DVC would restore `stage` from, its dependencies being `hashes`; None if it must run.

        Follows dvc.stage.cache.StageCache.restore, which itself would read every file again.
        """
        if stage.always_changed or not stage.deps or any(o.persist for o in stage.outs):
            return None
        params = {d: self.params(d) for d in stage.deps if isinstance(d, ParamsDependency)}
        files = [d for d in stage.deps if d not in params]
        same = not stage.cmd_changed and all(d.hash_info and d.hash_info == hashes[d.fs_path] for d in files)
        same = same and all(d.hash_info.value == values for d, values in params.items())
        if same and all(o.hash_info for o in stage.outs):
            entry = to_single_stage_lockfile(stage)
        else:
            before = [(d, d.hash_info, d.meta) for d in stage.deps]
            try:
                for dep in files:
                    dep.hash_info, dep.hash_name = hashes[dep.fs_path], "md5"
                    dep.meta = self.present(dep)[0]
                for dep, values in params.items():
                    dep.hash_info = HashInfo(dep.PARAM_PARAMS, values)
                entry = self._run_cache_entry(to_single_stage_lockfile(stage))
            finally:
                for dep, hash_info, meta in before:
                    dep.hash_info, dep.meta = hash_info, meta
        if entry is None:
            return None
        return entry if self.repo.stage_cache._create_stage(entry, wdir=stage.wdir).outs_cached() else None

    def _run_cache_entry(self, wanted: dict) -> dict | None:
        key, cache = run_cache._get_cache_hash(wanted, key=True), self.repo.stage_cache
        folder = Path(cache._get_cache_dir(key))
        entries = sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime) if folder.is_dir() else []
        return cache._load_cache(key, entries[-1].name) if entries else None

    def step(
        self, stage, stale: dict[str, Step], made: dict[str, HashInfo | None], left_over: list[str]
    ) -> Step | None:
        """The Step of `stage`, given the stale stages before it; None if it is not stale. Adds to `made`."""
        before = [s for s in self.graph.successors(stage) if s.addressing in stale]
        above = {n for s in before for n in stale[s.addressing].above}
        because = [s.addressing for s in before if s.addressing not in above]
        reasons = self.reasons(stage, {o.fs_path for s in before for o in s.outs})
        if not reasons and not before:
            return None
        step = Step(stage.addressing, "maybe", reasons, because, above=above.union(because))
        outs: dict[str, HashInfo | None] = {o.fs_path: None for o in stage.outs}
        if not stage.cmd:
            step.verdict = "recorded"
            outs = {o.fs_path: self.present(o)[1] for o in stage.outs}
        else:
            step.threads = max(1, int((stage.meta or {}).get("threads", 1)))
            files = [d for d in stage.deps if not isinstance(d, ParamsDependency)]
            hashes = {d.fs_path: self.expected(d, made, left_over) for d in files}
            missing = [d.def_path for d in files if hashes[d.fs_path] == MISSING]
            missing += [f"params.yaml: {r.what}" for r in reasons if r.state == "gone" and r.what in _declared(stage)]
            waiting = [n for n in because if stale[n].verdict == "blocked"]
            if missing or waiting:
                step.verdict = "blocked"
                first = f"{some(missing, 3)} is missing" if missing else f"waits for {some(waiting, 3)}"
                step.note = first
            elif None not in hashes.values():
                if not reasons and all(d.hash_info == hashes[d.fs_path] for d in files):
                    step.verdict = "unchanged"
                    outs = {o.fs_path: self.present(o)[1] for o in stage.outs}
                elif entry := self.known_result(stage, hashes):
                    step.verdict, step.note = "restored", self._overlooked(stage, entry)
                    found = {o["path"]: HashInfo("md5", o["md5"]) for o in entry["outs"]}
                    outs = {o.fs_path: found[o.def_path] for o in stage.outs}
                else:
                    step.verdict = "runs"
        made.update(outs)
        return step

    def _overlooked(self, stage, entry: dict) -> str:
        """A warning if DVC restores what was made with other parameters: its run cache is blind to some keys."""
        changed = []
        for dep in [d for d in stage.deps if isinstance(d, ParamsDependency)]:
            before = entry.get("params", {}).get(dep.def_path, {})
            changed += [r.what for k, v in self.params(dep).items() for r in _changes(k, before.get(k, _NOTHING), v)]
        if not changed:
            return ""
        return (
            f"WRONG RESULT: DVC will restore what another {some(changed, 3)} made, since its run cache overlooks keys "
            f"named size or nfiles (treeverse/dvc#10296): `dvc repro --force --single-item {stage.addressing}`"
        )

    # ---- how long, how much

    def estimate(self, steps: Iterable[Step]) -> None:
        """Fill in seconds and bytes of the steps that run or may."""
        costs = {s.addressing: c for s in self.graph if (c := _recorded_seconds(s.addressing)) is not None}
        sizes, stages = {}, {s.addressing: s for s in self.graph}
        for name, stage in stages.items():
            known = [o.meta.size for o in stage.outs if o.meta and o.meta.size is not None]
            if known and len(known) == len(stage.outs):
                sizes[name] = sum(known)
        for step in steps:
            if step.verdict not in ("runs", "maybe"):
                step.bytes, step.bytes_from, step.seconds_from = 0, "", ""
                continue
            minutes = (stages[step.name].meta or {}).get("minutes")
            seconds, step.seconds_from = _guess(step, costs)
            if seconds is None and minutes is not None:
                seconds, step.seconds_from = 60.0 * float(minutes), "limit"
            step.seconds = seconds or 0.0
            size, step.bytes_from = _guess(step, sizes)
            step.bytes = None if size is None else round(size)


def _guess(step: Step, known: dict[str, float]) -> tuple[float | None, str]:
    """The step's own number, else the mean of its matrix: (number, where from)."""
    if step.name in known:
        return known[step.name], "recorded"
    others = [v for n, v in known.items() if n.startswith(f"{step.family}@")]
    if others and "@" in step.name:
        return sum(others) / len(others), f"mean of {len(others)} {step.family}@*"
    return None, "unknown"


def _recorded_seconds(name: str) -> float | None:
    try:
        seconds = float(json.loads((COSTS / f"{name}.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def wall_time(jobs: dict[str, tuple[float, int]], upstream: dict[str, list[str]], cores: int) -> float:
    """Seconds until all jobs {name: (seconds, threads)} are done on `cores` cores, by list scheduling.

    A job starts as soon as the jobs of `upstream` are done and its threads (at most `cores`) are free; of several,
    the first of `jobs`.
    """
    waiting, running, done = list(jobs), [], set()
    free, now = cores, 0.0
    while waiting or running:
        for name in list(waiting):
            threads = min(jobs[name][1], cores)
            if threads <= free and all(u in done or u not in jobs for u in upstream.get(name, [])):
                waiting.remove(name)
                free -= threads
                heapq.heappush(running, (now + jobs[name][0], name, threads))
        now, name, threads = heapq.heappop(running)
        free += threads
        done.add(name)
    return now


# ---- the plan


def make_plan(targets: Sequence[str] = (), cores: int | None = None) -> Plan:
    """Look at the checkout in the working directory.

    targets: stages, names of matrices (`train`), or outputs (a path, or a folder that holds outputs): only they and
    what they need. cores: for the expected time; None = those this process may use.
    Raises UserError for an unknown target, and if dvc.yaml, params.yaml or dvc.lock cannot be read.
    """
    try:
        checkout = Checkout()
        order = checkout.order()
        chosen = _select(checkout, order, targets)
        left_over = checkout.left_over()
        stale: dict[str, Step] = {}
        made: dict[str, HashInfo | None] = {}
        for stage in order:
            if stage in chosen and (step := checkout.step(stage, stale, made, left_over)):
                stale[step.name] = step
        checkout.estimate(stale.values())
    except SCMError as error:  # an unpacked zip; `make` has set this itself
        raise UserError(f"{error}; DVC works without git after `dvc config --local core.no_scm true`") from None
    except DvcException as error:
        raise UserError(f"dvc: {' '.join(str(error).split())}") from None
    for step in stale.values():
        step.note = "; ".join(filter(None, (step.note, _last_run(step.name))))
    pid = holder(LOCKS / "snakemake.lock")
    return Plan(
        [s.addressing for s in order],
        list(targets),
        list(stale.values()),
        left_over,
        {s.addressing: [b.addressing for b in checkout.graph.successors(s)] for s in order},
        cores or usable_cores(),
        shutil.disk_usage(".").free,
        f"a Snakemake is at work here (process {pid}); this is the state at this moment" if pid else "",
    )


def _select(checkout: Checkout, order: list, targets: Sequence[str]) -> set:
    """The stages that `targets` name, and all they depend on; all stages without targets."""
    chosen = set()
    for target in targets:
        path = os.path.abspath(target)
        found = [s for s in order if target in (s.addressing, s.addressing.partition("@")[0])]
        found = found or [s for s in order if any(_overlap(path, o.fs_path) for o in s.outs)]
        if not found:
            names = [n for s in order for n in (s.addressing, *(os.path.relpath(o.fs_path) for o in s.outs))]
            near = get_close_matches(target, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "`dvc stage list` shows them"
            raise UserError(f"no stage and no output {target!r}; {hint}")
        chosen.update(found)
    todo = list(chosen)
    while todo:
        new = [s for s in checkout.graph.successors(todo.pop()) if s not in chosen]
        chosen.update(new)
        todo += new
    return chosen if targets else set(order)


def _declared(stage) -> set[str]:
    return {key for d in stage.deps if isinstance(d, ParamsDependency) for key in d.params}


def _last_run(name: str) -> str:
    """Whether the stage is running now, or its last run ended badly; an empty text if neither."""
    if pid := holder(LOCKS / f"{name}.lock"):
        return f"running now (process {pid})"
    try:
        lines = (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    if not lines or any(re.match(r"\S+ done: ", line) for line in lines[-3:]):
        return ""
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    last = errors[0] if errors else lines[-1]
    return f"its last run did not end well, see logs/{name}.log: {cut(last.strip(), 100)}"


# ---- comparing


_NOTHING = object()


def _changes(key: str, old: Any, new: Any) -> list[Reason]:
    """The leaves in which two values of a parameter differ, with dotted keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*new, *old])
        return [r for k in keys for r in _changes(f"{key}.{k}", old.get(k, _NOTHING), new.get(k, _NOTHING))]
    if old is _NOTHING and new is _NOTHING:  # declared, but neither recorded nor there
        return [Reason("param", key, "gone")]
    if old is _NOTHING:
        return [Reason("param", key, "new", None, new)]
    if new is _NOTHING:
        return [Reason("param", key, "gone", old, None)]
    return [] if old == new else [Reason("param", key, "changed", old, new)]


def changed_names(old: Tree, new: Tree) -> list[str]:
    """The files in which two folders differ, as "modified x", "added y", "removed z"."""
    before = {"/".join(key): entry for key, _, entry in old}
    after = {"/".join(key): entry for key, _, entry in new}
    found = [f"modified {n}" for n in sorted(before) if n in after and after[n] != before[n]]
    found += [f"added {n}" for n in sorted(after.keys() - before)]
    return found + [f"removed {n}" for n in sorted(before.keys() - after)]


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _overlap(a: str, b: str) -> bool:
    return a == b or _inside(a, b) or _inside(b, a)


def main() -> None:
    """Print the plan; exit code 0, or 2 with one line for bad input."""
    parser = argparse.ArgumentParser(prog="plan", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="STAGE or OUTPUT")
    parser.add_argument("--cores", type=int, help="for the expected time (default: all)")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    args = parser.parse_args()
    try:
        if args.cores is not None and args.cores < 1:
            raise UserError(f"--cores {args.cores}: must be 1 or more")
        plan = make_plan(args.targets, args.cores)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        print(json.dumps(plan.as_json(), indent=1, default=str) if args.json else render(plan), flush=True)
    except BrokenPipeError:  # `make plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
