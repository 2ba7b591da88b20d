"""Selections that read frame names alone: a random order, or a published list."""

from pathlib import Path

from semivid.data.index import read_index
from semivid.errors import UserError
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import write_selection
from semivid.selection.published import published_order
from semivid.selection.random import random_order


def main(stage: Stage) -> None:
    criterion, seed = stage.args.criterion, stage.args.seed
    names = [f.frame for f in read_index(Path("data/prepared/index.csv")).select("train", labelled=True)]
    if not names:
        raise UserError("data/prepared/index.csv: no training frame has a mask; check `data.masks` in params.yaml")
    if criterion == "random":
        chosen = [names[i] for i in random_order(len(names), seed)]
    else:
        list_seed = getattr(stage.params.table3.list_seeds, str(seed))
        chosen = published_order(
            Path("splits/published"),
            stage.params.data.name,
            criterion.removeprefix("published_"),
            seed,
            names,
            {seed: list_seed},
        )
    write_selection(Path(f"splits/selected/{criterion}-{seed}.txt"), chosen)


if __name__ == "__main__":
    run_stage(main, ["data.name", "select.{criterion}", "table3.list_seeds.{seed}"], {"criterion": str, "seed": int})
