"""What the engines cost: no-op, cost per job, restoring, for a pipeline of 100 stages: python -m benchmarks.engines

The stages themselves do next to nothing; their own time is measured first and taken off. CPU seconds of all processes
of a command, so that other work on the machine counts little. The plain way is `dvc repro --single-item` per job.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 49
PARAMS = {"prepare": 1, "lr": 1, "scale": 1, "runs": [f"r{i}" for i in range(RUNS)]}
STEP = """import json, os, sys
out, *inputs = sys.argv[1:]
params = json.load(open("params.yaml"))
os.makedirs(os.path.dirname(out), exist_ok=True)
with open(out, "w") as file:
    json.dump([out, params["lr"], params["scale"], [open(i).read() for i in inputs]], file)
"""
STAGES = """
stages:
  prepare:
    cmd: python stages/step.py data/prepared.json
    deps:
      - stages/step.py
    params:
      - prepare
    outs:
      - data/prepared.json
  train:
    matrix:
      run: ${runs}
    cmd: python stages/step.py models/${item.run}.json data/prepared.json
    deps:
      - data/prepared.json
      - stages/step.py
    params:
      - lr
    outs:
      - models/${item.run}.json
  evaluate:
    matrix:
      run: ${runs}
    cmd: python stages/step.py results/runs/${item.run}.json models/${item.run}.json
    deps:
      - models/${item.run}.json
      - stages/step.py
    params:
      - scale
    metrics:
      - results/runs/${item.run}.json:
          cache: false
  table:
    cmd: python stages/step.py results/table.json
    deps:
      - results/runs
      - stages/step.py
    params:
      - runs
    metrics:
      - results/table.json:
          cache: false
"""


def build(folder: Path, runner: str | None) -> None:
    """A checkout of the pipeline under this project's Snakefile; runner: another command for its jobs."""
    (folder / "stages").mkdir(parents=True)
    (folder / "stages/step.py").write_text(STEP)
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "params.yaml").write_text(json.dumps(PARAMS))
    (folder / "environment.yml").touch()
    (folder / ".gitignore").write_text("/data/\n/models/\n/.work/\n/.snakemake/\n/logs/\n")
    snakefile = (ROOT / "Snakefile").read_text()
    ours = "python -m semivid.pipeline.run {params.stage}"
    assert ours in snakefile
    (folder / "Snakefile").write_text(snakefile.replace(ours, runner) if runner else snakefile)
    shutil.copy(ROOT / ".dvcignore", folder)
    shutil.copytree(ROOT / "profiles/default", folder / "profiles/default")
    for command in ("git init --quiet", "dvc init --quiet"):
        subprocess.run(command.split(), cwd=folder, check=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")


def timed(folder: Path, command: str) -> dict[str, float]:
    """Wall and CPU seconds of a command, with all its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": bin_folder + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu}


def measure() -> list[tuple[str, dict[str, float], dict[str, float] | None]]:
    """Rows: what, ours, the plain way (or None)."""
    with tempfile.TemporaryDirectory() as temporary:
        ways = {"ours": None, "plain": "dvc --wait-for-lock repro --quiet --single-item {params.stage}"}
        results: dict[str, dict[str, dict[str, float]]] = {}
        for way, runner in ways.items():
            folder = Path(temporary) / way
            build(folder, runner)
            stages = 2 * RUNS + 2
            alone = timed(folder, "python stages/step.py data/x/alone.json")
            costs = {"snakemake, all stages run": timed(folder, "snakemake --cores 2")}
            costs["no-op: snakemake"] = timed(folder, "snakemake --cores 2")
            costs["no-op: snakemake -n"] = timed(folder, "snakemake -n")
            costs["no-op: dvc status"] = timed(folder, "dvc status")
            costs["no-op: dvc repro"] = timed(folder, "dvc repro --quiet")
            for lr in (2, 1):
                (folder / "params.yaml").write_text(json.dumps(PARAMS | {"lr": lr}))
                costs["snakemake, all restored"] = timed(folder, "snakemake --cores 2")
            every = costs["snakemake, all stages run"]["cpu"] - costs["no-op: snakemake"]["cpu"]
            again = costs["snakemake, all restored"]["cpu"] - costs["no-op: snakemake"]["cpu"]
            costs["per job, beside the stage"] = {"cpu": every / stages - alone["cpu"]}
            costs["per restored job"] = {"cpu": again / (stages - 1)}
            results[way] = costs
    return [(what, cost, results["plain"][what]) for what, cost in results["ours"].items()]


def markdown(rows: list) -> str:
    """The page docs/engines_cost.md."""
    lines = [
        f"# What the engines cost: {2 * RUNS + 2} stages",
        "",
        "`python -m benchmarks.engines`, two cores. Plain: `dvc repro --single-item` per job.",
        "CPU seconds of all processes (wall seconds).",
        "",
        "| | semivid | plain |",
        "|---|---|---|",
    ]

    def cell(cost: dict[str, float]) -> str:
        return f"{cost['cpu']:.2f}" + (f" ({cost['wall']:.1f})" if "wall" in cost else "")

    lines += [f"| {what} | {cell(ours)} | {cell(plain)} |" for what, ours, plain in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.partition(":")[0]).parse_args()
    page = markdown(measure())
    (ROOT / "benchmarks/engines.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
