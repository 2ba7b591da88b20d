"""The table over all methods: mIoU, paired differences to supervised, temporal agreement and hours of training."""

from semivid.evaluation.method_pages import write_method_table
from semivid.pipeline.bridge import remove_orphans
from semivid.pipeline.stage import Stage, run_stage


def main(stage: Stage) -> None:
    p = stage.params
    remove_orphans()  # before DVC takes the state of results/methods down
    title = "All methods: what does each add to plain supervised training?"
    write_method_table("methods", title, p.methods_table.rows, p.compare.labels, p.compare.seeds)


if __name__ == "__main__":
    run_stage(main, ["methods_table.rows", "compare.labels", "compare.seeds"])
