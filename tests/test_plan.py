"""`make plan`: why stages are stale, what will happen to them, how long it takes, on a small pipeline under DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from semivid.errors import UserError
from semivid.pipeline import bridge, plan
from semivid.pipeline.plan_text import duration, patterns, reason_text, render, size_text
from small import small_params

ROOT = Path(__file__).resolve().parent.parent
PARAMS = {
    "width": 4,
    "model": {"lr": {"base": 1.0, "decay": 2}, "name": "x"},
    "options": {"a": 1, "b": 2},
    "score": {"k": 1},
    "items": ["a", "b"],
    "seeds": [1, 2],
}
COMMANDS = {  # $1, $2: item and seed. Scores are line counts: most changes leave their bytes alone
    "prepare": """
mkdir -p data/prepared
cat raw/*.txt > data/prepared/all.txt
grep ^width params.yaml >> data/prepared/all.txt
echo other > data/prepared/other.txt
""",
    "train": """
grep -q "^  $1: fail" params.yaml && { echo told to fail >&2; exit 1; }
mkdir -p models
{ cat data/prepared/all.txt; grep -A 4 ^model: params.yaml; grep "^  $1:" params.yaml; echo $2; } > models/$1-$2.txt
""",
    "score": "mkdir -p results/runs; wc -l < models/$1-$2.txt > results/runs/$1-$2.json",
    "table": "cat results/runs/*.json > results/table.csv",
}
DVC_YAML = """
stages:
  prepare:
    cmd: sh stages/prepare.sh
    deps:
      - raw
      - stages/prepare.sh
    params:
      - width
    outs:
      - data/prepared
    meta:
      minutes: 2
  train:
    matrix:
      item: ${items}
      seed: ${seeds}
    cmd: sh stages/train.sh ${item.item} ${item.seed}
    deps:
      - data/prepared/all.txt
      - stages/train.sh
    params:
      - model.lr
      - options.${item.item}
    outs:
      - models/${item.item}-${item.seed}.txt
    meta:
      threads: 2
      minutes: 30
  score:
    matrix:
      item: ${items}
      seed: ${seeds}
    cmd: sh stages/score.sh ${item.item} ${item.seed}
    deps:
      - models/${item.item}-${item.seed}.txt
      - stages/score.sh
    params:
      - score
    metrics:
      - results/runs/${item.item}-${item.seed}.json:
          cache: false
  table:
    cmd: sh stages/table.sh
    deps:
      - results/runs
      - stages/table.sh
    params:
      - items
    plots:
      - results/table.csv:
          cache: false
"""
RUNS = ["a-1", "a-2", "b-1", "b-2"]
TRAIN, SCORE = [f"train@{r}" for r in RUNS], [f"score@{r}" for r in RUNS]
ALL = {"prepare", "table", *TRAIN, *SCORE}


class Pipeline:
    """A checkout of the small pipeline; the working directory while a test runs."""

    def __init__(self, folder):
        self.folder = folder
        self.side = folder.parent / f"{folder.name}.executed"

    def write(self):
        for name in ("stages", "raw"):
            (self.folder / name).mkdir(parents=True)
        for name, body in COMMANDS.items():
            script = f'echo "{name}${{1:+@$1-$2}}" >> "$EXECUTED"\n{body}'
            (self.folder / f"stages/{name}.sh").write_text(script)
        (self.folder / "raw/a.txt").write_text("a\n")
        (self.folder / "raw/b.txt").write_text("b\n")
        self.dvc_yaml(DVC_YAML)
        self.set()

    def path(self, name):
        return self.folder / name

    def dvc_yaml(self, text):
        self.path("dvc.yaml").write_text(text)

    def set(self, **changes):
        """Write params.yaml; a dotted key is spelt with two underscores."""
        params = json.loads(json.dumps(PARAMS))
        for key, value in changes.items():
            *parents, last = key.split("__")
            block = params
            for part in parents:
                block = block[part]
            block[last] = value
        self.path("params.yaml").write_text(yaml.safe_dump(params))

    def repro(self):
        """`dvc repro`, in this process; the stage commands that were executed."""
        self.side.unlink(missing_ok=True)
        os.environ["EXECUTED"] = str(self.side)
        try:
            with Repo(".") as repo:
                repo.reproduce(on_error="keep-going")
        except Exception as error:  # a stage that is told to fail
            assert "fail" in str(error).lower(), error
        return set(self.side.read_text().split()) if self.side.exists() else set()

    def cost(self, name, seconds):
        path = self.path(f".work/costs/{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": seconds, "cpu_seconds": 1.0, "peak_mb": 9}))

    def plan(self, *targets, **options):
        """The steps by name. Whatever the change, the bridge that Snakemake asks must name the same stages."""
        found = plan.make_plan(targets, **options)
        stale = {s.name for s in bridge.read_stages(check=True) if s.stale}
        assert {s.name for s in found.steps} == (stale if not targets else stale & set(found.upstream)) or targets
        return {s.name: s for s in found.steps}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pipeline after `dvc repro`; tests work on copies."""
    folder = tmp_path_factory.mktemp("plan")
    patch = pytest.MonkeyPatch()
    patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
    patch.setenv("SHELL", "/bin/sh")
    pipeline = Pipeline(folder / "built")
    pipeline.write()
    patch.chdir(pipeline.folder)
    Repo.init(".", no_scm=True).close()
    shutil.copy(ROOT / ".dvcignore", pipeline.folder)
    assert pipeline.repro() == ALL
    yield pipeline
    patch.undo()


@pytest.fixture
def pipeline(built, tmp_path, monkeypatch):
    subprocess.run(["cp", "-a", built.folder, tmp_path / "copy"], check=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Pipeline(tmp_path / "copy")


def texts(step):
    return [reason_text(r) for r in step.reasons]


def verdicts(steps):
    return {name: step.verdict for name, step in steps.items()}


def check_prediction(pipeline, steps):
    """What runs, runs; what does not, does not; what may, may."""
    executed = pipeline.repro()
    certain = {n for n, s in steps.items() if s.verdict == "runs"}
    open_ = {n for n, s in steps.items() if s.verdict == "maybe"}
    assert certain <= executed <= certain | open_
    return executed


# ---- nothing, and everything


def test_nothing_to_do(built):
    built.path("elsewhere.txt").write_text("no stage reads this")
    steps = built.plan()
    assert steps == {}
    assert render(plan.make_plan()) == "nothing to do: all stages are up to date"
    assert built.repro() == set()


def test_without_a_lock_file_all_stages_were_never_run(pipeline):
    """With the run cache they come back all the same; without it, only the first is sure to run."""
    pipeline.path("dvc.lock").unlink()
    for name in ("data", "models", "results"):
        shutil.rmtree(pipeline.path(name))
    steps = pipeline.plan()
    assert set(steps) == ALL and all(texts(s) == ["never run"] for s in steps.values())
    assert set(verdicts(steps).values()) == {"restored"}
    text = render(plan.make_plan())
    assert text.splitlines()[0] == "10 of 10 stages are stale: 10 restored from the cache"
    assert "train@*: 4 stages restored from the cache (never run)" in text
    assert "no stage command runs" in text
    shutil.rmtree(pipeline.path(".dvc/cache"))
    steps = pipeline.plan()
    assert verdicts(steps) == {"prepare": "runs"} | dict.fromkeys(ALL - {"prepare"}, "maybe")
    assert check_prediction(pipeline, steps) == ALL


# ---- parameters


@pytest.mark.parametrize(
    ("change", "reason", "of", "downstream"),
    [
        ({"width": 5}, "width: 4 -> 5", ["prepare"], [*TRAIN, *SCORE, "table"]),
        ({"model__lr__base": 0.5}, "model.lr.base: 1.0 -> 0.5", TRAIN, [*SCORE, "table"]),
        ({"model__lr__warm": [1]}, "model.lr.warm: new here, [1]", TRAIN, [*SCORE, "table"]),
        ({"model__lr": {"base": 1.0}}, "model.lr.decay: 2 -> (no longer in params.yaml)", TRAIN, [*SCORE, "table"]),
        ({"options__b": "y" * 99}, f"options.b: 2 -> {'y' * 57}...", TRAIN[2:], [*SCORE[2:], "table"]),
        ({"options__b": None}, "options.b: 2 -> null", TRAIN[2:], [*SCORE[2:], "table"]),
        ({"score__k": True}, None, [], []),  # 1 and true are the same to DVC
        ({"model__name": "y"}, None, [], []),
        ({"items": ["b", "a"]}, 'items: ["a", "b"] -> ["b", "a"]', ["table"], []),
    ],
    ids=lambda v: next(iter(v)) + str(len(str(v))) if isinstance(v, dict) else "",
)  # fmt: skip
def test_a_changed_key_is_told_with_both_values(pipeline, change, reason, of, downstream):
    pipeline.set(**change)
    steps = pipeline.plan()
    assert {n: texts(s) for n, s in steps.items() if s.reasons} == {n: [reason] for n in of}
    assert {n for n, s in steps.items() if not s.reasons} == set(downstream)
    assert verdicts(steps) == dict.fromkeys(of, "runs") | dict.fromkeys(downstream, "maybe")


def test_a_removed_key_blocks_its_readers_and_what_follows(pipeline):
    pipeline.set(score={})
    assert {n: texts(s) for n, s in pipeline.plan().items() if s.reasons} == {
        n: ["score.k: 1 -> (no longer in params.yaml)"] for n in SCORE
    }
    params = {k: v for k, v in PARAMS.items() if k != "score"}
    pipeline.path("params.yaml").write_text(yaml.safe_dump(params))
    steps = pipeline.plan()
    assert verdicts(steps) == dict.fromkeys([*SCORE, "table"], "blocked")
    assert "score@*: 4 stages cannot run: params.yaml: score is missing" in render(plan.make_plan())
    assert "table: cannot run: waits for score@" in render(plan.make_plan())


# ---- files


def test_a_source_file_a_command_and_a_new_dependency(pipeline):
    for name in ("train.sh", "extra.sh"):
        pipeline.path(f"stages/{name}").write_text(COMMANDS["train"])
    pipeline.dvc_yaml(
        DVC_YAML.replace("sh stages/score.sh ${item.item}", "dash -e stages/score.sh ${item.item}").replace(
            "      - stages/table.sh\n", "      - stages/table.sh\n      - stages/extra.sh\n"
        )
    )
    steps = pipeline.plan()
    assert {n: texts(s) for n, s in steps.items()} == (
        {n: ["stages/train.sh changed"] for n in TRAIN}
        | {n: ["command: sh ... -> dash -e ..."] for n in SCORE}
        | {"table": ["stages/extra.sh is new in dvc.yaml"]}
    )
    assert steps["score@a-1"].because == ["train@a-1"] and steps["table"].because == SCORE
    pipeline.path("stages/extra.sh").unlink()
    assert texts(pipeline.plan()["table"]) == ["stages/extra.sh is missing"]
    assert "table: cannot run: stages/extra.sh is missing" in render(plan.make_plan())


def test_a_raw_folder_names_the_files_changed_since_the_last_run(pipeline):
    """No stage makes it, so the cache does not know its files; the record of the last run is a clock."""
    pipeline.path("raw/c.txt").write_text("c\n")
    assert texts(pipeline.plan()["prepare"]) == ["raw changed: 2 -> 3 files"]
    pipeline.cost("prepare", 1)
    pipeline.path("raw/b.txt").write_text("B\n")
    after = pipeline.path(".work/costs/prepare.json").stat().st_mtime
    for name in "ac":  # ctime cannot be set: move the clock before b.txt alone
        assert pipeline.path(f"raw/{name}.txt").stat().st_ctime <= after
    assert texts(pipeline.plan()["prepare"]) == ["raw changed: 2 -> 3 files, since its last run b.txt"]
    shutil.rmtree(pipeline.path("raw"))
    steps = pipeline.plan()
    assert texts(steps["prepare"]) == ["raw is missing"] and steps["prepare"].verdict == "blocked"
    assert set(verdicts(steps).values()) == {"blocked"}, "what follows has to wait, too"


def test_a_changed_output_names_its_files_and_is_restored(pipeline):
    prepared = pipeline.path("data/prepared")
    prepared.chmod(0o755)
    shutil.copytree(prepared, prepared.with_name("new"))
    shutil.rmtree(prepared)
    prepared.with_name("new").rename(prepared)
    prepared.joinpath("all.txt").chmod(0o644)
    prepared.joinpath("all.txt").write_text("by hand\n")
    prepared.joinpath("mine.txt").write_text("x")
    prepared.joinpath("other.txt").unlink()
    steps = pipeline.plan()
    said = "output data/prepared changed: modified all.txt, added mine.txt, removed other.txt"
    assert texts(steps["prepare"]) == [said]
    for i in range(4):
        prepared.joinpath(f"mine{i}.txt").write_text("x")
    said = "output data/prepared changed: modified all.txt, added mine.txt, added mine0.txt, added mine1.txt and 3 more"
    steps = pipeline.plan()
    assert texts(steps["prepare"]) == [said]
    assert verdicts(steps) == {"prepare": "restored"} | dict.fromkeys(ALL - {"prepare"}, "unchanged")
    assert check_prediction(pipeline, steps) == set()


def test_files_of_a_folder_that_many_stages_write_are_named(pipeline):
    """results/runs as a whole is in no cache; the records of the stages that write into it tell."""
    pipeline.path("results/runs/mine.json").write_text("1\n")
    steps = pipeline.plan()
    assert {n: texts(s) for n, s in steps.items()} == {"table": ["results/runs changed: added mine.json"]}
    assert verdicts(steps) == {"table": "runs"}
    check_prediction(pipeline, steps)
    # now mine.json is part of what the table has seen, and in no record: no names are better than wrong ones
    pipeline.path("results/runs/more.json").write_text("1\n")
    assert texts(pipeline.plan()["table"]) == ["results/runs changed: 5 -> 6 files"]


def test_missing_outputs_and_cache_objects(pipeline):
    pipeline.path("models/a-1.txt").unlink()
    steps = pipeline.plan()
    assert texts(steps["train@a-1"]) == ["output models/a-1.txt is missing"]
    assert verdicts(steps) == {"train@a-1": "restored", "score@a-1": "unchanged", "table": "unchanged"}
    shutil.rmtree(pipeline.path(".dvc/cache/files"))
    steps = pipeline.plan()
    assert texts(steps["train@a-1"]) == ["output models/a-1.txt is missing"] and steps["train@a-1"].verdict == "maybe"
    assert texts(steps["prepare"]) == ["output data/prepared is not in the cache"]
    assert steps["prepare"].verdict == "runs" and not steps["score@a-1"].reasons
    assert check_prediction(pipeline, steps) >= {"prepare", *TRAIN}


# ---- what will happen


def test_a_reverted_key_is_restored_down_to_the_table(pipeline):
    pipeline.set(model__lr__base=0.5)
    steps = pipeline.plan()
    assert verdicts(steps) == dict.fromkeys(TRAIN, "runs") | dict.fromkeys([*SCORE, "table"], "maybe")
    assert check_prediction(pipeline, steps) == {*TRAIN, *SCORE}, "scores count lines alone: nothing new for the table"
    pipeline.set()
    steps = pipeline.plan()
    assert verdicts(steps) == dict.fromkeys([*TRAIN, *SCORE], "restored") | {"table": "unchanged"}
    assert check_prediction(pipeline, steps) == set()


def test_known_and_new_results_in_one_plan(pipeline):
    pipeline.set(options__a=7)
    pipeline.repro()
    pipeline.set(options__b=8)
    steps = pipeline.plan()
    assert {n: s.verdict for n, s in steps.items() if n in TRAIN} == {
        "train@a-1": "restored", "train@a-2": "restored", "train@b-1": "runs", "train@b-2": "runs",
    }  # fmt: skip
    assert steps["score@a-1"].verdict != "maybe" and steps["score@b-1"].verdict == "maybe"
    assert check_prediction(pipeline, steps) == {*TRAIN[2:], *SCORE[2:]}


def test_a_known_result_that_left_the_cache_runs(pipeline):
    before = {p for p in pipeline.path(".dvc/cache/files").rglob("*") if p.is_file()}
    pipeline.set(options__a=7)
    pipeline.repro()
    for path in {p for p in pipeline.path(".dvc/cache/files").rglob("*") if p.is_file()} - before:
        path.unlink()
    pipeline.set()
    pipeline.repro()
    pipeline.set(options__a=7)
    steps = pipeline.plan()
    assert {n for n, s in steps.items() if s.verdict == "runs"} == {"train@a-1", "train@a-2"}
    check_prediction(pipeline, steps)


def test_a_parameter_that_dvcs_run_cache_overlooks_is_a_warning(pipeline):
    """Keys named size or nfiles do not count there (treeverse/dvc#10296): an old result comes back as the new one."""
    pipeline.dvc_yaml(DVC_YAML.replace("      - width\n", "      - shape\n"))
    for value in (1, 2):
        pipeline.set(shape={"size": value})
        steps = pipeline.plan()
        executed = pipeline.repro()
        assert ("prepare" in executed) == (value == 1), "DVC has been mended: the warning and this test can go"
    assert steps["prepare"].verdict == "restored"
    assert "WRONG RESULT" in steps["prepare"].note and "#10296" in steps["prepare"].note


def test_no_declared_parameter_is_one_that_dvcs_run_cache_overlooks():
    """Of blocks with such a key, dvc.yaml declares the single keys: `frames.size` counts, size inside `frames` not."""

    def overlooked(value):
        if not isinstance(value, dict):
            return False
        return bool({"size", "nfiles"} & set(value)) or any(map(overlooked, value.values()))

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    keys = {key for stage in stages.values() for key in stage.get("params", [])}
    assert "frames.size" in keys
    for key in sorted(keys):
        value = small_params()
        for part in key.partition(".${")[0].split("."):
            value = value[part]
        assert key not in ("size", "nfiles") and not overlooked(value), key


def test_added_and_removed_items(pipeline):
    pipeline.set(items=["a"])
    steps = pipeline.plan()
    assert {n: texts(s) for n, s in steps.items()} == {"table": ['items: ["a", "b"] -> ["a"]']}
    gone = ["models/b-1.txt", "models/b-2.txt", "results/runs/b-1.json", "results/runs/b-2.json"]
    assert sorted(plan.make_plan().left_over) == gone
    assert "left over from stages that dvc.yaml no longer has" in render(plan.make_plan())
    pipeline.set(items=["a", "b", "c"], options__c=3)
    steps = pipeline.plan()
    assert plan.make_plan().left_over == []
    assert verdicts(steps) == {
        "train@c-1": "runs", "train@c-2": "runs", "score@c-1": "maybe", "score@c-2": "maybe", "table": "maybe",
    }  # fmt: skip
    assert texts(steps["train@c-1"]) == texts(steps["score@c-1"]) == ["never run"]
    assert check_prediction(pipeline, steps) == set(steps)


def test_a_failed_stage_says_where_to_look(pipeline):
    pipeline.set(options__a="fail")
    assert pipeline.repro() == {"train@a-1", "train@a-2"}
    pipeline.path("logs").mkdir()
    log = pipeline.path("logs/train@a-1.log")
    log.write_text("12:00:01 loading\n12:00:02 error: told to fail\n")
    steps = pipeline.plan()
    assert set(steps) == {"train@a-1", "train@a-2", "score@a-1", "score@a-2", "table"}
    assert texts(steps["train@a-1"]) == ["options.a: 1 -> fail", "output models/a-1.txt is missing"]
    note = "its last run did not end well, see logs/train@a-1.log: told to fail"
    assert steps["train@a-1"].note == note and steps["train@a-2"].note == ""
    assert note in render(plan.make_plan())
    log.write_text('12:00:01 loading\n12:00:02 done: {"seconds": 1}\n')
    assert pipeline.plan()["train@a-1"].note == ""


def test_running_stages_and_engines_are_named(pipeline):
    pipeline.set(options__a=9)
    pipeline.path(".work/locks").mkdir(parents=True)
    code = "import fcntl,sys\nfs=[open(f'.work/locks/{n}.lock','w') for n in sys.argv[1:]]\n"
    code += "[fcntl.lockf(f,fcntl.LOCK_EX) for f in fs]\nprint('held',flush=True)\nsys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, "snakemake", "train@a-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    steps = pipeline.plan()
    assert steps["train@a-1"].note == f"running now (process {other.pid})" and not steps["train@a-2"].note
    assert render(plan.make_plan()).startswith(f"note: a Snakemake is at work here (process {other.pid})")
    other.communicate()
    assert not pipeline.plan()["train@a-1"].note and not plan.make_plan().at_work


# ---- grouping


def test_thirty_trainings_are_one_line():
    names = [f"train@supervised-{s}-{n}-{i}" for s in ("random", "us", "ds") for n in (12, 24) for i in (7, 25, 42)]
    others = ["train@supervised-ent-12-7", "score@x", "prepare"]
    assert patterns(names, names) == ["train@*"]
    assert patterns(names, [*names, *others]) == ["train@supervised-{random,us,ds}-{12,24}-{7,25,42}"]
    assert patterns(names[:6], names) == ["train@supervised-random-{12,24}-{7,25,42}"]
    assert patterns([names[0], "prepare", "score@x"], [*names, *others]) == [names[0], "prepare", "score@x"]


@pytest.mark.parametrize(
    ("items", "count"),
    [
        (["a-1", "a-2", "b-1"], 2),
        (["a-1", "b-2"], 2),
        (["a-1", "a-2", "b-1", "b-2", "c-1"], 2),
        (["a-1-x", "a-2-x", "b-1-x", "b-2-x", "c-1-x", "c-2-y"], 3),
        (["a", "a-1", "b-1"], 2),
    ],
)
def test_patterns_stand_for_exactly_the_names(items, count):
    found = patterns([f"t@{i}" for i in items], [f"t@{i}" for i in [*items, "z-9"]])
    expanded = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(found)}"], capture_output=True, text=True)
    assert sorted(expanded.stdout.split()) == sorted(f"t@{i}" for i in items), "as a shell expands them"
    assert len(found) == count


def test_stages_with_one_reason_are_one_line_with_a_count(pipeline):
    pipeline.set(options__a=9)
    pipeline.path("stages/score.sh").write_text("# new\n" + pipeline.path("stages/score.sh").read_text())
    assert render(plan.make_plan()).split("\n\n")[1].splitlines() == [
        "train@a-{1,2}: 2 stages run",
        "    options.a: 1 -> 9",
        "score@a-{1,2}: 2 stages may run",
        "    stages/score.sh changed",
        "    and because of train@a-{1,2}",
        "score@b-{1,2}: 2 stages run",
        "    stages/score.sh changed",
        "table: may run",
        "    because of score@*",
    ]
    for run in RUNS:
        pipeline.path(f"results/runs/{run}.json").unlink()
    assert "    output results/runs/b-{1,2}.json is missing" in render(plan.make_plan())


# ---- how long, how much


def test_expected_times_by_hand(pipeline):
    """Recorded: prepare 10 s, train@a-1 20 s, train@b-2 40 s (their mean 30 s for the other two); score: nothing."""
    pipeline.set(width=5)
    for name, seconds in {"prepare": 10, "train@a-1": 20, "train@b-2": 40, "table": 1}.items():
        pipeline.cost(name, seconds)
    pipeline.path(".work/costs/score@a-1.json").write_text("{")  # cut off: as if never recorded
    steps = pipeline.plan()
    assert {n: (s.seconds, s.seconds_from) for n, s in steps.items()} == {
        "prepare": (10, "recorded"), "table": (1, "recorded"),
        "train@a-1": (20, "recorded"), "train@b-2": (40, "recorded"),
        "train@a-2": (30, "mean of 2 train@*"), "train@b-1": (30, "mean of 2 train@*"),
    } | dict.fromkeys(SCORE, (0, "unknown"))  # fmt: skip
    # trainings take 2 cores each: 10 + 20 + 30 + 30 + 40 + 1 one by one; on 4 cores two at a time:
    # a-1 and a-2 at 10; b-1 from 30 to 60; b-2 from 40 to 80; table until 81
    for cores, seconds in {1: 131, 2: 131, 4: 81, 8: 51}.items():
        wall = plan.make_plan(cores=cores).as_json()["expected"]["wall_seconds"]
        assert wall == {"certain": 10, "at_most": seconds}, cores
    text = render(plan.make_plan(cores=4))
    assert "expected: at least 1 min 21 s with snakemake on 4 cores, at least 2 min 11 s with dvc repro" in text
    assert "(10 s for those that certainly do)" in text
    assert "4 by their last run; 2 by the mean of their matrix; 4 unknown" in text


def test_a_stage_without_any_record_has_an_upper_limit(pipeline):
    pipeline.set(width=5)
    steps = pipeline.plan()
    assert (steps["prepare"].seconds, steps["prepare"].seconds_from) == (120, "limit")
    assert (steps["train@a-1"].seconds, steps["train@a-1"].seconds_from) == (1800, "limit")
    text = render(plan.make_plan(cores=2))
    assert "at most 2 h 02 min with snakemake on 2 cores" in text, "2 + 4 x 30 minutes"
    assert "5 never recorded: upper limits from `minutes` in dvc.yaml" in text


def test_expected_sizes_by_hand(pipeline):
    """all.txt: "a b width: 4", 13 bytes; other.txt 6; a new item's model is the mean of the recorded ones."""
    assert pipeline.path("data/prepared/all.txt").stat().st_size == 13
    pipeline.set(items=["a", "b", "c"], options__c=3, width=5)
    steps = pipeline.plan()
    sizes = [pipeline.path(f"models/{r}.txt").stat().st_size for r in RUNS]
    assert (steps["prepare"].bytes, steps["prepare"].bytes_from) == (19, "recorded")
    assert (steps["train@a-1"].bytes, steps["train@c-1"].bytes) == (sizes[0], round(sum(sizes) / 4))
    assert steps["train@c-1"].bytes_from == "mean of 4 train@*"
    document = plan.make_plan().as_json()
    assert document["expected"]["new_bytes"] == sum(s["bytes"] for s in document["stale"])
    pipeline.path("dvc.lock").unlink()
    shutil.rmtree(pipeline.path(".dvc/cache"))
    assert plan.make_plan().as_json()["stale"][0]["bytes"] is None
    assert "(14 of unknown size)" in render(plan.make_plan())


def test_too_little_disk_is_said(pipeline, monkeypatch):
    pipeline.set(width=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert "TOO LITTLE DISK: free" in render(plan.make_plan())


def test_what_is_restored_costs_nothing(pipeline):
    pipeline.cost("train@a-1", 50)
    pipeline.path("models/a-1.txt").unlink()
    expected = plan.make_plan().as_json()["expected"]
    assert expected["stage_seconds"] == expected["new_bytes"] == expected["wall_seconds"]["at_most"] == 0


@pytest.mark.parametrize(
    ("jobs", "upstream", "cores", "seconds"),
    [
        ({}, {}, 2, 0),
        ({"a": (3, 1), "b": (4, 1)}, {}, 1, 7),
        ({"a": (3, 1), "b": (4, 1)}, {}, 2, 4),
        ({"a": (3, 1), "b": (4, 1)}, {"b": ["a"]}, 2, 7),
        ({"a": (3, 1), "b": (4, 1)}, {"b": ["gone"]}, 2, 4),  # a stage before it that is up to date
        ({"a": (3, 9), "b": (4, 9)}, {}, 4, 7),  # more threads than cores: as many as there are
        ({"a": (5, 1), "b": (2, 2), "c": (1, 1)}, {}, 2, 7),  # c slips in beside a, b waits for both cores
        ({"a": (1, 1), "b": (1, 1), "c": (5, 1), "d": (1, 1)}, {"d": ["a", "b"]}, 3, 5),
    ],
)
def test_wall_time(jobs, upstream, cores, seconds):
    assert plan.wall_time(jobs, upstream, cores) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.2 s"), (9.97, "10 s"), (59.4, "59 s"), (60, "1 min 00 s"), (190, "3 min 10 s"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def test_sizes_for_people():
    shown = [size_text(n) for n in (0, 999, 1500, 25e6, 3.2e9, 5e12)]
    assert shown == ["0 B", "999 B", "1.5 kB", "25 MB", "3.2 GB", "5.0 TB"]


# ---- targets and the command


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (["train@a-1"], ["prepare", "train@a-1"]),
        (["train"], ["prepare", *TRAIN]),
        (["models/b-2.txt"], ["prepare", "train@b-2"]),
        (["data/prepared/all.txt"], ["prepare"]),
        (["results/runs"], ["prepare", *TRAIN, *SCORE]),
        (["results/table.csv"], ["prepare", *TRAIN, *SCORE, "table"]),
        (["train@a-1", "./models/a-2.txt"], ["prepare", "train@a-1", "train@a-2"]),
    ],
)
def test_targets_take_what_they_need_and_no_more(built, targets, named):
    built.set(width=5)
    try:
        assert [s.name for s in plan.make_plan(targets).steps] == named
    finally:
        built.set()


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    code = 0
    try:
        plan.main()
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def test_the_command_prints_text_or_json(pipeline, monkeypatch, capsys):
    pipeline.set(options__a=9)
    code, out, _ = command(monkeypatch, capsys, "--cores", "3")
    assert code == 0 and out.startswith("5 of 10 stages are stale: 2 run; 3 may run\n") and "on 3 cores" in out
    code, out, _ = command(monkeypatch, capsys, "--json", "--cores", "3", "train@a-1")
    document = json.loads(out)
    assert code == 0 and document["expected"]["cores"] == 3 and document["targets"] == ["train@a-1"]
    (stale,) = document["stale"]
    assert (stale["name"], stale["verdict"], stale["because"]) == ("train@a-1", "runs", [])
    reason = {"kind": "param", "what": "options.a", "state": "changed", "old": 1, "new": 9, "files": []}
    assert stale["reasons"] == [reason]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["trian@a-1"], "did you mean train@a-1"), (["models/a-9.txt"], "did you mean models/a-"),
     (["--cores", "0"], "1 or more")],
)  # fmt: skip
def test_a_slip_in_the_command_is_one_line(built, monkeypatch, capsys, arguments, said):
    code, out, error = command(monkeypatch, capsys, *arguments)
    assert code == 2 and out == "" and error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("params.yaml", "items: [a\n", r"params\.yaml"),
        ("dvc.yaml", "stages: 3\n", r"dvc\.yaml"),
        ("dvc.lock", "schema: '2.0'\nstages: 3\n", r"dvc\.lock"),
        ("dvc.lock", "a: [\n", r"dvc\.lock"),
    ],
    ids=["params not yaml", "no stages", "lock of another kind", "lock cut off"],
)
def test_a_broken_description_is_one_line(pipeline, file, text, said):
    pipeline.path(file).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        plan.make_plan()
    assert "\n" not in str(error.value)


def test_an_unpacked_zip_is_told_what_to_do(pipeline):
    pipeline.path(".dvc/config").write_text("")
    with pytest.raises(UserError, match=r"core\.no_scm true"):
        plan.make_plan()


def test_looking_changes_nothing(pipeline):
    """Neither files nor DVC's records; an engine at work is not waited for."""
    pipeline.set(options__a=9)
    pipeline.path("models/b-1.txt").unlink()

    def state():
        files = [p for p in pipeline.folder.rglob("*") if p.is_file() and "tmp" not in p.parts]
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    before = state()
    lock = pipeline.path(".dvc/tmp/rwlock")
    writer = {"pid": os.getppid(), "cmd": "dvc repro"}
    lock.write_text(json.dumps({"write": {str(pipeline.path("data/prepared")): writer}, "read": {}}))
    assert len(plan.make_plan().steps) == 7
    assert state() == before


def test_torch_is_not_imported():
    code = "import sys, semivid.pipeline.plan; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
