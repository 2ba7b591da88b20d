"""`kill -9` of engines and stages at random moments: the same command completes, with the same bytes.

A small pipeline of stages that compute for a while, save what they have in their work folder and write files and
folders, under this project's Snakefile, runner and stage machinery.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from small import small_params

ROOT = Path(__file__).resolve().parent.parent
STAGE = '''"""A stage that takes its time, resumes, and writes a file and a folder."""
import hashlib, json, os, sys, time
from pathlib import Path
from semivid.pipeline.artifacts import replacing, write_text
from semivid.pipeline.stage import run_stage

def main(stage):
    # Two processes that run one stage at once would each find the other here.
    mine = Path(".work/writers") / f"{stage.name}.{os.getpid()}"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.touch()
    for other in mine.parent.glob(f"{stage.name}.*"):
        pid = int(other.suffix[1:])
        if pid != os.getpid():
            alive = Path(f"/proc/{pid}/stat").exists() and open(f"/proc/{pid}/stat").read().split()[2] != "Z"
            if alive:
                Path("two_writers.txt").open("a").write(f"{stage.name}: {pid} and {os.getpid()}\\n")
            other.unlink(missing_ok=True)
    stage.work.mkdir(parents=True, exist_ok=True)
    state = stage.work / "state.json"
    text = stage.settings + "".join(Path(p).read_text() for p in INPUTS(stage))
    key = hashlib.sha256(text.encode()).hexdigest()
    saved = json.loads(state.read_text()) if state.exists() else {}
    steps = saved["steps"] if saved.get("key") == key else [key]
    for _ in range(len(steps), 9):
        time.sleep(0.04)
        steps.append(hashlib.sha256(steps[-1].encode()).hexdigest())
        write_text(state, json.dumps({"key": key, "steps": steps}))
    file, folder = OUTPUTS(stage)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for i, step in enumerate(steps):
            (temporary / f"{i}.txt").write_text(step)
    write_text(Path(file), steps[-1])
    mine.unlink()
'''
PREPARE = (
    STAGE
    + """
INPUTS = lambda stage: []
OUTPUTS = lambda stage: ("data/prepared.txt", "data/prepared")
run_stage(main, ["render.seed"])
"""
)
TRAIN = (
    STAGE
    + """
INPUTS = lambda stage: ["data/prepared.txt", "data/prepared/3.txt"]
OUTPUTS = lambda stage: (f"models/{stage.args.item}.txt", f"runs/{stage.args.item}")
run_stage(main, ["train.iterations"], {"item": str})
"""
)
TABLE = (
    STAGE
    + """
INPUTS = lambda stage: sorted(Path("models").glob("*.txt"))
OUTPUTS = lambda stage: ("results/table.txt", "results/pages")
run_stage(main, [])
"""
)
DVC_YAML = """
stages:
  prepare:
    cmd: python stages/prepare.py
    deps:
      - stages/prepare.py
    params:
      - render.seed
    outs:
      - data/prepared.txt
      - data/prepared
  train:
    matrix:
      item: [a, b, c, d]
    cmd: python stages/train.py --item ${item.item}
    deps:
      - data/prepared.txt
      - data/prepared
      - stages/train.py
    params:
      - train.iterations
    outs:
      - models/${item.item}.txt
      - runs/${item.item}
  table:
    cmd: python stages/table.py
    deps:
      - models
      - stages/table.py
    plots:
      - results/table.txt:
          cache: false
    outs:
      - results/pages
"""


class Checkout:
    """A folder with the pipeline above."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "stages").mkdir(parents=True)
        for name, text in (("prepare", PREPARE), ("train", TRAIN), ("table", TABLE)):
            (folder / f"stages/{name}.py").write_text(text)
        (folder / "dvc.yaml").write_text(DVC_YAML)
        (folder / "environment.yml").touch()
        (folder / ".gitignore").write_text(
            "/data/\n/models/\n/runs/\n/.work/\n/.snakemake/\n/logs/\n/two_writers.txt\n"
        )
        for name in ("Snakefile", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "profiles/default", folder / "profiles/default")
        self.set(1, 1)
        for command in ("git init --quiet", "dvc init --quiet"):
            self.run(command.split())
        shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")

    def set(self, seed, iterations):
        params = small_params()
        params["render"]["seed"], params["train"]["iterations"] = seed, iterations
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))

    def start(self, command):
        bin_folder = str(Path(sys.executable).parent)
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        with open(self.folder.parent / f"{self.folder.name}.log", "a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self):
        return (self.folder.parent / f"{self.folder.name}.log").read_text()

    def run(self, command):
        process = self.start(command)
        assert process.wait(timeout=240) == 0, self.log()[-3000:]

    def outputs(self):
        folders = [self.folder / name for name in ("data", "models", "runs", "results")]
        paths = [p for f in folders for p in sorted(f.rglob("*")) if p.is_file() and p.name != ".snakemake_timestamp"]
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in paths}

    def processes(self):
        """Every process that works in this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(str(self.folder)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


SNAKEMAKE = ["snakemake", "--cores", "2"]
DVC = ["dvc", "repro", "--quiet"]


def disturb(checkout, command, kills, rng):
    """Start the engine again and again; kill it, or one of its processes, at a random moment; returns the victims."""
    victims = {"engine": 0, "stage": 0, "runner": 0}
    value = 1
    while sum(victims.values()) < kills:
        engine = checkout.start(command)
        if rng.random() < 0.7:  # most moments of an engine's life are its start; look for one with stages at work
            while engine.poll() is None and not any(_at_work(p) for p in checkout.processes()):
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            time.sleep(rng.uniform(0.0, 6.0))
        if engine.poll() is not None:  # it ended in peace (or failed: the next start tells); give it something to do
            value += 1
            checkout.set(rng.choice([1, value]), value)
            continue
        below = [p for p in checkout.processes() if p.pid != engine.pid]
        kinds = {
            "engine": [engine],
            "stage": [p for p in below if _at_work(p)],
            "runner": [p for p in below if "semivid.pipeline.run" in _command(p)],
        }
        kind = rng.choice([k for k, found in kinds.items() if found])
        victim = rng.choice(kinds[kind])
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        victims[kind] += 1
        if kind == "engine":  # the next start follows at once, while stages of the dead engine may still be ending
            engine.wait()
        elif rng.random() < 0.5:
            os.kill(engine.pid, signal.SIGKILL)
            engine.wait()
        else:
            engine.wait(timeout=120)
    return victims


def _at_work(process):
    return any(part.startswith("stages/") for part in _command(process)[1:2])


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("kills") / "undisturbed")
    checkout.run(SNAKEMAKE)
    return checkout.outputs()


def survives(checkout, command, kills, seed, undisturbed):
    victims = disturb(checkout, command, kills, random.Random(seed))
    checkout.set(1, 1)
    checkout.run(command)
    assert checkout.outputs() == undisturbed
    assert not (checkout.folder / "two_writers.txt").exists(), (checkout.folder / "two_writers.txt").read_text()
    status = subprocess.run(["dvc", "status"], cwd=checkout.folder, capture_output=True, text=True)
    assert "up to date" in status.stdout, status
    deadline = time.monotonic() + 20
    while left := checkout.processes():
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.1)
    print(f"{command[0]}: survived {json.dumps(victims)}")


@pytest.mark.parametrize("command", [SNAKEMAKE, DVC], ids=["snakemake", "dvc"])
def test_the_same_command_completes_after_kills(tmp_path, undisturbed, command):
    survives(Checkout(tmp_path / "killed"), command, 10, 7, undisturbed)


@pytest.mark.parametrize("first, second", [(SNAKEMAKE, DVC), (DVC, SNAKEMAKE), (SNAKEMAKE, SNAKEMAKE), (DVC, DVC)])
def test_two_engines_at_once_do_no_harm(tmp_path, undisturbed, first, second):
    """One of them may be refused; afterwards either completes."""
    checkout = Checkout(tmp_path / "both")
    one, two = checkout.start(first), checkout.start(second)
    codes = one.wait(timeout=240), two.wait(timeout=240)
    assert 0 in codes, checkout.log()[-3000:]
    assert "Traceback" not in checkout.log()
    for command in (second, first):
        checkout.run(command)
    assert checkout.outputs() == undisturbed
    assert not (checkout.folder / "two_writers.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("command", [SNAKEMAKE, DVC], ids=["snakemake", "dvc"])
def test_fifty_kills(tmp_path, undisturbed, command, seed):
    survives(Checkout(tmp_path / "killed"), command, 50, seed, undisturbed)
