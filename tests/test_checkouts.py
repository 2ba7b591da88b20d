"""Checkouts of other kinds than a clone: a zip without git, a shallow or dirty one, spaces, read-only data."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from semivid.errors import UserError
from small import ROOT, small_params
from toy import ALL, Pipeline

NO_GIT = "dvc config --local core.no_scm true"


def commit(pipeline):
    pipeline.run("git", "add", "--all")
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    pipeline.run("git", *name, "commit", "--quiet", "-m", "all")


def unpack(repository, folder):
    """What a zip of `repository`'s last commit holds."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=repository, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return Pipeline(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The toy pipeline, committed but not run."""
    pipeline = Pipeline(tmp_path_factory.mktemp("checkouts") / "source")
    pipeline.write()
    commit(pipeline)
    return pipeline


def runs_in_both_engines(pipeline):
    """`dvc repro` runs all, then Snakemake has nothing to do; a changed key runs its readers under Snakemake."""
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == ALL
    pipeline.set(options__a=9)
    pipeline.snakemake()
    assert pipeline.executed() == ["score@a", "table", "train@a"]
    assert pipeline.clean()


# ---- git


def test_a_zip_without_git_says_what_to_do_and_then_works(source, tmp_path):
    pipeline = unpack(source.folder, tmp_path / "zip")
    assert not (pipeline.folder / ".git").exists()
    with pytest.raises(UserError, match=NO_GIT) as error:
        pipeline.stages(check=True)
    assert "\n" not in str(error.value) and str(pipeline.folder) in str(error.value)
    pipeline.run(*NO_GIT.split())
    runs_in_both_engines(pipeline)


def test_a_shallow_clone_that_is_dirty_works(source, tmp_path):
    """Neither history nor a clean tree is asked for: edits, files of one's own, something staged."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{source.folder}", folder], check=True)
    pipeline = Pipeline(folder)
    assert pipeline.run("git", "rev-parse", "--is-shallow-repository").strip() == "true"
    (folder / "raw.txt").write_text("edited")
    (folder / "stages/own.py").write_text("")
    (folder / "results").mkdir()
    (folder / "results/notes.md").write_text("mine")
    pipeline.run("git", "add", "stages/own.py")
    before = pipeline.run("git", "status", "--porcelain", "-uall").splitlines()
    runs_in_both_engines(pipeline)
    assert set(before) <= set(pipeline.run("git", "status", "--porcelain", "-uall").splitlines())
    assert "edited" in (folder / "data/prepared/part.txt").read_text()
    assert (folder / "results/notes.md").read_text() == "mine"


# ---- names and folders


def test_a_path_with_spaces_and_letters_of_other_tongues_works(source, tmp_path):
    pipeline = source.copy(tmp_path / "my videos (Straße) 'a'")
    runs_in_both_engines(pipeline)
    assert not [p for p in tmp_path.iterdir() if p.name not in (pipeline.folder.name, "site", "home")]


def test_the_project_itself_can_be_planned_from_a_zip_in_a_path_with_spaces(tmp_path):
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("this checkout is not under git, from which the test makes its zip")
    pipeline = unpack(ROOT, tmp_path / "a zip")
    pipeline.run(*NO_GIT.split())
    status = json.loads(pipeline.run("dvc", "status", "--json"))
    planned = pipeline.planned()
    assert "train@supervised-random-12-7" in planned
    assert set(status) <= set(planned), "Snakemake leaves out what DVC calls changed"


FAKE_PYTHON = """#!/bin/sh
# stands for python3.11: makes a venv whose programs say what they were called with
mkdir -p .venv/bin
for name in pip python dvc snakemake; do
    printf '#!/bin/sh\\necho "${0##*/} $*" >> calls\\n' > .venv/bin/$name
    chmod +x .venv/bin/$name
done
"""


@pytest.mark.parametrize("git", [False, True], ids=["zip", "clone"])
def test_make_works_in_a_path_with_spaces_and_prepares_a_zip(tmp_path, git):
    if not shutil.which("make"):
        pytest.skip("needs make")
    folder = tmp_path / "a b"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "requirements.lock", "requirements-test.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "fake").write_text(FAKE_PYTHON)
    (folder / "fake").chmod(0o755)
    if git:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    outer = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VENV", "PYTHON")  # of a `make test` around this one
    environment = {k: v for k, v in os.environ.items() if k not in outer} | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for goal in (["table3"], ["test"], ["preset", "NAME=camvid", "DATA=/my data/camvid"]):
        subprocess.run(["make", "--quiet", "PYTHON=./fake", *goal], cwd=folder, env=environment, check=True)
    calls = (folder / "calls").read_text().splitlines()
    assert [c.split()[0] for c in calls] == [
        "pip",
        "pip",
        *([] if git else ["dvc"]),
        "snakemake",
        "pip",
        "python",
        "python",
    ]
    assert [c for c in calls if c.startswith("dvc")] == ([] if git else ["dvc config --quiet --local core.no_scm true"])
    assert calls[-1].endswith("preset camvid /my data/camvid")


# ---- data


def state(folder):
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(str(p), p.lstat().st_mtime_ns, p.lstat().st_mode, p.lstat().st_size) for p in paths]


@pytest.fixture
def read_only(tmp_path):
    """Makes a folder read-only until the test ends; as root, to whom that means nothing, one compares `state`."""
    made = []

    def make(folder):
        made.append(folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return state(folder)

    yield make
    for folder in made:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_raw_data_are_only_read_by_the_engines(source, tmp_path, read_only):
    """A dependency outside the checkout, as data of one's own are."""
    pipeline = source.copy(tmp_path / "copy")
    data = tmp_path / "my data"
    data.mkdir()
    (pipeline.folder / "raw.txt").rename(data / "raw.txt")
    text = (pipeline.folder / "dvc.yaml").read_text().replace("- raw.txt", f"- {data}/raw.txt")
    (pipeline.folder / "dvc.yaml").write_text(text)
    script = pipeline.folder / "stages/prepare.py"
    script.write_text(script.read_text().replace('"raw.txt"', f'"{data}/raw.txt"'))
    before = read_only(data)
    pipeline.run("dvc", "repro", "--quiet", "prepare")
    pipeline.set(prepare={"width": 5})
    pipeline.snakemake("--cores", "2", "prepare")
    assert pipeline.executed() == ["prepare", "prepare"]
    assert "prepare" not in pipeline.stale()
    assert state(data) == before


def test_raw_data_are_only_read_by_the_stages(tmp_path, read_only):
    data, checkout = tmp_path / "my data", tmp_path / "checkout"
    (checkout / "data").mkdir(parents=True)
    for name in ("src", "stages", "splits", "presets"):
        (checkout / name).symlink_to(ROOT / name)
    params = small_params()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def stage(name):
        (checkout / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, f"stages/{name}.py"]
        run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    stage("render")
    (checkout / "data/raw").rename(data)
    text = json.dumps(params["data"]).replace("data/raw", str(data))
    assert text != json.dumps(params["data"])
    params["data"] = json.loads(text)
    before = read_only(data)
    assert len(before) > 20
    stage("frames")
    stage("masks")
    assert state(data) == before
    prepared = [p for p in (checkout / "data/prepared").rglob("*") if p.is_file()]
    assert prepared and all(os.access(p, os.W_OK) for p in prepared), "read-only sources make read-only copies"
