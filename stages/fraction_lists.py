"""Which share of the labelled frames is used: one list per percentage, each among the next larger one."""

import math
from pathlib import Path

from semivid.data.index import read_index
from semivid.errors import UserError
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import write_selection
from semivid.selection.random import random_order


def main(stage: Stage) -> None:
    names = [f.frame for f in read_index(Path("data/prepared/index.csv")).select("train", labelled=True)]
    if not names:
        raise UserError("data/prepared/index.csv: no training frame has a mask; check `data.masks` in params.yaml")
    order = [names[i] for i in random_order(len(names), stage.args.seed)]
    with replacing(f"splits/fractions/{stage.args.seed}") as out:
        out.mkdir()
        for percent in stage.params.flow_table.percents:
            write_selection(out / f"{percent}.txt", order[: math.ceil(percent * len(order) / 100)])


if __name__ == "__main__":
    run_stage(main, ["flow_table.percents"], {"seed": int})
