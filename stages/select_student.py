"""US and DS+US: frames whose depth a student fails to learn from the teacher. Reads no label."""

import shutil
from pathlib import Path

from semivid.data.index import read_index
from semivid.data.store import FrameStore
from semivid.pipeline.fingerprint import fingerprint
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.diversity import add_uncertainty, distance_matrix, farthest_point, normalise_features
from semivid.selection.features import read_features
from semivid.selection.lists import write_selection
from semivid.selection.random import random_order
from semivid.selection.student import DepthStudent, grow
from semivid.selection.uncertainty import highest


def main(stage: Stage) -> None:
    criterion, seed = stage.args.criterion, stage.args.seed
    options = getattr(stage.params.select, criterion)
    list_seed = getattr(stage.params.table3.list_seeds, str(seed))
    names, features = read_features(Path("data/features.safetensors"))
    by_name = read_index(Path("data/prepared/frames.csv")).by_name
    order = random_order(len(names), list_seed)
    if criterion == "us":
        initial = order[: options.steps[0]]

        def choose(scores, chosen, add):
            return highest(scores, [i for i in range(len(names)) if i not in set(chosen)], add)

    else:
        distance = distance_matrix(normalise_features(features))
        initial = [order[0], *farthest_point(distance, order[:1], options.steps[0] - 1)[0]]

        def choose(scores, chosen, add):
            return farthest_point(add_uncertainty(distance, scores, chosen, options.bias), chosen, add)[0]

    inputs = ["data/prepared/images", "data/prepared/frames.csv", "data/disparity", "data/features.safetensors"]
    chosen = grow(
        DepthStudent,
        options,
        [by_name[n] for n in names],
        initial,
        choose,
        store=FrameStore(disparity=Path("data/disparity")),
        num_classes=0,
        seed=list_seed,
        work=stage.work,
        key=fingerprint(stage.settings, inputs),
    )
    write_selection(Path(f"splits/selected/{criterion}-{seed}.txt"), [names[i] for i in chosen])
    shutil.rmtree(stage.work, ignore_errors=True)  # absent if a single step needed no student


if __name__ == "__main__":
    run_stage(main, ["select.{criterion}", "table3.list_seeds.{seed}"], {"criterion": str, "seed": int})
