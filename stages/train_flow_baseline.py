"""Train one network on a share of the labelled frames, with the steps of flow consistency but without its loss."""

from pathlib import Path

from semivid.data.store import FrameStore
from semivid.data.streams import Stream, UnlabelledSamples
from semivid.flow.unlabelled import unlabelled_frames
from semivid.methods.flow_consistency import build
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.run import labelled_frames, read_prepared, train


def main(stage: Stage) -> None:
    args, options, steps = stage.args, stage.params.train, stage.params.methods.flow_baseline
    split = Path(f"splits/fractions/{args.seed}/{args.percent}.txt")
    data = read_prepared(FrameStore())
    streams = []
    if steps.unlabelled_batch_size:
        frames = unlabelled_frames(data.index, steps.unlabelled)
        samples = UnlabelledSamples(data.store, options.crop, options.flip, options.scale)
        streams = [Stream("unlabelled", frames, steps.unlabelled_batch_size, args.seed, samples)]
    train(
        stage,
        data,
        labelled_frames(data, split, None),
        lambda student, runtime: build(student, steps, None, options, runtime),
        streams,
        [split],
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.flow_baseline"],
        {"method": str, "percent": int, "seed": int},
    )
