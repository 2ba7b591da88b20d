"""Keep the present results beside the params that made them: `python -m semivid.pipeline.keep NAME`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

TABLES = ("table3", "flow_consistency", "methods", "table1", "table2")
RESULTS = (*(f"{name}.{kind}" for name in TABLES for kind in ("csv", "md")), "runs.csv", "depth.json", "report")
LISTS = ("selected", "fractions")


def keep(name: str) -> Path:
    """Copy results/{table3.csv, ...}, params.yaml and the lists of labelled frames to results/<name>; returns it."""
    target = Path("results") / name
    target.mkdir(parents=True, exist_ok=True)
    for item in RESULTS:
        source = Path("results") / item
        if source.is_dir():
            shutil.copytree(source, target / item, dirs_exist_ok=True)
        elif source.exists():
            shutil.copyfile(source, target / item)
    shutil.copyfile("params.yaml", target / "params.yaml")
    for item in LISTS:
        if (Path("splits") / item).is_dir():
            ignore = shutil.ignore_patterns(".snakemake_timestamp")
            shutil.copytree(Path("splits") / item, target / item, dirs_exist_ok=True, ignore=ignore)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2 or "/" in sys.argv[1]:
        raise SystemExit("usage: make keep NAME=camvid")
    print(f"kept in {keep(sys.argv[1])}")
