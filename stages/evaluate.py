"""Evaluate one trained network on whole validation frames: scores (JSON) and predicted labels (PNG)."""

from pathlib import Path

import cv2
import numpy as np

from semivid.data.index import read_classes, read_index
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.curves import best_of_curve
from semivid.evaluation.inference import segment
from semivid.evaluation.trained import protocol, trained_network
from semivid.pipeline.artifacts import replacing, write_json
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import first_labels
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    args, p = stage.args, stage.params
    runtime = Runtime(p.evaluate.threads, p.train.precision)
    classes, index, store = read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv"), FrameStore()
    frames = index.select(p.evaluate.split, labelled=True)
    if not frames:
        raise UserError(f"no frame of split {p.evaluate.split!r} has a mask; check `data.masks` and `evaluate.split`")
    predict = trained_network(stage.run, len(classes.names), p.network, runtime, p.evaluate.flip)

    confusion = np.zeros((len(classes.names),) * 2, np.int64)
    with replacing(f"data/predictions/{stage.run}") as out:
        out.mkdir()
        for frame, predicted in segment(predict, frames, store, p.evaluate.batch_size, runtime):
            confusion += confusion_matrix(predicted, store.label(frame), len(classes.names))
            (out / f"{frame.frame}.png").write_bytes(cv2.imencode(".png", predicted)[1])
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    result = {
        "method": args.method,
        "selection": args.selection,
        "labels": args.labels,
        "seed": args.seed,
        "list_labels": len(first_labels(selection, args.labels)),
        "iterations": p.train.iterations,
        **scores(confusion, classes.names),
        **best_of_curve(Path(f"runs/{stage.run}")),
        "protocol": protocol(p, len(frames)),
    }
    write_json(f"results/runs/{stage.run}.json", result)


if __name__ == "__main__":
    run_stage(
        main,
        ["data.name", "frames.size", "network", "train", "evaluate"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
