"""Two engines, one truth: a small pipeline under this project's Snakefile and bridge."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from semivid.errors import UserError
from semivid.pipeline import bridge

ROOT = Path(__file__).resolve().parent.parent
PARAMS = {
    "prepare": {"size": {"width": 4, "height": 2}},
    "model": {"lr": {"base": 1, "decay": 2}, "name": "x"},
    "options": {"a": 1, "b": 2, "c": 3},
    "score": {"k": 1},
    "items": ["a", "b"],
}
STEP = """
import json, os, sys, time
name, *item = sys.argv[1:]
with open(os.environ["EXECUTED"], "a") as file:
    file.write("@".join(sys.argv[1:]) + "\\n")
params = json.load(open("params.yaml"))

def write(path, *content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(content, file)

def read(path):
    with open(path) as file:
        return file.read()
"""
SCRIPTS = {
    "prepare": 'write("data/prepared/part.txt", read("raw.txt"), params["prepare"]); write("data/prepared/other.txt")',
    "train": """
while os.path.exists("hold") and item == ["a"]:
    time.sleep(0.05)
if params["options"][item[0]] == "fail":
    sys.exit("told to fail")
write(f"models/{item[0]}.txt", read("data/prepared/part.txt"), params["model"]["lr"], params["options"][item[0]])
""",
    "score": 'write(f"results/runs/{item[0]}.json", read(f"models/{item[0]}.txt"), params["score"]["k"] > 0)',
    "table": 'write("results/table.csv", *[read(f"results/runs/{i}.json") for i in params["items"]])',
}
DVC_YAML = """
stages:
  prepare:
    cmd: python stages/prepare.py prepare
    deps:
      - raw.txt
      - stages/prepare.py
    params:
      - prepare
    outs:
      - data/prepared
  train:
    matrix:
      item: ${items}
    cmd: python stages/train.py train ${item.item}
    deps:
      - data/prepared/part.txt
      - stages/train.py
    params:
      - model.lr
      - options.${item.item}
    outs:
      - models/${item.item}.txt
    meta:
      threads: 2
  score:
    matrix:
      item: ${items}
    cmd: python stages/score.py score ${item.item}
    deps:
      - models/${item.item}.txt
      - stages/score.py
    params:
      - score
    metrics:
      - results/runs/${item.item}.json:
          cache: false
  table:
    cmd: python stages/table.py table
    deps:
      - results/runs
      - stages/table.py
    params:
      - items
    plots:
      - results/table.csv:
          cache: false
"""
ALL = ["prepare", "score@a", "score@b", "table", "train@a", "train@b"]


class Pipeline:
    """A checkout of the small pipeline."""

    def __init__(self, folder):
        self.folder = folder
        self.side = folder.parent / f"{folder.name}.executed"

    def write(self):
        self.folder.mkdir()
        for name in ("Snakefile", ".dvcignore"):
            shutil.copy(ROOT / name, self.folder)
        shutil.copytree(ROOT / "profiles", self.folder / "profiles")
        (self.folder / "stages").mkdir()
        for name, body in SCRIPTS.items():
            (self.folder / f"stages/{name}.py").write_text(STEP + body)
        (self.folder / "raw.txt").write_text("raw")
        (self.folder / "environment.yml").touch()
        (self.folder / "dvc.yaml").write_text(DVC_YAML)
        (self.folder / ".gitignore").write_text("/data/\n/models/\n/.work/\n/.snakemake/\n/logs/\n/hold\n")
        self.set()
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")
        shutil.copy(ROOT / ".dvc/config", self.folder / ".dvc/config")

    def copy(self, folder):
        subprocess.run(["cp", "-a", self.folder, folder], check=True)
        return Pipeline(folder)

    def set(self, **changes):
        """Write params.yaml; a dotted key is spelt with two underscores."""
        params = json.loads(json.dumps(PARAMS))
        for key, value in changes.items():
            *parents, last = key.split("__")
            block = params
            for part in parents:
                block = block[part]
            block[last] = value
        (self.folder / "params.yaml").write_text(json.dumps(params, indent=1))

    def environment(self):
        bin_folder = str(Path(sys.executable).parent)
        return os.environ | {
            "EXECUTED": str(self.side), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"), "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "XDG_CACHE_HOME": str(self.folder.parent / "home"),
        }  # fmt: skip

    def start(self, *command):
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command, good=True):
        process = self.start(*command)
        output = process.communicate(timeout=120)[0]
        assert not good or process.returncode == 0, output
        return output

    def snakemake(self, *options, good=True):
        return self.run("snakemake", *(options or ("--cores", "2")), good=good)

    def planned(self):
        """The stages that `snakemake -n` would run, by DVC's names."""
        output = self.snakemake("--dry-run")
        if "Nothing to be done" in output:
            return []
        rules = set(re.findall(r"^rule (\w+):$", output, re.M)) | set(re.findall(r"^localrule (\w+):$", output, re.M))
        names = {s.rule: s.name for s in self.stages()}
        return sorted(names[r] for r in rules - {"all"})

    def executed(self):
        """The stage commands that have run since the last call."""
        names = self.side.read_text().split() if self.side.exists() else []
        self.side.unlink(missing_ok=True)
        return sorted(names)

    def stages(self, check=False):
        here = os.getcwd()
        os.chdir(self.folder)
        try:
            return bridge.read_stages(check)
        finally:
            os.chdir(here)

    def stale(self):
        """The stages that must run, or may have to, as the bridge tells Snakemake."""
        return sorted(s.name for s in self.stages(check=True) if s.stale)

    def named_by_dvc(self):
        """The stages that DVC calls changed, and all that depend on them, by DVC's own graph."""
        here = os.getcwd()
        os.chdir(self.folder)
        try:
            repo = Repo(".")
            status, graph = repo.status(), repo.index.graph
            named = {s for s in graph if s.addressing in status}
            while more := {s for s in graph if s not in named and named & set(graph.successors(s))}:
                named |= more
            return sorted(s.addressing for s in named)
        finally:
            os.chdir(here)

    def clean(self):
        return self.named_by_dvc() == [] and not [s for s in self.stages(check=True) if s.stale]

    def outputs(self):
        folders = [self.folder / name for name in ("data", "models", "results")]
        paths = [p for f in folders for p in sorted(f.rglob("*")) if p.is_file() and p.name != ".snakemake_timestamp"]
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pipeline after `snakemake --cores 2`; tests work on copies."""
    pipeline = Pipeline(tmp_path_factory.mktemp("bridge") / "built")
    pipeline.write()
    pipeline.snakemake()
    pipeline.first_run = pipeline.executed()
    return pipeline


@pytest.fixture
def pipeline(built, tmp_path):
    return built.copy(tmp_path / "copy")


# ---- agreement


def test_after_snakemake_both_engines_have_nothing_to_do(built):
    assert built.first_run == ALL
    assert "up to date" in built.run("dvc", "status")
    assert built.planned() == []
    assert built.executed() == []
    assert set(built.outputs()) == {
        "data/prepared/part.txt", "data/prepared/other.txt", "models/a.txt", "models/b.txt",
        "results/runs/a.json", "results/runs/b.json", "results/table.csv",
    }  # fmt: skip


def test_after_dvc_repro_both_engines_have_nothing_to_do(built, tmp_path):
    pipeline = Pipeline(tmp_path / "fresh")
    pipeline.write()
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == ALL
    assert pipeline.planned() == []
    assert pipeline.outputs() == built.outputs()


def test_inputs_come_from_dvcs_graph(built):
    """Also where a stage reads a file in an upstream folder, or the parent folder of several stages' outputs."""
    stages = {s.name: s for s in built.stages()}
    assert sorted(stages) == ALL
    assert stages["table"].inputs == ["results/runs/a.json", "results/runs/b.json"]
    assert stages["train@a"].inputs == ["data/prepared"]
    assert stages["score@b"].inputs == ["models/b.txt"]
    assert stages["prepare"].inputs == []
    assert [stages[n].outputs for n in ("prepare", "table")] == [["data/prepared"], ["results/table.csv"]]
    assert stages["train@a"].meta == {"threads": 2} and stages["table"].meta == {}
    assert set(stages["table"].upstream) == {"score@a", "score@b"}
    order = list(stages)
    assert all(order.index(u) < order.index(s.name) for s in stages.values() for u in s.upstream)
    assert len({s.rule for s in stages.values()}) == 6 and all(s.rule.isidentifier() for s in stages.values())


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"prepare__size__width": 5}, ALL),
        ({"model__lr__decay": 3}, ["score@a", "score@b", "table", "train@a", "train@b"]),
        ({"options__a": 9}, ["score@a", "table", "train@a"]),
        ({"score__k": 2}, ["score@a", "score@b", "table"]),
        ({"items": ["b", "a"]}, ["table"]),
        ({"items": ["a"]}, ["table"]),
        ({"items": ["a", "b", "c"]}, ["score@c", "table", "train@c"]),
        ({"model__name": "y"}, []),
        ({"options__c": 9}, []),
    ],
    ids=lambda v: next(iter(v)) + str(len(str(v))) if isinstance(v, dict) else "",
)
def test_a_changed_key_makes_both_engines_name_its_readers(built, change, stale):
    built.set(**change)
    try:
        assert built.stale() == stale
        assert built.named_by_dvc() == stale
    finally:
        built.set()


@pytest.mark.parametrize(
    ("file", "stale"),
    [("stages/score.py", ["score@a", "score@b", "table"]), ("raw.txt", ALL), ("stages/table.py", ["table"])],
)
def test_a_changed_file_makes_both_engines_name_its_readers(pipeline, file, stale):
    path = pipeline.folder / file
    path.write_text(path.read_text() + "\n")
    assert pipeline.stale() == stale
    assert pipeline.named_by_dvc() == stale
    if file == "stages/score.py":
        assert pipeline.planned() == stale, "Snakemake itself names others"


def test_a_change_runs_its_readers_and_reverting_runs_nothing(pipeline):
    """Changed under one engine, reverted under the other, which deletes outputs before it runs a rule."""
    before = pipeline.outputs()
    pipeline.set(options__a=9)
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == ["score@a", "table", "train@a"]
    after = pipeline.outputs()
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["models/a.txt", "results/runs/a.json", "results/table.csv"]

    pipeline.set()
    pipeline.snakemake()
    assert pipeline.executed() == [], "a stage command ran although its result was known"
    assert pipeline.outputs() == before
    assert pipeline.clean()

    pipeline.set(options__a=9)
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == []
    assert pipeline.outputs() == after


def test_a_stage_that_gives_the_same_bytes_runs_nothing_below(pipeline):
    before = pipeline.outputs()
    pipeline.set(score__k=2)  # the scores only say whether k is positive
    pipeline.snakemake()
    assert pipeline.executed() == ["score@a", "score@b"]
    assert pipeline.outputs() == before
    assert pipeline.clean()


def test_a_taken_out_item_leaves_nothing_and_coming_back_costs_nothing(pipeline):
    """results/runs is an input as a folder: a file left over in it would count as a change of its readers."""
    before = pipeline.outputs()
    pipeline.set(items=["a", "b", "c"])
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == ["score@c", "table", "train@c"]
    three = pipeline.outputs()

    pipeline.set()
    pipeline.snakemake()
    assert pipeline.executed() == []
    assert pipeline.outputs() == before, "left-overs, or other results"
    assert pipeline.clean()

    pipeline.set(items=["a", "b", "c"])
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == []
    assert pipeline.outputs() == three


def test_only_what_the_lock_file_records_is_taken_away(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline.folder)
    own = Path("results/runs/notes.json")
    own.write_text("mine")
    before = pipeline.outputs()
    assert bridge.remove_orphans() == []
    pipeline.set(items=["a"])
    pipeline.planned()
    assert pipeline.outputs() == before, "a dry run must change nothing"
    assert sorted(bridge.remove_orphans()) == ["models/b.txt", "results/runs/b.json"]
    gone = {"models/b.txt", "results/runs/b.json"}
    assert pipeline.outputs() == {k: v for k, v in before.items() if k not in gone}
    assert own.read_text() == "mine"


# ---- git and experiments


def commit(pipeline, message):
    pipeline.run("git", "add", "--all")
    pipeline.run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", message)


def test_switching_branches_and_stashing_need_a_checkout_and_no_command(pipeline):
    commit(pipeline, "first")
    before = pipeline.outputs()
    pipeline.run("git", "switch", "--quiet", "--create", "other")
    pipeline.set(options__a=9)
    pipeline.snakemake()
    commit(pipeline, "second")
    after = pipeline.outputs()
    pipeline.executed()
    for branch, outputs in (("-", before), ("other", after)):
        pipeline.run("git", "switch", "--quiet", branch)
        pipeline.run("dvc", "checkout", "--quiet")
        assert pipeline.clean() and pipeline.planned() == []
        assert pipeline.outputs() == outputs

    pipeline.set(score__k=-1)
    pipeline.run("dvc", "repro", "--quiet")
    third = pipeline.outputs()
    pipeline.executed()
    for command, outputs in (("push", after), ("pop", third)):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        pipeline.run("git", *identity, "stash", command, "--quiet")
        pipeline.run("dvc", "checkout", "--quiet")
        assert pipeline.clean() and pipeline.planned() == []
        assert pipeline.outputs() == outputs
    assert pipeline.executed() == []


def test_experiments(pipeline):
    """`dvc exp run` in the workspace, in a temporary folder and from the queue."""
    commit(pipeline, "first")
    before = pipeline.outputs()
    pipeline.run("dvc", "exp", "run", "--quiet", "-S", "options.a=5")
    assert pipeline.executed() == ["score@a", "table", "train@a"]
    assert pipeline.clean()
    pipeline.set()
    pipeline.snakemake()
    assert pipeline.outputs() == before

    pipeline.run("dvc", "exp", "run", "--quiet", "--temp", "--name", "aside", "-S", "options.b=6")
    assert pipeline.executed() == ["score@b", "table", "train@b"]
    pipeline.run("dvc", "exp", "run", "--quiet", "--queue", "--name", "later", "-S", "options.b=8")
    assert pipeline.executed() == []
    pipeline.run("dvc", "exp", "run", "--quiet", "--run-all")
    assert pipeline.executed() == ["score@b", "table", "train@b"]
    assert pipeline.outputs() == before, "an experiment aside touched the workspace"
    assert pipeline.clean()
    shown = pipeline.run("dvc", "exp", "list", "--name-only").split()
    assert {"aside", "later"} <= set(shown)
    for name, value in (("aside", 6), ("later", 8)):
        pipeline.run("dvc", "exp", "apply", "--quiet", name)
        assert f'"b": {value}' in (pipeline.folder / "params.yaml").read_text()
        assert pipeline.clean() and pipeline.planned() == []
        pipeline.run("git", "checkout", "--quiet", ".")
    assert pipeline.executed() == []


# ---- trouble


def test_a_failed_stage_stops_what_depends_on_it_alone(pipeline):
    before = pipeline.outputs()
    pipeline.set(options__a="fail", options__b=7)
    output = pipeline.snakemake("--cores", "2", good=False)
    assert "told to fail" in output
    assert pipeline.executed() == ["score@b", "train@a", "train@b"]
    assert pipeline.stale() == ["score@a", "table", "train@a"]
    pipeline.set()
    pipeline.run("dvc", "repro", "--quiet")
    assert pipeline.executed() == [] and pipeline.outputs() == before


def test_a_killed_engine_needs_no_unlocking(pipeline):
    pipeline.set(options__a=5)
    (pipeline.folder / "hold").touch()
    engine = pipeline.start("snakemake", "--cores", "2")
    end = time.monotonic() + 60
    while not (pipeline.side.exists() and "train@a" in pipeline.side.read_text()):
        assert time.monotonic() < end and engine.poll() is None
        time.sleep(0.05)
    os.kill(engine.pid, signal.SIGKILL)
    (pipeline.folder / "hold").unlink()  # these toy stages do not die with their engine; they end by themselves
    engine.communicate()
    pipeline.snakemake()
    assert pipeline.clean()
    assert set(pipeline.executed()) == {"score@a", "table", "train@a"}


def test_another_engine_at_work_is_one_line(pipeline):
    """DVC cannot tell what is stale while a stage runs; a job of the same run must not ask."""
    lock = pipeline.folder / ".dvc/tmp/rwlock"
    writer = {"pid": os.getpid(), "cmd": "dvc repro"}
    busy = {"write": {str(pipeline.folder / "data/prepared"): writer}, "read": {}}
    lock.write_text(json.dumps(busy))
    with pytest.raises(UserError, match=r"dvc: .*busy") as error:
        pipeline.stages(check=True)
    assert "\n" not in str(error.value)
    assert not any(s.stale for s in pipeline.stages(check=False))
    gone = subprocess.Popen(["true"])
    gone.wait()
    writer["pid"] = gone.pid
    lock.write_text(json.dumps(busy))
    assert pipeline.clean(), "a lock of a process that is gone counts"


def test_a_second_snakemake_is_refused_until_the_first_has_ended(pipeline):
    pipeline.set(score__k=2)
    (pipeline.folder / ".work/locks").mkdir(exist_ok=True)
    with open(pipeline.folder / ".work/locks/snakemake.lock", "w") as first:
        fcntl.lockf(first, fcntl.LOCK_EX)
        output = pipeline.snakemake("--cores", "1", good=False)
        assert "another snakemake is at work" in output and "Traceback" not in output
        assert pipeline.executed() == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("params.yaml", "items: [a\n", r"params\.yaml"),
        ("params.yaml", "items: [a]\n", r"model\.lr|options"),
        ("dvc.yaml", "stages: 3\n", r"dvc\.yaml"),
        ("dvc.yaml", DVC_YAML.replace("${items}", "${itms}"), "itms"),
    ],
    ids=["not yaml", "key missing", "no stages", "unknown key"],
)
def test_a_broken_description_is_one_line(pipeline, file, text, said):
    (pipeline.folder / file).write_text(text)
    try:
        stale = pipeline.stale()
    except UserError as error:
        assert re.search(said, str(error)) and "\n" not in str(error)
    else:  # DVC takes a missing key for a change; the stage itself then refuses
        assert (file, "items: [a]\n") == ("params.yaml", text) and "train@a" in stale


# ---- stamps and names


def test_stamps_tell_snakemake_what_dvc_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [bridge.DvcStage(n, [], [], {}, stale=n == "b@2") for n in ("a@1", "b@2")]
    bridge.write_stamps(stages)
    fresh, stale = (s.stamp for s in stages)
    assert fresh.stat().st_mtime == 0 and stale.stat().st_mtime > 0
    first = stale.read_text(), fresh.read_text()
    bridge.write_stamps(stages)
    assert stale.read_text() != first[0], "Snakemake compares contents: a new time alone would not count"
    assert fresh.read_text() == first[1]
    stages[1].stale = False
    content = stale.read_text()
    bridge.write_stamps(stages[1:])
    assert (stale.read_text(), stale.stat().st_mtime) == (content, 0)
    assert not fresh.exists(), "the stamp of a stage that is gone"


@pytest.mark.parametrize(
    ("path", "folder"),
    [("data/raw", True), ("runs/supervised-us-12-7", True), ("a/b.txt", False), ("models/m-12-7.safetensors", False)],
)
def test_outputs_without_a_suffix_are_folders(path, folder):
    assert bridge.is_folder(path) == folder


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("data/x", "data/x", True),
        ("data/x/1.txt", "data/x", True),
        ("data", "data/x", True),
        ("data/x", "data/xy", False),
    ],
)
def test_paths_overlap_by_parts(a, b, overlap):
    assert bridge._overlap(a, b) == overlap
