"""Train one network: a method, on the first n frames of a selection, from one seed."""

import importlib
from pathlib import Path

from semivid.data.store import FrameStore
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.run import labelled_frames, read_prepared, train


def main(stage: Stage) -> None:
    args, p = stage.args, stage.params
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    method = importlib.import_module(f"semivid.methods.{args.method}")
    options = getattr(p.methods, args.method)
    data = read_prepared(FrameStore())
    train(
        stage,
        data,
        labelled_frames(data, selection, args.labels),
        lambda student, runtime: method.build(student, options, p.train, runtime),
        inputs=[selection],
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.{method}"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
