"""Train one network, started from self-supervised depth, on labelled frames alone."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.methods.supervised import build
from semivid.models.transfer import transfer_depth
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.run import labelled_frames, read_prepared, train


def main(stage: Stage) -> None:
    args, p, depth = stage.args, stage.params, Path(stage.params.depth_model)
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    options, parts = getattr(p.methods, args.method), p.transfer.model_dump()
    data = read_prepared(FrameStore())
    train(
        stage,
        data,
        labelled_frames(data, selection, args.labels),
        lambda student, runtime: build(student, options, p.train, runtime),
        inputs=[selection, depth],
        start=lambda student: transfer_depth(student, depth, **parts),
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["depth_model", "frames.size", "network", "train", "methods.{method}", "transfer"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
