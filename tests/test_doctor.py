"""`make doctor`: every failure provoked, and what is said about it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.repo import Repo
from PIL import Image

from semivid.errors import UserError
from semivid.pipeline import doctor, machine, plan
from small import small_params

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"(ok|note|MISSING:) (" + "|".join(doctor.CHECKS) + r"): \S.*")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty checkout as the working directory."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return folder


def found(check):
    """The findings of a check as (level, whole line); every line is one line, and what is missing has an advice."""
    findings = list(doctor.CHECKS[check]())
    lines = [f.line(check) for f in findings]
    assert findings and all(LINE.fullmatch(line) for line in lines), lines
    assert all(f.advice for f in findings if f.level == "MISSING")
    return [(f.level, line) for f, line in zip(findings, lines, strict=True)]


def the_one(check):
    (only,) = found(check)
    return only


# ---- machine


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [((3, 10, 4), "MISSING", "3.11 is needed"), ((3, 12, 0), "note", "tested with 3.11"), ((3, 11, 7), "ok", "python")],
)
def test_python(monkeypatch, version, level, said):
    monkeypatch.setattr(sys, "version_info", version)
    assert the_one("python")[0] == level and said in the_one("python")[1]


def test_machine(here, monkeypatch):
    (here / "dvc.yaml").write_text(
        "stages:\n  a:\n    meta:\n      mem_mb: 2000\n  b:\n    meta:\n      mem_mb: 4000\n"
    )
    for memory, level in ((3999, "note"), (4000, "ok"), (None, "ok")):
        monkeypatch.setattr(doctor, "memory_mb", lambda memory=memory: memory)
        assert the_one("machine")[0] == level
    monkeypatch.setattr(doctor, "memory_mb", lambda: 3999)
    assert "3999 MB" in the_one("machine")[1] and "may take 4000 MB" in the_one("machine")[1]


def test_memory_of_a_container(tmp_path):
    limit = tmp_path / "memory.max"
    whole = machine.memory_mb(tmp_path / "none")
    assert whole > 100
    limit.write_text("max\n")
    assert machine.memory_mb(limit) == whole
    limit.write_text("64000000\n")
    assert machine.memory_mb(limit) == 64


def test_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHM", tmp_path / "none")
    assert the_one("shared memory")[0] == "note" and "SEMIVID_WORKERS=1" in the_one("shared memory")[1]
    monkeypatch.setattr(doctor, "SHM", tmp_path)
    assert the_one("shared memory")[0] == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64e6))
    level, line = the_one("shared memory")
    assert level == "note" and "64 MB" in line and "--shm-size" in line


# ---- packages


def test_packages(here):
    assert the_one("packages")[0] == "MISSING" and "requirements.txt" in the_one("packages")[1]
    pytest_version = doctor.installed_version("pytest")
    (here / "requirements.txt").write_text(f"# what\npytest=={pytest_version}\n")
    (here / "requirements.lock").write_text(f"pytest=={pytest_version}\nPy_YAML==1\n")
    assert the_one("packages")[0] == "ok"
    (here / "requirements.lock").write_text("pytest==0.1\nPyYAML==0.2\n")
    level, line = the_one("packages")
    assert level == "note" and f"pyyaml {doctor.installed_version('pyyaml')} (locked: 0.2)" in line
    assert "(locked: 0.1)" not in line, "requirements.txt comes before the lock file"
    (here / "requirements.txt").write_text("no-such-package==1.0\nother-one==2\n")
    (here / "requirements-test.txt").write_text("absent-linter==3\n")
    (here / "requirements.lock").write_text("")
    (first, missing), (second, tests) = found("packages")
    assert (first, second) == ("MISSING", "note") and "absent-linter" in tests
    assert "not installed: no-such-package, other-one" in missing and "pip install -r requirements.txt" in missing


def distribution(folder, name, **files):
    """An installed package as pip records it."""
    info = folder / f"{name}-0.3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3.1+cpu\n")
    (info / "RECORD").touch()
    for file, text in files.items():
        (info / file.replace("__", ".")).write_text(text)


def test_pyflow_of_pypi(tmp_path, monkeypatch):
    assert the_one("pyflow")[0] == "ok"
    distribution(tmp_path, "pyflow")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.installed_version("pyflow") == "0.3.1"
    level, line = the_one("pyflow")
    assert level == "MISSING" and "pip uninstall pyflow" in line


@pytest.mark.parametrize(
    ("origin", "level", "said"),
    [
        ({"url": "file://{here}", "dir_info": {"editable": True}}, "ok", "installed from here"),
        ({"url": "file:///other/place", "dir_info": {"editable": True}}, "note", "from /other/place, not from here"),
        ({"url": "file://{here}", "dir_info": {}}, "note", "as a copy"),
        (None, "note", "as a copy"),
    ],
)
def test_semivid_itself(here, tmp_path, monkeypatch, origin, level, said):
    text = json.dumps(origin).replace("{here}", str(here))
    distribution(tmp_path / "site", "semivid", **({"direct_url__json": text} if origin else {}))
    monkeypatch.syspath_prepend(tmp_path / "site")
    built = tmp_path / "src/semivid.egg-info"  # what building leaves in src, which `make doctor` looks into first
    built.mkdir(parents=True)
    (built / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: semivid\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(tmp_path / "src")
    assert the_one("semivid")[0] == level and said in the_one("semivid")[1]


def test_semivid_not_installed(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "distributions", lambda name: [])
    assert the_one("semivid")[0] == "note" and "pip install --no-deps -e ." in the_one("semivid")[1]


def fake_torch(gpus=(), cuda="13.0"):
    """A stand-in for torch: `gpus` are (name, compute capability)."""
    seen = [SimpleNamespace(name=n, major=m, total_memory=8e9) for n, m in gpus]
    calls = {"is_available": lambda: bool(seen), "device_count": lambda: len(seen)}
    return SimpleNamespace(
        __version__="2.15.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(get_device_properties=seen.__getitem__, **calls),
    )


def test_gpu(here, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", fake_torch([("Old", 7), ("New", 9)]))
    (_, old), (_, new) = found("gpu")
    assert "Old" in old and "no bfloat16" in old and "New, 8.0 GB, bfloat16" in new
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cuda=None))
    assert the_one("gpu")[0] == "ok" and "CPU" in the_one("gpu")[1]
    (here / "params.yaml").write_text("train:\n  precision: bfloat16   # fast\n")
    assert the_one("gpu")[0] == "note" and "bfloat16" in the_one("gpu")[1]
    (tmp_path / "nvidia0").touch()
    level, line = the_one("gpu")
    assert level == "note" and "built for no CUDA" in line and "nvidia-smi" in line
    monkeypatch.setitem(sys.modules, "torch", None)
    assert the_one("gpu")[0] == "MISSING" and "pip install" in the_one("gpu")[1]


# ---- params and data


def test_params(here):
    assert the_one("params")[0] == "MISSING" and "no such file" in the_one("params")[1]
    params = small_params()
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    assert the_one("params")[0] == "ok" and "source street" in the_one("params")[1]
    params["train"]["itertions"] = 3
    params["frames"]["quality"] = 101
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    lines = found("params")
    assert [level for level, _ in lines] == ["MISSING", "MISSING"]
    assert "did you mean `iterations`" in str(lines) and "frames.quality" in str(lines)


@pytest.fixture
def video(here):
    """A folder of frames and masks, and the params that name it."""
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            for kind in ("frames", "masks")[: 2 if i != 1 else 1]:
                path = here / f"video/{kind}/{split}/f{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB" if kind == "frames" else "L", (8, 4)).save(path)
    (here / "classes.yaml").write_text("- {name: road, colour: [128, 64, 128], ids: [0]}\n")
    (here / "camera.json").write_text('{"fov_x": 60}')
    params = small_params()
    params["data"] |= {
        "source": "folder", "camera": "camera.json", "classes": "classes.yaml",
        "frames": {s: f"video/frames/{s}" for s in ("train", "val")},
        "masks": {s: f"video/masks/{s}" for s in ("train", "val")},
    }  # fmt: skip
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    return params


def test_data_are_counted(here, video):
    lines = [line for _, line in found("data")]
    assert lines == ["ok data: train: 3 frames, 2 masks", "ok data: val: 2 frames, 1 masks"]


def test_every_absent_path_is_named(here, video):
    shutil.rmtree(here / "video/masks")
    (here / "classes.yaml").unlink()
    lines = found("data")
    assert [level for level, _ in lines] == ["MISSING"] * 3
    for key in ("data.masks.train", "data.masks.val", "data.classes"):
        assert sum(f" {key}: no " in line for _, line in lines) == 1
    assert f"(there is {here}/video)" in lines[0][1], "how far the path goes"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("f2.png", b"", "empty"), ("f0.png", b"GIF89a..", "no .png picture"), ("f1.png", None, "No such file")],
)
def test_the_first_unreadable_frame_is_named(here, video, name, content, why):
    path = here / "video/frames/train" / name
    path.unlink()
    path.symlink_to("gone") if content is None else path.write_bytes(content)
    train, val = found("data")
    assert train[0] == "MISSING" and val[0] == "ok"
    assert f"3 frames, 2 masks; 1 unreadable, first video/frames/train/{name} ({why}" in train[1]


def test_unreadable_masks_empty_splits_and_masks_of_other_frames(here, video):
    (here / "video/masks/val/f0.png").write_bytes(b"")
    assert "first video/masks/val/f0.png (empty)" in found("data")[1][1]
    (here / "video/masks/val/f0.png").rename(here / "video/masks/val/other.png")
    assert found("data")[1][0] == "MISSING" and "belongs to a frame" in found("data")[1][1]
    for path in (here / "video/frames/train").iterdir():
        path.unlink()
    (here / "video/masks/val/other.png").unlink()
    Image.new("L", (8, 4)).save(here / "video/masks/val/f0.png")
    (level, line), val = found("data")
    assert level == "MISSING" and "no frames" in line and "video/frames/train" in line
    assert val == ("ok", "ok data: val: 2 frames, 1 masks"), "the other splits are looked at all the same"


def test_many_files_are_sampled_and_that_is_said(here, video, monkeypatch):
    monkeypatch.setattr(doctor, "MOST", 2)
    assert found("data")[0][1] == "ok data: train: 3 frames, 2 masks (2 files looked at)"


def test_data_of_the_renderer_need_not_be_there_yet(here):
    params = small_params()
    params["data"]["classes"] = str(ROOT / params["data"]["classes"])
    (here / "params.yaml").write_text(yaml.safe_dump(params))
    assert the_one("data") == ("ok", "ok data: not rendered yet: the stage `render` makes data/raw")
    (here / "params.yaml").write_text("data: 3\n")
    assert the_one("data")[0] == "note" and "params.yaml is not valid" in the_one("data")[1]


# ---- git and DVC


def test_git(here, monkeypatch):
    level, line = the_one("git")
    assert level == "MISSING" and "git init" in line and "core.no_scm" in line
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert the_one("git")[0] == "ok"
    (here / ".dvc/config").unlink()
    subprocess.run(["git", "init", "--quiet", "--initial-branch=work", "."], check=True)
    (here / "new.txt").touch()
    assert the_one("git") == ("ok", "ok git: No commits yet on work; 1 changed or new files")
    shutil.rmtree(here / ".git/objects")
    assert the_one("git")[0] == "MISSING" and "git status" in the_one("git")[1]
    monkeypatch.setenv("PATH", str(here))
    assert the_one("git")[0] == "note" and "install git" in the_one("git")[1]


def test_dvc(here):
    assert the_one("dvc")[0] == "MISSING" and "repository's root" in the_one("dvc")[1]
    (here / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo x > out\n    outs:\n      - out\n")
    assert the_one("dvc")[0] == "MISSING" and "dvc init" in the_one("dvc")[1]
    Repo.init(".", no_scm=True).close()
    (first, fresh), (second, remote) = found("dvc")
    assert (first, second) == ("ok", "note") and "nothing computed yet" in fresh and "dvc remote add" in remote
    with Repo(".") as repo:
        repo.reproduce()
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": "/somewhere"}
    cache, remote = found("dvc")
    assert cache[1] == "ok dvc: cache .dvc/cache holds 1 objects" and remote == ("ok", "ok dvc: remote: store")
    shutil.rmtree(here / ".dvc/cache")
    assert found("dvc")[0][0] == "note" and "dvc pull" in found("dvc")[0][1]


def test_locks(here):
    assert the_one("locks") == ("ok", "ok locks: no engine at work, no lock left over")
    for folder in (".work/locks", ".dvc/tmp"):
        (here / folder).mkdir(parents=True)
    names = [".work/locks/snakemake.lock", ".work/locks/train@a-1.lock", ".work/locks/train@a-1.runner.lock"]
    names.append(".dvc/tmp/lock")
    code = "import fcntl,sys\nfs=[open(n,'w') for n in sys.argv[1:]]\n[fcntl.lockf(f,fcntl.LOCK_EX) for f in fs]\n"
    code += "print('held',flush=True)\nsys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    lines = [line for level, line in found("locks") if level == "note"]
    assert len(lines) == 3 and all(f"(process {other.pid})" in line for line in lines)
    assert "a Snakemake" in lines[0] and "the stage train@a-1" in lines[1] and "a DVC command" in lines[2]
    rwlock = here / ".dvc/tmp/rwlock"
    owner = {"pid": other.pid, "cmd": "dvc repro"}
    rwlock.write_text(json.dumps({"write": {"/x": owner}, "read": {"/y": [owner]}}))
    assert f"process {other.pid} (dvc repro) holds DVC's locks" in found("locks")[-1][1]
    other.communicate()
    level, line = the_one("locks")
    assert level == "note" and f"process {other.pid} (dvc repro) is gone" in line, "the lock files alone hold nothing"
    for text in ("{", "[3]", '{"write": {"/x": {"pid": "?"}}}'):
        rwlock.write_text(text)
        assert the_one("locks")[0] == "MISSING" and "rm .dvc/tmp/rwlock" in the_one("locks")[1]
    rwlock.write_text("{}")
    assert the_one("locks")[0] == "ok"


# ---- disk


def test_writing(here, monkeypatch):
    assert [level for level, _ in found("writing")] == ["ok", "ok"]
    assert list(here.iterdir()) == [], "nothing is left behind"
    monkeypatch.setattr(doctor, "cache_folder", lambda: Path("/proc/nowhere/cache"))  # not even root writes there
    (first, _), (second, line) = found("writing")
    assert (first, second) == ("ok", "MISSING") and "cannot write in /proc" in line

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    assert found("writing")[0][0] == "MISSING" and "free some space" in found("writing")[0][1]


def test_links(here, tmp_path, monkeypatch):
    both = doctor.link_types(tmp_path, here)
    assert {"hardlink", "symlink"} <= set(both)
    assert list(here.iterdir()) == [] and list(tmp_path.iterdir()) == [here]
    (here / ".dvc").mkdir()
    config = here / ".dvc/config"
    config.write_text('[cache]\n    type = "hardlink,symlink,copy"\n')
    assert the_one("links")[0] == "ok" and "hardlinks from .dvc/cache" in the_one("links")[1]
    config.write_text("[cache]\n    type = copy\n")
    level, line = the_one("links")
    assert level == "note" and "twice" in line and "dvc config cache.type" in line
    monkeypatch.setattr(doctor, "link_types", lambda a, b: [])
    assert the_one("links")[0] == "note" and "dvc cache dir" in the_one("links")[1]


def test_links_over_two_disks(tmp_path):
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system: /dev/shm is none")
    assert doctor.link_types(shm, tmp_path) == ["symlink"]


def test_the_cache_may_lie_elsewhere(here):
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("[cache]\n    dir = ../../store\n")
    assert os.path.normpath(doctor.cache_folder()) == "../store", "relative to .dvc"
    (here / ".dvc/config.local").write_text("[cache]\n    dir = /big/disk\n")
    assert doctor.cache_folder() == Path("/big/disk")


@pytest.mark.parametrize(
    ("sizes", "free", "level", "said"),
    [
        ([3e9, 4e9], 10e9, "ok", "10.0 GB free, 7.0 GB needed"),
        ([3e9, 4e9], 6e9, "MISSING", "6.0 GB free, 7.0 GB needed by 2 stages"),
        ([3e9, None], 4e9, "note", "sizes of 1 stages"),
        ([None], 50e9, "ok", "1 stages have no recorded size"),
        ([], 1e6, "ok", "1 MB free"),
    ],
)
def test_disk(here, monkeypatch, sizes, free, level, said):
    steps = [plan.Step(f"s{i}", "runs", [], [], bytes=n) for i, n in enumerate(sizes)]
    steps.append(plan.Step("known", "restored", [], [], bytes=10**15))
    monkeypatch.setattr(plan, "make_plan", lambda: SimpleNamespace(steps=steps))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert the_one("disk")[0] == level and said in the_one("disk")[1]


def test_disk_of_a_pipeline_that_cannot_be_read(here, monkeypatch):
    def broken():
        raise UserError("dvc: 'dvc.yaml' is invalid")

    monkeypatch.setattr(plan, "make_plan", broken)
    assert the_one("disk")[0] == "MISSING" and "'dvc.yaml' is invalid" in the_one("disk")[1]
    monkeypatch.setitem(sys.modules, "semivid.pipeline.plan", None)
    assert the_one("disk")[0] == "note"


# ---- the command


def test_without_any_package_it_names_them_all(tmp_path):
    """Only Python's own library: no torch, no dvc, no YAML reader."""
    for name in ("requirements.txt", "requirements.lock", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "semivid.pipeline.doctor"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert {LINE.fullmatch(line)[2] for line in lines} == set(doctor.CHECKS)
    (packages,) = [line for line in lines if line.startswith("MISSING: packages")]
    assert all(f" {name}," in packages for name in ("dvc", "torch", "snakemake", "pydantic"))
    assert "the check itself failed" not in done.stdout
    assert last == f"{sum(line.startswith('MISSING') for line in lines)} missing, see above"


def test_exit_codes_and_a_check_that_fails_itself(monkeypatch, capsys):
    checks = {"git": lambda: iter([doctor.ok("fine"), doctor.note("hm", "do")])}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    with pytest.raises(SystemExit) as end:
        doctor.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == "ok git: fine\nnote git: hm -> do\nnothing is missing\n"

    def broken():
        yield doctor.ok("first")
        raise RuntimeError("two\nlines")

    checks["dvc"] = broken
    with pytest.raises(SystemExit) as end:
        doctor.main()
    out = capsys.readouterr().out.splitlines()
    assert end.value.code == 1 and len(out) == 4 and out[0] == "ok git: fine", "the other checks are still made"
    assert out[2].startswith("MISSING: dvc: the check itself failed (RuntimeError: two lines) -> ")
