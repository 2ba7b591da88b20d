"""Train one network on a share of the labelled frames, with the flow consistency loss on unlabelled ones."""

from pathlib import Path

from semivid.data.streams import Stream
from semivid.flow.samples import FlowSamples
from semivid.flow.store import FlowStore
from semivid.flow.unlabelled import unlabelled_frames
from semivid.methods.flow_consistency import build
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.run import labelled_frames, read_prepared, train


def main(stage: Stage) -> None:
    args, options, methods = stage.args, stage.params.train, stage.params.methods
    steps, loss = methods.flow_baseline, methods.flow_consistency
    split = Path(f"splits/fractions/{args.seed}/{args.percent}.txt")
    data = read_prepared(FlowStore(Path("data/flow")))
    samples = FlowSamples(
        data.store, options.crop, options.flip, options.scale, loss.discard_bottom, loss.consistent_only
    )
    frames = unlabelled_frames(data.index, steps.unlabelled)
    train(
        stage,
        data,
        labelled_frames(data, split, None),
        lambda student, runtime: build(student, steps, loss, options, runtime),
        [Stream("unlabelled", frames, steps.unlabelled_batch_size, args.seed, samples)],
        [split, Path("data/flow")],
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.flow_baseline", "methods.flow_consistency"],
        {"method": str, "percent": int, "seed": int},
    )
