"""The scores of one run of the tables over methods, with what its training cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from semivid.data.index import read_classes, read_index
from semivid.evaluation.curves import best_of_curve
from semivid.evaluation.trained import Predict, protocol
from semivid.evaluation.video_scores import score_video
from semivid.flow.store import FlowStore
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.params import Block
from semivid.pipeline.stage import Stage
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")


def evaluate_run(
    stage: Stage, method: str, selection: str, network: Block, load: Callable[[int, Runtime], Predict]
) -> None:
    """Write ``results/methods/RUN.json``: scores as fractions, agreement along the flow, hours of the training.

    network: its block of params.yaml. load: the trained one, from the number of classes. Hours are those of the
    processor if the training ran on it, else those that it held GPUs.
    Raises UserError if no frame of `evaluate.split` has a mask.
    """
    args, p = stage.args, stage.params
    runtime = Runtime(p.evaluate.threads, p.train.precision)
    classes, index = read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv")
    predict = load(len(classes.names), runtime)
    found = score_video(
        predict, index.select(p.evaluate.split), FlowStore(Path("data/flow")), classes, p.evaluate, runtime
    )
    cost = json.loads(Path(f"costs/{stage.run}.json").read_text(encoding="utf-8"))
    result = {
        "method": method,
        "selection": selection,
        "labels": args.labels,
        "seed": args.seed,
        "iterations": p.train.iterations,
        **found.scores,
        **best_of_curve(Path(f"runs/{stage.run}")),
        "temporal_agreement": found.agreement,
        "temporal_pairs": found.pairs,
        "device": cost["device"],
        "hours": (cost["cpu_seconds"] if cost["device"] == "cpu" else cost["seconds"] * cost["processes"]) / 3600,
        "protocol": protocol(p, found.frames, network) | {"n_train_frames": len(index.select("train", labelled=True))},
    }
    write_json(f"results/methods/{stage.run}.json", result)
