"""Entropy (active learning): frames that a segmentation student is least sure of. Reads the labels it has bought."""

import shutil
from pathlib import Path

from semivid.data.index import read_classes, read_index
from semivid.data.store import FrameStore
from semivid.pipeline.fingerprint import fingerprint
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import write_selection
from semivid.selection.random import random_order
from semivid.selection.student import EntropyStudent, grow
from semivid.selection.uncertainty import highest

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    criterion, seed = stage.args.criterion, stage.args.seed
    options = getattr(stage.params.select, criterion)
    list_seed = getattr(stage.params.table3.list_seeds, str(seed))
    frames = read_index(PREPARED / "index.csv").select("train", labelled=True)

    def choose(scores, chosen, add):
        return highest(scores, [i for i in range(len(frames)) if i not in set(chosen)], add)

    chosen = grow(
        EntropyStudent,
        options,
        frames,
        random_order(len(frames), list_seed)[: options.steps[0]],
        choose,
        store=FrameStore(),
        num_classes=len(read_classes(PREPARED / "classes.json").names),
        seed=list_seed,
        work=stage.work,
        key=fingerprint(stage.settings, [PREPARED / n for n in ("images", "labels", "index.csv", "classes.json")]),
    )
    write_selection(Path(f"splits/selected/{criterion}-{seed}.txt"), [frames[i].frame for i in chosen])
    shutil.rmtree(stage.work, ignore_errors=True)  # absent if a single step needed no student


if __name__ == "__main__":
    run_stage(main, ["select.{criterion}", "table3.list_seeds.{seed}"], {"criterion": str, "seed": int})
