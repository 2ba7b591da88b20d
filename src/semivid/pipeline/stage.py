"""What every stage command shares: arguments, parameters, lock, log, one-line errors, dying with its engine."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NoReturn

from semivid.errors import UserError
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.params import Params, pick, read_params
from semivid.pipeline.process import die_with_parent

log = logging.getLogger("semivid")


class Stage:
    """One run of one pipeline stage.

    name      DVC's name of it (``train@supervised-random-12-7``); run: the part behind the @
    args      its matrix values
    params    the declared parts of params.yaml and nothing else (``stage.params.data.frames``)
    settings  all parameters and arguments as a text
    work      a folder outside the declared outputs, for files to resume from
    workers   how many processes it may start
    """

    def __init__(self, name: str, args: SimpleNamespace, params: dict) -> None:
        self.name = name
        self.args = args
        self.params = _nest(params)
        self.run = name.partition("@")[2]
        self.work = Path(".work") / name
        self.settings = repr(sorted(params.items(), key=lambda item: item[0])) + repr(args)
        self.workers = int(os.environ.get("SEMIVID_WORKERS", 0)) or len(os.sched_getaffinity(0))


def _nest(params: dict) -> SimpleNamespace:
    """{"data.frames": x, "train": y} as nested attributes."""
    root = SimpleNamespace()
    for key, value in params.items():
        *parents, last = key.split(".")
        node = root
        for part in parents:
            if not hasattr(node, part):
                setattr(node, part, SimpleNamespace())
            node = getattr(node, part)
        setattr(node, last, value)
    return root


def _lock(name: str):
    """Hold `.work/locks/<name>`; a stage that is still writing elsewhere in this checkout is waited for."""
    path = Path(".work/locks") / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115  (held until the process ends)
    try:
        # lockf, not flock: a child that outlives a killed stage must not go on holding its lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{name}: another process is running this stage here; waiting for it", file=sys.stderr)
        fcntl.lockf(file, fcntl.LOCK_EX)
    return file


def _set_up_log(name: str) -> None:
    path = Path("logs") / f"{name}.log"
    path.parent.mkdir(exist_ok=True)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter(f"[{name}] %(message)s"))
    log.handlers = [to_file, to_terminal]
    log.setLevel(logging.INFO)
    log.propagate = False


def run_stage(main: Callable[[Stage], None], keys: list[str], arguments: dict[str, type] | None = None) -> None:
    """Run `main` as the stage command of the calling script.

    keys       dotted keys of params.yaml that the stage reads: the same as in its dvc.yaml entry. ``{criterion}``
               stands for the argument of that name, ``{flow.method}`` for the value of that key.
    arguments  matrix values, as ``--name value`` with their types, in DVC's order.
    Exit codes: 0 done, 2 bad input (one line, no traceback), 143 stopped by SIGTERM, 130 by Ctrl-C, 1 a bug
    (traceback, also in the log).
    """
    stem = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=stem, description=sys.modules["__main__"].__doc__)
    for name, kind in (arguments or {}).items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user error")
    args = parser.parse_args()
    values = {n: getattr(args, n) for n in arguments or {}}
    name = stem + ("@" + "-".join(map(str, values.values())) if values else "")
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, _on_stop)
    die_with_parent()
    try:
        lock = _lock(name)
        params = pick(*_resolved(keys, values))
        _set_up_log(name)
        start = time.perf_counter()
        main(Stage(name, SimpleNamespace(**values), params))
        _record_cost(name, time.perf_counter() - start)
        lock.close()
    except UserError as error:
        _refuse(str(error), args.debug)
    except OSError as error:
        if error.errno in FULL:
            _refuse(_make_space(error), args.debug)
        if error.filename is not None:
            _refuse(f"{error.filename}: {error.strerror}; check that the path exists and is writable", args.debug)
        _log_bug()
        raise
    except Exception:
        _log_bug()
        raise


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _make_space(error: OSError) -> str:
    """What a full disk needs: which path could not be written, and how much is free there."""
    path = Path(error.filename or Path.cwd())
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(there).free / 1e6
    return f"{path}: {error.strerror}; {free:.1f} MB are free there; make space (`make plan` says what a run needs)"


def _resolved(keys: list[str], values: dict) -> tuple[Params, tuple[str, ...]]:
    """All parameters, and `keys` with what stands in braces replaced."""
    params = read_params()

    def replacement(match: re.Match) -> str:
        name = match[1]
        return str(values[name] if name in values else pick(params, (name,))[name])

    return params, tuple(re.sub(r"\{([\w.]+)\}", replacement, key) for key in keys)


def _refuse(message: str, debug: bool) -> NoReturn:
    """End with exit code 2 and one line per fault."""
    if debug:
        traceback.print_exc()
    for line in message.splitlines():
        (log.error if log.handlers else lambda m: print(m, file=sys.stderr))(f"error: {line}")
    raise SystemExit(2) from None


def _log_bug() -> None:
    """Keep the traceback in the log file too; Python itself prints it to the terminal."""
    for handler in log.handlers[:1]:
        handler.emit(log.makeRecord(log.name, logging.ERROR, __file__, 0, traceback.format_exc(), (), None))


def _on_stop(signum: int, frame: FrameType | None) -> None:
    """Unwind, so that temporaries are removed and a training loop can save its state; exit code 143 or 130."""
    raise SystemExit(128 + signum)


def _record_cost(name: str, seconds: float) -> None:
    """Keep time and peak memory of the last run of each stage (for planning; not an output).

    cpu_seconds includes worker processes; peak_mb is that of the largest single process.
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in usages), 2),
        "peak_mb": round(max(u.ru_maxrss for u in usages) / 1024),
    }
    write_json(Path(".work/costs") / f"{name}.json", cost)
    log.info("done: %s", json.dumps(cost))
