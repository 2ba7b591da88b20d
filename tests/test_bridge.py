"""Two engines, one truth: a small pipeline under this project's Snakefile and bridge."""

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from semivid.errors import UserError
from semivid.pipeline import bridge
from toy import ALL, DVC_YAML, Pipeline


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
        assert yaml.safe_load((pipeline.folder / "params.yaml").read_text())["options"]["b"] == value
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


def test_another_engine_at_work_is_one_line(pipeline, monkeypatch):
    """DVC cannot tell what is stale while a stage runs; a job of the same run must not ask."""
    monkeypatch.setattr(bridge, "DYING_SECONDS", 0.2)
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
