"""Table 1 of Three Ways: baseline, ClassMix, the whole system, and the system with selected frames."""

from semivid.evaluation.method_pages import write_method_table
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    p = stage.params
    remove_orphans()  # before DVC takes the state of results/methods down
    title = "Table 1: learning from few labelled frames"
    write_method_table("table1", title, p.table1.rows, p.compare.labels, p.compare.seeds, share=True)


if __name__ == "__main__":
    run_stage(main, ["table1.rows", "compare.labels", "compare.seeds"])
