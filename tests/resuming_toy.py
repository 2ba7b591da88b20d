"""A small pipeline whose stages take their time, save what they have and write files and folders.

Under this project's Snakefile, runner and stage machinery; for tests of kills, full disks and engines at once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from small import small_params

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = ["snakemake", "--cores", "2"]
DVC = ["dvc", "repro", "--quiet"]
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

    def mend(self):
        """What docs/engines.md says to do after a kill of DVC that was writing a file in place; that file or None."""
        for path, load in ((".dvc/tmp/rwlock", json.loads), ("dvc.lock", lambda text: yaml.safe_load(text)["stages"])):
            try:
                load((self.folder / path).read_text())
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, KeyError, yaml.YAMLError):
                (self.folder / path).unlink()
                return path
        return None

    def outputs(self):
        folders = [self.folder / name for name in ("data", "models", "runs", "results")]
        paths = [
            p
            for f in folders
            for p in sorted(f.rglob("*"))
            if p.is_file() and p.name not in (".snakemake_timestamp", ".gitignore")
        ]
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
