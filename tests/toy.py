"""A small pipeline under this project's Snakefile and bridge, for tests of the engines."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dvc.repo import Repo

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
import yaml
name, *item = sys.argv[1:]
with open(os.environ["EXECUTED"], "a") as file:
    file.write("@".join(sys.argv[1:]) + "\\n")
params = yaml.safe_load(open("params.yaml"))

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
        try:
            output = process.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise
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
