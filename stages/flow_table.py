"""The flow consistency table: mIoU and temporal agreement, mean and deviation over the seeds."""

from itertools import product
from pathlib import Path

from semivid.evaluation.flow_table import flow_cells, flow_csv, flow_markdown, read_flow_runs
from semivid.pipeline.artifacts import write_text
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    t = stage.params.flow_table
    remove_orphans()  # before DVC takes the state of results/flow_consistency down
    names = product(t.rows, t.percents, t.seeds)
    runs = read_flow_runs(Path(f"results/flow_consistency/{m}-{percent}-{seed}.json") for m, percent, seed in names)
    cells = flow_cells(runs, t.rows)
    write_text("results/flow_consistency.csv", flow_csv(cells, runs))
    write_text("results/flow_consistency.md", flow_markdown(cells, runs))


if __name__ == "__main__":
    run_stage(main, ["flow_table.rows", "flow_table.percents", "flow_table.seeds"])
