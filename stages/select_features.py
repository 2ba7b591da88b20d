"""DS: frames whose depth features lie farthest apart. Reads the teacher's features, no label."""

from pathlib import Path

from semivid.errors import UserError
from semivid.pipeline.stage import Stage, log, run_stage
from semivid.selection.diversity import distance_matrix, farthest_point, normalise_features
from semivid.selection.features import read_features
from semivid.selection.lists import write_selection
from semivid.selection.random import random_order


def main(stage: Stage) -> None:
    criterion, seed = stage.args.criterion, stage.args.seed
    names, features = read_features(Path("data/features.safetensors"))
    wanted = getattr(stage.params.select, criterion).labels
    if wanted > len(names):
        raise UserError(f"params.yaml: `select.ds.labels` is {wanted}, but there are {len(names)} candidates")
    distance = distance_matrix(normalise_features(features))
    start = random_order(len(names), getattr(stage.params.table3.list_seeds, str(seed)))[0]
    added, distances = farthest_point(distance, [start], wanted - 1)
    if distances:
        log.info("distances from %.4g down to %.4g", distances[0], distances[-1])
    write_selection(Path(f"splits/selected/{criterion}-{seed}.txt"), [names[i] for i in [start, *added]])


if __name__ == "__main__":
    run_stage(main, ["select.{criterion}", "table3.list_seeds.{seed}"], {"criterion": str, "seed": int})
