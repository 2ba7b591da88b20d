"""Measure semivid against the plain way of doing the same: python -m benchmarks"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import pseudo_label, training
from benchmarks.cases import CASES
from benchmarks.harness import Fresh, Row, markdown


def measure(quick: bool, threads: int) -> tuple[dict[str, str], list[Row]]:
    """All groups, in the order of the table."""
    cases = CASES[:1] if quick else CASES
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary, Fresh(threads) as process:
        run_facts = process.call("harness.facts")
        gpu = run_facts["device"] != "CPU"

        def group(function: str, *args) -> None:
            """Run it in the common process and keep its rows."""
            result = process.call(function, *args)
            rows.extend(result if isinstance(result, list) else [result])

        folders = {case: Path(temporary) / case for case in cases}
        for case, folder in folders.items():
            process.call("loading.generate", case, folder)
            group("loading.run", case, folder, threads, quick)
        for case in cases:
            rows += training.run(case, threads, quick)
        rows += pseudo_label.run(pseudo_label.QUICK_CASE if quick else pseudo_label.CASE, threads, quick, process)
        for case in cases:
            group("depth.run", case, threads)
        group("selection.run", threads, quick)
        for case in cases:
            # The large network takes half a minute per round without a GPU.
            if gpu or case != "cityscapes":
                group("evaluation.run", case, folders[case], threads, quick)
        for case in cases:
            group("evaluation.count", case, threads)
        group("flow_consistency.run", threads, *(((2, 19, 64, 128), 2) if quick else ()))
    return run_facts, rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="the default preset alone in float32, few repeats")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder of results.md and results.json"
    )
    args = parser.parse_args()
    run_facts, rows = measure(args.quick, args.threads)
    command = "python -m benchmarks" + " --quick" * args.quick + f" --threads {args.threads}" * (args.threads != 1)
    page = markdown(rows, run_facts, command)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.md").write_text(page)
    content = {"command": command, "facts": run_facts, "rows": [asdict(row) for row in rows]}
    (args.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()
