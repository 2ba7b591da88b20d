"""Table 3: mean and deviation of mIoU over the seeds, by selection and number of labels; and one line per run."""

from itertools import product
from pathlib import Path

from semivid.evaluation.tables import read_runs, table_cells, write_tables
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    t = stage.params.table3
    remove_orphans()  # before DVC takes the state of results/runs down
    cells = product(t.rows, t.labels, t.seeds)
    runs = read_runs(Path(f"results/runs/{t.method}-{row}-{labels}-{seed}.json") for row, labels, seed in cells)
    write_tables(Path("results"), table_cells(runs, t.method, t.rows, t.labels, t.seeds), runs)


if __name__ == "__main__":
    run_stage(main, ["table3.method", "table3.rows", "table3.labels", "table3.seeds"])
