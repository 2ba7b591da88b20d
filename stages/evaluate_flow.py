"""Evaluate one network of the flow consistency table: scores on labelled frames, agreement along the flow on video."""

from pathlib import Path

import numpy as np

from semivid.data.index import read_classes, read_index
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.curves import best_of_curve
from semivid.evaluation.inference import segment
from semivid.evaluation.temporal import TemporalAgreement
from semivid.evaluation.trained import protocol, trained_network
from semivid.flow.store import FlowStore
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import read_selection
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    args, p = stage.args, stage.params
    runtime = Runtime(p.evaluate.threads, p.train.precision)
    classes, index = read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv")
    frames, store = index.select(p.evaluate.split), FlowStore(Path("data/flow"))
    scored = sum(f.label is not None for f in frames)
    if not scored:
        raise UserError(f"no frame of split {p.evaluate.split!r} has a mask; check `data.masks` and `evaluate.split`")
    predict = trained_network(stage.run, len(classes.names), p.network, runtime, p.evaluate.flip)

    confusion = np.zeros((len(classes.names),) * 2, np.int64)
    agreement = TemporalAgreement(store)
    agreement.start(frames)
    for frame, predicted in segment(predict, frames, store, p.evaluate.batch_size, runtime):
        agreement.add(frame, predicted)
        if frame.label is not None:
            confusion += confusion_matrix(predicted, store.label(frame), len(classes.names))
    result = {
        "method": args.method,
        "percent": args.percent,
        "seed": args.seed,
        "labels": len(read_selection(Path(f"splits/fractions/{args.seed}/{args.percent}.txt"))),
        "iterations": p.train.iterations,
        **scores(confusion, classes.names),
        **best_of_curve(Path(f"runs/{stage.run}")),
        "temporal_agreement": agreement.share,
        "temporal_pairs": agreement.pairs,
        "protocol": protocol(p, scored),
    }
    write_json(f"results/flow_consistency/{stage.run}.json", result)


if __name__ == "__main__":
    run_stage(
        main,
        ["data.name", "frames.size", "network", "train", "evaluate"],
        {"method": str, "percent": int, "seed": int},
    )
