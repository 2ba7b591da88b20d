"""Train one multi-task network, from self-supervised depth: a method, on the first n frames of a selection."""

from pathlib import Path

from semivid.data.index import read_cameras
from semivid.data.mix_samples import frames_to_mix
from semivid.data.neighbour_samples import NeighbourSamples, check_video, frames_with_neighbours
from semivid.data.store import FrameStore
from semivid.data.streams import Stream
from semivid.methods.multitask import build
from semivid.models.multitask import build_multitask_net
from semivid.models.transfer import transfer_depth
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.run import PREPARED, labelled_frames, read_prepared, train


def main(stage: Stage) -> None:
    args, options, network = stage.args, stage.params.train, stage.params.multitask_network
    method = getattr(stage.params.methods, args.method)
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    depth = Path(stage.params.depth_model)
    data, cameras = read_prepared(FrameStore()), read_cameras(PREPARED / "cameras.json")
    labelled = labelled_frames(data, selection, args.labels)
    unlabelled = frames_with_neighbours(data.index, frames_to_mix(data.index, labelled, method.frames))
    for frames in (labelled, unlabelled):
        check_video(data.index, frames, cameras, method.auto_mask)

    known = [f.frame for f in labelled]
    window = options.crop, options.flip, options.scale, method.intrinsics
    samples, truth = (
        NeighbourSamples(data.index, data.store, cameras, *window, labelled=names)
        for names in (known if method.ground_truth else None, known)
    )
    train(
        stage,
        data,
        labelled,
        lambda student, runtime: build(student, method, options, runtime, args.seed),
        [Stream("unlabelled", unlabelled, options.batch_size, args.seed, samples)],
        [selection, depth],
        lambda student: transfer_depth(student, depth),
        network=lambda classes: build_multitask_net(classes, **network.arguments()),
        labelled_samples=truth,
    )


if __name__ == "__main__":
    run_stage(
        main,
        ["depth_model", "frames.size", "multitask_network", "train", "methods.{method}"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
