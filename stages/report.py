"""The report: table, chart, IoU per class, and pictures of predictions, disparities and selected frames."""

from itertools import product
from pathlib import Path

from semivid.data.index import read_classes, read_index
from semivid.evaluation.report import build_report
from semivid.evaluation.tables import read_runs, table_cells
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import first_labels

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    t = stage.params.table3
    remove_orphans()  # before DVC takes the state of results/runs down
    runs = read_runs(
        Path(f"results/runs/{t.method}-{row}-{n}-{seed}.json") for row, n, seed in product(t.rows, t.labels, t.seeds)
    )
    seed, most = t.seeds[0], max(t.labels)
    build_report(
        Path("results/report"),
        table_cells(runs, t.method, t.rows, t.labels, t.seeds),
        runs,
        index=read_index(PREPARED / "index.csv"),
        classes=read_classes(PREPARED / "classes.json"),
        predictions={(row, most, seed): Path(f"data/predictions/{t.method}-{row}-{most}-{seed}") for row in t.rows},
        disparities=Path("data/disparity"),
        selections={row: first_labels(Path(f"splits/selected/{row}-{seed}.txt"), most) for row in t.rows},
        seed=seed,
    )


if __name__ == "__main__":
    run_stage(main, ["table3.method", "table3.rows", "table3.labels", "table3.seeds"])
