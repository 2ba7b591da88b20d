"""Check all that the pipeline needs, and say what is missing and how to get it: `python -m semivid.pipeline.doctor`.

One line per check: ``ok``, ``note`` (works, but worth knowing) or ``MISSING: ... -> what to do``. Exit code 1 if
something needed is missing. Packages are imported inside the checks alone, so that it runs where they are broken.
"""

from __future__ import annotations

import configparser
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from semivid.errors import UserError
from semivid.pipeline.machine import holder, memory_mb, usable_cores

INSTALL = "pip install -r requirements.txt -c requirements.lock (or: rm -f .venv/installed, then make plan)"
FICLONE = 0x40049409
DEVICES, SHM = Path("/dev"), Path("/dev/shm")
SHM_NEEDED = 256e6  # bytes: a few batches per worker of a training
DISK_NEEDED = 5e9  # bytes, where no run has been recorded yet
PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8", ".jpeg": b"\xff\xd8"}
MOST = 5000  # files per split whose first bytes are looked at


class Finding(NamedTuple):
    """level: ok, note or MISSING. text: what was found. advice: what to do about it."""

    level: str
    text: str
    advice: str = ""

    def line(self, check: str) -> str:
        """As printed: one line."""
        told = f"{self.level}{':' if self.level == 'MISSING' else ''} {check}: {self.text}"
        return " ".join(f"{told}{' -> ' if self.advice else ''}{self.advice}".split())


Findings = Iterator[Finding]


def ok(text: str) -> Finding:
    return Finding("ok", text)


def note(text: str, advice: str = "") -> Finding:
    return Finding("note", text, advice)


def missing(text: str, advice: str) -> Finding:
    return Finding("MISSING", text, advice)


# ---- machine


def check_python() -> Findings:
    """Python 3.11 or newer."""
    version, (major, minor) = platform.python_version(), sys.version_info[:2]
    if (major, minor) < (3, 11):
        yield missing(f"{version}, but 3.11 is needed", "install Python 3.11, then `make plan PYTHON=python3.11`")
    elif (major, minor) != (3, 11):
        yield note(f"{version}; the versions of requirements.lock were tested with 3.11")
    else:
        yield ok(f"{version} ({sys.executable})")


def check_machine() -> Findings:
    """Cores, and memory against the largest `mem_mb` of dvc.yaml."""
    cores, memory = usable_cores(), memory_mb()
    wanted = max(map(int, re.findall(r"^\s+mem_mb:\s*(\d+)", _text("dvc.yaml"), re.M)), default=0)
    text = f"{cores} core{'s' * (cores > 1)}, {'unknown' if memory is None else memory} MB of memory"
    if memory is not None and memory < wanted:
        yield note(
            f"{text}; a stage may take {wanted} MB (mem_mb in dvc.yaml)",
            "use a larger machine, or smaller `crop` and `batch_size` in params.yaml",
        )
    else:
        yield ok(text)


def check_shm() -> Findings:
    """Shared memory, through which worker processes hand over batches."""
    try:
        total = shutil.disk_usage(SHM).total
    except OSError:
        yield note(f"no {SHM}: trainings with worker processes may fail", "set SEMIVID_WORKERS=1")
        return
    if total < SHM_NEEDED:
        advice = "start the container with --shm-size=1g, or set SEMIVID_WORKERS=1"
        yield note(f"{SHM} holds {_size(total)} only: workers of trainings may die with a bus error", advice)
    else:
        yield ok(f"{SHM} holds {_size(total)}")


# ---- packages


def _pins(name: str) -> dict[str, str]:
    """{package: version} of a requirements file."""
    lines = (line.split("#")[0].strip() for line in _text(name).splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", package.strip()).lower(): version.strip() for package, _, version in pairs}


def installed_version(package: str) -> str | None:
    """The installed version without a local part (2.15.0 of 2.15.0+cpu); None if it is not installed."""
    try:
        return (metadata.version(package) or "").partition("+")[0] or None
    except metadata.PackageNotFoundError:
        return None


def check_packages() -> Findings:
    """Installed packages against requirements.txt and requirements.lock."""
    needed, locked, tests = (_pins(f"requirements{n}") for n in (".txt", ".lock", "-test.txt"))
    if not needed:
        yield missing("requirements.txt is not here or empty", "run from the repository's root; `git checkout .`")
        return
    absent = [p for p in needed if installed_version(p) is None]
    if absent:
        yield missing(f"not installed: {', '.join(absent)}", INSTALL)
    found = {p: (v, installed_version(p)) for p, v in (locked | needed).items()}
    other = [f"{p} {here} (locked: {v})" for p, (v, here) in found.items() if here and here != v]
    if other:
        yield note(f"other versions than requirements.lock: {_some(other)}; results may differ in bits", INSTALL)
    if not absent and not other:
        yield ok(f"{len(needed)} required, {sum(here is not None for _, here in found.values())} of the lock file")
    without = [p for p in tests if p not in needed and installed_version(p) is None]
    if without:
        yield note(f"not installed, for `make test` and `make lint` alone: {', '.join(without)}", "make test does it")


def check_package() -> Findings:
    """The package `semivid` that `dvc repro` imports is this checkout's (Snakemake sees to that itself)."""
    advice = "pip install --no-deps -e ."
    # Not any that is found: with PYTHONPATH=src the left-overs of building in src come first, which say nothing.
    found = [d for d in metadata.distributions(name="semivid") if d.read_text("RECORD") is not None]
    try:
        origin = json.loads(found[0].read_text("direct_url.json") or "{}")
    except (IndexError, ValueError):
        yield note("semivid is not installed: `dvc repro` finds it with PYTHONPATH=src alone", advice)
        return
    folder = origin.get("url", "").removeprefix("file://")
    if not origin.get("dir_info", {}).get("editable"):
        yield note("semivid is installed as a copy: `dvc repro` will not see changes of src", advice)
    elif os.path.realpath(folder) != os.path.realpath("."):
        yield note(f"semivid is installed from {folder}, not from here: `dvc repro` runs that code", advice)
    else:
        yield ok("semivid is installed from here")


def check_pyflow() -> Findings:
    """PyPI's `pyflow` is a dependency manager; the optical flow of that name is not on PyPI."""
    if installed_version("pyflow"):
        yield missing(
            "PyPI's `pyflow`, an unrelated program, is installed and hides the optical flow of that name",
            "pip uninstall pyflow",
        )
    else:
        yield ok("PyPI's unrelated `pyflow` is not in the way")


def check_gpu() -> Findings:
    """What torch sees; nothing needs a GPU."""
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        yield missing(f"torch does not import ({type(error).__name__}: {error})", INSTALL)
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(i)
            bf16 = "bfloat16" if seen.major >= 8 else "no bfloat16: keep `precision: float32`"
            yield ok(f"{seen.name}, {_size(seen.total_memory)}, {bf16}")
    elif any(DEVICES.glob("nvidia[0-9]*")):
        built = torch.version.cuda or "no CUDA"
        advice = "compare `nvidia-smi` (driver) with that, or unset CUDA_VISIBLE_DEVICES"
        yield note(f"there is an NVIDIA device, but torch {torch.__version__} (built for {built}) sees none", advice)
    elif re.search(r"^\s+precision:\s*bfloat16", _text("params.yaml"), re.M):
        yield note("no GPU; params.yaml asks for bfloat16, which is slow on most CPUs", "precision: float32")
    else:
        yield ok("no GPU; everything runs on the CPU")


# ---- params and data


def check_params() -> Findings:
    """params.yaml against its schema."""
    try:
        from semivid.pipeline.params import read_params

        params = read_params()
    except ImportError as error:
        yield note(f"not checked: {error}", "see packages")
    except UserError as error:
        for line in str(error).splitlines():
            yield missing(line, "correct params.yaml; presets/ has whole ones (make preset NAME=street)")
    else:
        yield ok(f"params.yaml is valid (data {params.data.name}, source {params.data.source})")


def check_data() -> Findings:
    """The paths of params.yaml exist, and hold readable frames and masks."""
    try:
        from semivid.data.readers import get_reader
        from semivid.pipeline.params import read_params

        data = read_params().data.model_dump()
    except (ImportError, UserError) as error:
        reason = error if isinstance(error, ImportError) else "params.yaml is not valid"
        yield note(f"not checked: {reason}")
        return
    paths = {f"data.{k}.{s}": p for k in ("frames", "masks") for s, p in data[k].items() if p}
    paths |= {f"data.{k}": data[k] for k in ("camera", "classes") if data[k]}
    absent = {k: p for k, p in paths.items() if not Path(p).exists()}
    rendered = {k: p for k, p in absent.items() if data["source"] == "street" and Path(p).parts[:2] == ("data", "raw")}
    for key, path in absent.items():
        if key not in rendered:
            here = next((p for p in Path(os.path.abspath(path)).parents if p.exists()), "/")
            advice = "get the data set, or correct the path in params.yaml (make preset NAME=... DATA=path)"
            yield missing(f"{key}: no {path} (there is {here})", advice)
    if rendered:
        yield ok("not rendered yet: the stage `render` makes data/raw")
    if absent:
        return
    advice = "correct params.yaml or the data"
    try:
        reader = get_reader(data)
    except UserError as error:
        yield missing(str(error), advice)
        return
    for split in reader.splits:
        try:
            yield from _check_split(reader, split)
        except UserError as error:
            yield missing(str(error), advice)


def _check_split(reader, split: str) -> Findings:
    frames = reader.frames(split)
    masks = [m for f in frames if (m := reader.mask(f))]
    told = f"{split}: {len(frames)} frames, {len(masks)} masks"
    files = [f.image for f in frames] + masks
    step = -(-len(files) // MOST)
    looked = files[::step]
    bad = [(p, why) for p in looked if (why := unreadable(p))]
    if bad:
        advice = "restore these files; the stages frames and masks decode all of them and report every bad one"
        yield missing(f"{told}; {len(bad)} unreadable, first {bad[0][0]} ({bad[0][1]})", advice)
    elif split in reader.mask_folders and not masks:
        advice = "correct data.masks in params.yaml, or the masks' names"
        yield missing(f"{told}: no mask in {reader.mask_folders[split]} belongs to a frame", advice)
    else:
        yield ok(f"{told}{f' ({len(looked)} files looked at)' if step > 1 else ''}")


def unreadable(path: Path) -> str:
    """Why a picture cannot be read, by its first bytes; an empty text if nothing speaks against it."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        return error.strerror or type(error).__name__
    if not start:
        return "empty"
    return "" if start.startswith(PICTURES.get(path.suffix.lower(), b"")) else f"no {path.suffix} picture"


# ---- disk


def _config() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    return config


def _config_value(section: str, key: str, default: str = "") -> str:
    return _config().get(section, key, fallback=default).strip().strip("\"'")


def cache_folder() -> Path:
    """Where DVC keeps artifacts: `cache.dir` (relative to .dvc) or .dvc/cache."""
    return Path(".dvc") / (_config_value("cache", "dir") or "cache")


def check_disk() -> Findings:
    """Free space against what the stages that may run are expected to write."""
    free = shutil.disk_usage(".").free
    try:
        from semivid.pipeline.plan import make_plan

        steps = make_plan().steps
    except ImportError as error:
        yield note(f"{_size(free)} free; needs not estimated: {error}", "see packages")
        return
    except UserError as error:
        yield missing(f"{_size(free)} free; what is stale cannot be found out: {error}", "see the lines above")
        return
    runs = [s for s in steps if s.verdict in ("runs", "maybe")]
    needed = sum(s.bytes or 0 for s in runs)
    unknown = sum(s.bytes is None for s in runs)
    advice = "free some, or move the cache to a larger disk (dvc cache dir PATH)"
    if needed > free:
        yield missing(f"{_size(free)} free, {_size(needed)} needed by {len(runs)} stages that may run", advice)
    elif unknown and free < DISK_NEEDED:
        yield note(f"{_size(free)} free; sizes of {unknown} stages that may run are not known yet", advice)
    else:
        more = f"; {unknown} stages have no recorded size" if unknown else ""
        told = f"{_size(needed)} needed by {len(runs)} stages that may run{more}" if runs else "nothing is to be run"
        yield ok(f"{_size(free)} free, {told}")


def check_writing() -> Findings:
    """This folder and the cache can be written."""
    for folder in (Path("."), cache_folder()):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-", suffix=".tmp") as file:
                file.write(b"x")
                file.flush()
        except OSError as error:
            reason = error.strerror or str(error)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free some space" if full else "use a folder of your own, or chown/chmod this one"
            yield missing(f"cannot write in {os.path.abspath(there)} ({reason})", advice)
        else:
            yield ok(f"{os.path.abspath(there)} can be written")


def link_types(source_folder: Path, target_folder: Path) -> list[str]:
    """Which of reflink, hardlink and symlink work from a file in one folder to the other."""

    def reflink(source: Path, target: Path) -> None:
        with open(source, "rb") as a, open(target, "wb") as b:
            fcntl.ioctl(b.fileno(), FICLONE, a.fileno())

    found = []
    options = {"prefix": ".doctor-", "suffix": ".tmp"}
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(tempfile.TemporaryDirectory(dir=f, **options)) for f in (source_folder, target_folder)
        )
        source = Path(a).resolve() / "file"
        source.write_bytes(b"x")
        for name, link in {"reflink": reflink, "hardlink": os.link, "symlink": os.symlink}.items():
            try:
                link(source, Path(b) / name)
            except OSError:
                continue
            found.append(name)
    return found


def check_links() -> Findings:
    """Outputs are linked from the cache, not copied."""
    folder = cache_folder()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        possible = link_types(there, Path("."))
    except OSError as error:
        yield note(f"not checked: {error.strerror or error}", "see writing")
        return
    wanted = [t.strip() for t in (_config_value("cache", "type") or "reflink,copy").split(",")]
    used = next((t for t in wanted if t in possible), "copy")
    if used != "copy":
        yield ok(f"outputs are {used}s from {folder} ({', '.join(possible)} work here)")
    elif possible:
        advice = "dvc config cache.type reflink,hardlink,symlink,copy"
        yield note(f"outputs are copies (cache.type {','.join(wanted)}): they take their space twice", advice)
    else:
        advice = f"put the cache on the disk of this folder (dvc cache dir PATH); now {folder}"
        yield note("no link from the cache works here: outputs are copied and take their space twice", advice)


# ---- git and DVC


def check_git() -> Findings:
    """DVC wants a git repository, or to be told that there is none."""
    if _config_value("core", "no_scm").lower() == "true":
        yield ok("not used (core.no_scm)")
        return
    root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / ".git").exists()), None)
    if root is None:
        advice = "git init && git add . && git commit -m start (or, without git: dvc config --local core.no_scm true)"
        yield missing("this folder is no git repository (a zip?), which DVC asks for", advice)
        return
    if not shutil.which("git"):
        yield note(f"repository {root}, but no command `git`", "install git")
        return
    told = subprocess.run(["git", "status", "--porcelain", "--branch"], capture_output=True, text=True, check=False)
    if told.returncode:
        yield missing(f"`git status` fails: {told.stderr.strip()}", "do what it says")
        return
    branch, *changed = told.stdout.splitlines() or ["## ?"]
    yield ok(f"{branch.removeprefix('## ')}; {len(changed)} changed or new files")


def check_dvc() -> Findings:
    """DVC is set up, with a cache and perhaps a remote."""
    if not Path("dvc.yaml").exists():
        yield missing(f"no dvc.yaml in {Path.cwd()}", "run from the repository's root")
        return
    if not Path(".dvc").is_dir():
        yield missing("no folder .dvc here", "`git checkout .dvc`, or `dvc init`")
        return
    folder = cache_folder()
    count = sum(1 for _ in (folder / "files/md5").glob("??/*"))
    if count:
        yield ok(f"cache {folder} holds {count} objects")
    elif Path("dvc.lock").exists():
        advice = "dvc pull --run-cache, or compute them again"
        yield note(f"dvc.lock records results, but the cache {folder} is empty", advice)
    else:
        yield ok("nothing computed yet (no dvc.lock, no cache)")
    sections = [section.strip("'\"") for section in _config().sections()]  # 'remote "name"'
    remotes = [s.removeprefix("remote").strip(' "') for s in sections if s.startswith("remote ")]
    if remotes:
        yield ok(f"remote: {', '.join(remotes)}")
    else:
        yield note("no remote: dvc push and pull have no place to go", "dvc remote add --default NAME URL")


def check_locks() -> Findings:
    """Other engines at work, and locks of processes that are gone."""
    found = []
    for path in sorted(Path(".work/locks").glob("*.lock")):
        if not path.stem.endswith(".runner") and (pid := holder(path)):
            what = "a Snakemake" if path.stem == "snakemake" else f"the stage {path.stem}"
            found.append(note(f"{what} is at work here (process {pid})", "wait for it, or stop it"))
    if pid := holder(Path(".dvc/tmp/lock")):
        found.append(note(f"a DVC command is at work here (process {pid})", "wait for it, or stop it"))
    rwlock = Path(".dvc/tmp/rwlock")
    try:
        owners = _owners(json.loads(rwlock.read_text() or "{}"))
    except FileNotFoundError:
        owners = {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        advice = f"rm {rwlock}, when no engine is at work"
        found.append(missing(f"{rwlock} is broken, so DVC will refuse to work", advice))
        owners = {}
    for pid, command in owners.items():
        if _alive(pid):
            found.append(note(f"process {pid} ({command}) holds DVC's locks", "wait for it, or stop it"))
        else:
            gone = f"process {pid} ({command}) is gone but still in {rwlock}"
            found.append(note(f"{gone}; the next DVC command clears it"))
    yield from found or [ok("no engine at work, no lock left over")]


def _owners(rwlock: dict) -> dict[int, str]:
    """{process: command} of DVC's readers and writers."""
    infos = list(rwlock.get("write", {}).values())
    infos += [info for readers in rwlock.get("read", {}).values() for info in readers]
    return {int(i["pid"]): str(i["cmd"]) for i in infos}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


# ---- all of it


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _some(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


CHECKS: dict[str, Callable[[], Findings]] = {
    "python": check_python,
    "machine": check_machine,
    "shared memory": check_shm,
    "packages": check_packages,
    "semivid": check_package,
    "pyflow": check_pyflow,
    "gpu": check_gpu,
    "params": check_params,
    "data": check_data,
    "git": check_git,
    "dvc": check_dvc,
    "locks": check_locks,
    "writing": check_writing,
    "links": check_links,
    "disk": check_disk,
}


def examine() -> list[tuple[str, Finding]]:
    """All findings in order, as (check, finding); a check that fails itself is one more thing missing."""
    found = []
    for name, check in CHECKS.items():
        try:
            found += [(name, finding) for finding in check()]
        except Exception as error:  # whatever is broken here must not hide the other checks
            text = f"the check itself failed ({type(error).__name__}: {error})"
            found.append((name, missing(text, "repair what the other lines name, then look again")))
    return found


def main() -> None:
    """Print one line per finding; exit code 1 if something is missing, else 0."""
    found = examine()
    for name, finding in found:
        print(finding.line(name))
    lacking = sum(f.level == "MISSING" for _, f in found)
    print(f"{lacking} missing, see above" if lacking else "nothing is missing")
    raise SystemExit(1 if lacking else 0)


if __name__ == "__main__":
    main()
