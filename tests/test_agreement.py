"""Both engines name the same stages after a change, run no others, and run nothing when it is taken back.

The project's own pipeline at tiny sizes, on frames in Cityscapes' layout (so that raw frames and masks can change):
every stage is run for real, once; what is stale after each of many changes is then only asked.
"""

import contextlib
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import yaml
from dvc.repo import Repo

from small import small_params, with_random_alone

ROOT = Path(__file__).resolve().parent.parent
TABLES = ["table3", "report"]
SCORED = ["evaluate@*", *TABLES]
TRAINED = ["train@*", *SCORED]
FLOW_SCORED = ["evaluate_flow@*", "flow_table"]
FLOW_CONSISTENCY = ["train_flow@*", "evaluate_flow@flow_consistency-*", "flow_table"]
FLOW_TRAINED = ["train_flow_baseline@*", "train_flow@*", *FLOW_SCORED]

METHOD_TABLES = ["methods_table", "table1", "table2"]
METHODS_SCORED = ["evaluate_methods@*", "evaluate_multitask@*", *METHOD_TABLES]
FLOW = ["flow", "train_flow@*", *FLOW_SCORED, *METHODS_SCORED]


def of_methods(*methods):
    """Training, evaluation and tables of some methods of `compare`."""
    return [f"{kind}@{method}-*" for kind in ("train_*", "evaluate_m*") for method in methods] + METHOD_TABLES


PLAIN = of_methods("transfer_plain")
MIXED = of_methods("classmix", "depthmix", "transfer_depthmix_gt", "multitask_depthmix_gt")
BY_DEPTH = of_methods("depthmix", "transfer_depthmix_gt")
FROM_DEPTH = of_methods("transfer", "transfer_depthmix_gt", "multitask_depthmix_gt")
ON_NETWORK = [*of_methods("classmix", "depthmix", "transfer*", "supervised")]
METHODS = [*ON_NETWORK, *MIXED]

DS_US = ["select_student@*", "train@supervised-ds_us-*", "evaluate@supervised-ds_us-*", *TABLES]
MODEL = ["depth_scores", "disparity", *DS_US, *BY_DEPTH, *FROM_DEPTH]
TEACHER = ["depth_finetune", *MODEL]
BOTH = [*TEACHER, "depth_finetune_plain", *PLAIN]
DEPTH = ["depth_pretrain", *BOTH]
RANDOM = ["select_names@*", "train@supervised-random-*", "evaluate@supervised-random-*", *TABLES, *METHODS]
MASKS = ["masks", "disparity", *DS_US, *RANDOM, "flow", "fraction_lists@*", *FLOW_TRAINED, *METHODS_SCORED]
FRAMES = ["frames", *MASKS, *DEPTH]

KEYS = {  # at least one of every block of params.yaml: another value, and who must run again
    "data__holdout": (0.5, FRAMES),
    "data__name": ("x", [*RANDOM, *SCORED, *FLOW_SCORED, *METHODS_SCORED]),
    "render__seed": (2, ["render", "depth_scores"]),
    "frames__quality": (50, FRAMES),
    "depth_network__aspp_rates": ([1, 2], DEPTH),
    "depth_pretrain__lr": (0.5, DEPTH),
    "depth_finetune__lr": (0.5, BOTH),
    "depth_finetune__feature_distance": (0.5, TEACHER),
    "depth_model": ("models/depth_finetune_plain", MODEL),
    "disparity__bits": (8, ["disparity", *DS_US, *BY_DEPTH]),
    "flow__method": ("best", FLOW),
    "flow__dis__preset": ("fast", FLOW),
    "flow__pyflow__alpha": (0.5, []),  # read by a method that is not asked for
    "select__ds_us__bias": (3.0, DS_US),
    "select__us__lr": (0.5, []),  # read by a criterion that is no row of this table
    "network__head_channels": (8, [*TRAINED, *FLOW_TRAINED, *ON_NETWORK]),
    "train__iterations": (4, [*TRAINED, *FLOW_TRAINED, *METHODS, *METHODS_SCORED]),
    "methods__supervised__lr": (0.5, [*TRAINED, *of_methods("supervised")]),
    "methods__flow_baseline__lr": (0.5, FLOW_TRAINED),
    "methods__flow_consistency__weight": (0.5, FLOW_CONSISTENCY),
    "methods__depthmix__margin": (0.5, of_methods("depthmix")),
    "methods__transfer_plain__lr": (0.5, PLAIN),
    "evaluate__batch_size": (1, [*SCORED, *FLOW_SCORED, *METHODS_SCORED]),
    "table3__seeds": ([7, 25, 42], ["select_names@random-42", "select_student@ds_us-42", "*@*-2-42", *TABLES]),
    "table3__seeds less": ([7], TABLES),
    "table3__labels": ([2, 3], ["train@*-3-*", "evaluate@*-3-*", *TABLES]),
    "table3__rows": (["random"], TABLES),
    "flow_table__percents": ([50, 100], ["fraction_lists@*", *FLOW_TRAINED]),
    "transfer__decoder": (False, of_methods("transfer", "transfer_plain", "transfer_depthmix_gt")),
    "multitask_network__final_layer": (8, of_methods("multitask_depthmix_gt")),
    "compare__seeds": ([7, 25], ["train_m*@*-25", "train_t*@*-25", "evaluate_m*@*-25", *METHOD_TABLES]),
    "methods_table__rows": (["supervised-random"], ["methods_table"]),
    "table1__rows": (["supervised-random"], ["table1"]),
    "table2__rows": (["supervised-random"], ["table2"]),
}
FILES = {
    "src/semivid/methods/supervised.py": [*TRAINED, *of_methods("supervised", "transfer", "transfer_plain")],
    "src/semivid/methods/pseudo_label.py": MIXED,
    "src/semivid/methods/multitask.py": of_methods("multitask_depthmix_gt"),
    "src/semivid/selection/diversity.py": ["disparity", *DS_US, *BY_DEPTH],
    "src/semivid/training/loop.py": [*DEPTH, *TRAINED, *FLOW_TRAINED, *METHODS],
    "src/semivid/methods/flow_consistency.py": FLOW_TRAINED,
    "src/semivid/flow/estimators.py": FLOW,
    "src/semivid/evaluation/chart.py": ["report"],
    "src/semivid/pipeline/stage.py": [],  # plumbing: where and when things run, not what comes out
    "stages/evaluate.py": SCORED,
    "raw/leftImg8bit_sequence": FRAMES,
    "raw/gtFine": MASKS,
}
FAMILIES = {  # of `compare`
    "mix": "classmix",
    "mix_depth": "depthmix",
    "transfer": "transfer",
    "transfer_plain": "transfer_plain",
    "transfer_mix_depth": "transfer_depthmix_gt",
    "multitask": "multitask_depthmix_gt",
}


class Checkout:
    """A copy of the project in `folder`, with tiny parameters and raw data of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("Snakefile", "dvc.yaml", ".dvcignore", ".gitignore", "environment.yml"):
            shutil.copy(ROOT / name, folder)
        for name in ("profiles", "stages", "src", "presets", "splits/published"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for path in (ROOT / "splits").glob("*.txt"):
            shutil.copy(path, folder / "splits")
        self.set()
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")
        shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")

    def set(self, **changes):
        """Write params.yaml; a dotted key is spelt with two underscores."""
        params = small_params()
        raw = {"frames": "leftImg8bit_sequence", "masks": "gtFine"}
        params["data"] |= {"source": "cityscapes", "camera": "raw/camera"}
        for block, name in raw.items():
            params["data"][block] = {split: f"raw/{name}/{split}" for split in ("train", "val")}
        params["table3"] |= {"labels": [2], "rows": ["random", "ds_us"]}
        params["table3"]["select"] = {"names": ["random"], "features": [], "student": ["ds_us"], "labels": []}
        params["flow_table"] |= {"percents": [50], "seeds": [7]}
        params["compare"]["labels"] = [2]
        for family, block in params["compare"].items():
            if isinstance(block, dict):
                block["methods"] = [FAMILIES[family]] if family in FAMILIES else []
        with_random_alone(params)
        for key, value in changes.items():
            *parents, last = key.split("__")
            block = params
            for part in parents:
                block = block[part]
            block[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def names(self):
        with contextlib.chdir(self.folder):
            return {s.addressing for s in Repo(".").index.stages}

    def named_by_dvc(self):
        """The stages that DVC calls changed, and all that depend on them, by DVC's own graph."""
        with contextlib.chdir(self.folder):
            repo = Repo(".")
            status, graph = repo.status(), repo.index.graph
            named = {s for s in graph if s.addressing in status}
            while more := {s for s in graph if s not in named and named & set(graph.successors(s))}:
                named |= more
            return {s.addressing for s in named}

    def named_by_snakemake(self):
        output = self.run("snakemake", "--dry-run")
        if "Nothing to be done" in output:
            return set()
        rules = {"".join(c if c.isalnum() else "_" for c in name): name for name in self.names()}
        return {rules[r] for r in re.findall(r"^(?:local)?rule (\w+):$", output, re.M) if r != "all"}

    def commands_since(self, moment):
        """The stages whose command has run to its end since then."""
        costs = self.folder / ".work/costs"
        return {p.stem for p in costs.glob("*.json") if p.stat().st_mtime_ns > moment}

    def outputs(self):
        """Contents of all outputs; logs of curves are left out, they hold times."""
        kept = [self.folder / d for d in ("data/prepared", "data/disparity", "models", "results", "splits/selected")]
        paths = [p for f in kept for p in sorted(f.rglob("*")) if p.is_file() and p.name != ".snakemake_timestamp"]
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("agreement") / "checkout")
    checkout.set(data__source="street", render__annotated=[1, 2])  # with neighbours, for multi-task
    checkout.run(sys.executable, "stages/render.py")
    (checkout.folder / "data/raw").rename(checkout.folder / "raw")
    checkout.set()
    checkout.run("snakemake", "--cores", "2")
    return checkout


def matching(names, patterns):
    return {n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)}


def both_name(checkout, patterns):
    """What is stale, which both engines name alike and as expected."""
    expected = matching(checkout.names(), patterns)
    assert checkout.named_by_dvc() == expected
    assert checkout.named_by_snakemake() == expected
    return expected


def change(path):
    """Change a file, or one picture in a folder; returns what takes it back."""
    if path.is_dir():
        path = sorted(path.rglob("*_labelIds.png") if path.name == "gtFine" else path.rglob("train/**/*.png"))[0]
        before = path.read_bytes()
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        picture[:9] = 7
        cv2.imwrite(str(path), picture)
    else:
        before = path.read_bytes()
        path.write_bytes(before + b"# changed\n")
    return lambda: path.write_bytes(before)


# In the ordinary suite one key of every block, and those that tell two families apart; the rest in check-slow.
OFTEN = {"depth_finetune__feature_distance", "flow__dis__preset", "methods__depthmix__margin", "table3__seeds less"}
for _key in KEYS:
    if _key.partition("__")[0] not in {often.partition("__")[0] for often in OFTEN}:
        OFTEN.add(_key)
OFTEN |= {"methods__supervised__lr"}


def slow_unless(often, cases):
    return [case if case in often else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def test_every_block_of_the_parameters_is_tried():
    assert {key.partition("__")[0] for key in OFTEN} == set(small_params())


def test_both_engines_have_nothing_to_do_after_a_run(checkout):
    assert both_name(checkout, []) == set()


@pytest.mark.parametrize("key", slow_unless(OFTEN, KEYS))
def test_a_changed_key_makes_both_engines_name_its_readers(checkout, key):
    value, stale = KEYS[key]
    checkout.set(**{key.split()[0]: value})
    try:
        both_name(checkout, stale)
    finally:
        checkout.set()


OFTEN_FILES = {
    "src/semivid/methods/pseudo_label.py",
    "src/semivid/methods/supervised.py",
    "src/semivid/training/loop.py",
    "src/semivid/pipeline/stage.py",
    "raw/gtFine",
}


@pytest.mark.parametrize("file", slow_unless(OFTEN_FILES, FILES))
def test_a_changed_file_makes_both_engines_name_its_readers(checkout, file):
    undo = change(checkout.folder / file)
    try:
        both_name(checkout, FILES[file])
    finally:
        undo()
    assert checkout.named_by_dvc() == set()


BACK_AND_FORTH = [
    ("batch size", "snakemake", "dvc"),
    ("seed less", "dvc", "snakemake"),
    *[pytest.param(w, "dvc", "snakemake", marks=pytest.mark.slow) for w in ("batch size", "mask")],
    *[pytest.param(w, "snakemake", "dvc", marks=pytest.mark.slow) for w in ("seed less", "mask")],
]


@pytest.mark.parametrize(("what", "run", "restore"), BACK_AND_FORTH)
def test_no_others_run_and_taking_it_back_runs_nothing(checkout, what, run, restore):
    engines = {"snakemake": ("snakemake", "--cores", "2"), "dvc": ("dvc", "repro", "--quiet")}
    before = checkout.outputs()
    undo = checkout.set
    if what == "batch size":
        checkout.set(evaluate__batch_size=1)
        patterns, surely = [*SCORED, *FLOW_SCORED, *METHODS_SCORED], ["evaluate@*", "evaluate_*@*"]
    elif what == "mask":
        undo = change(checkout.folder / "raw/gtFine")
        patterns, surely = MASKS, ["masks"]
    else:
        checkout.set(table3__seeds=[7])
        patterns = surely = TABLES
    named = both_name(checkout, patterns)
    already = (checkout.folder / f".tried {what}").exists()
    start = time.time_ns()
    checkout.run(*engines[run])
    ran = checkout.commands_since(start)
    assert ran <= named
    # DVC alone leaves the scores of removed runs in results/runs, which tables depend on as a folder.
    left_over = set(TABLES) if what == "seed less" else set()
    if already:
        assert ran <= (left_over if run == "dvc" else set()), "the result was known"
    else:
        assert ran >= matching(named, surely)
    (checkout.folder / f".tried {what}").touch()
    both_name(checkout, [])
    assert checkout.outputs() != before or what == "batch size"

    undo()
    start = time.time_ns()
    checkout.run(*engines[restore])
    assert checkout.commands_since(start) <= (left_over if restore == "dvc" else set())
    both_name(checkout, [])
    assert checkout.outputs() == before
