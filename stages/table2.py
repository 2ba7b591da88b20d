"""Table 2 of Three Ways, the ablation: transfer, mean teacher, mixing, ground truth in the mix, multi-task learning."""

from semivid.evaluation.method_pages import write_method_table
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    p = stage.params
    remove_orphans()  # before DVC takes the state of results/methods down
    title = "Table 2: what each part of the system adds"
    write_method_table("table2", title, p.table2.rows, p.compare.labels, p.compare.seeds)


if __name__ == "__main__":
    run_stage(main, ["table2.rows", "compare.labels", "compare.seeds"])
