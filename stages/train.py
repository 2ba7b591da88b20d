"""Train one network: a method, on the first n frames of a selection, from one seed."""

import importlib
from pathlib import Path

import torch

from semivid.data.index import read_classes, read_index
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, check_crop
from semivid.errors import UserError
from semivid.evaluation.confusion import scores
from semivid.evaluation.inference import split_confusion
from semivid.models.checkpoints import save_state
from semivid.models.segmentation import build_segmentation_net
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, log, run_stage
from semivid.selection.lists import first_labels
from semivid.training.loop import fingerprint, finish, fit, write_curves
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")
EVALUATION_BATCH = 4


def main(stage: Stage) -> None:
    args, options = stage.args, stage.params.train
    check_crop(options.crop, stage.params.frames.size, "train.crop")
    runtime = Runtime(options.threads, options.precision)
    classes, index, store = read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv"), FrameStore()
    selection = Path(f"splits/selected/{args.selection}-{args.seed}.txt")
    candidates = {f.frame for f in index.select("train")}  # never a validation frame, whatever the list says
    labelled = [index.by_name[n] for n in first_labels(selection, args.labels, candidates)]
    without = [f.frame for f in labelled if f.label is None]
    if without:
        raise UserError(
            f"{selection}: {len(without)} of the first {args.labels} frames have no mask ({', '.join(without[:5])}"
            f"{', ...' * (len(without) > 5)}); annotate them, or correct `data.masks` in params.yaml"
        )
    log.info("%s on %d labelled frames", args.method, len(labelled))

    torch.manual_seed(torch_seed(args.seed, "network"))
    student = build_segmentation_net(len(classes.names), **stage.params.network.arguments())
    build = importlib.import_module(f"semivid.methods.{args.method}").build
    method = build(student, getattr(stage.params.methods, args.method), options, runtime)
    samples = LabelledSamples(store, options.crop, options.flip, options.scale)
    stream = Stream("labelled", sorted(labelled, key=lambda f: f.frame), options.batch_size, args.seed, samples)
    held_out = index.select("val", labelled=True)

    def evaluate(method) -> dict[str, float]:
        confusion = split_confusion(method.predict, held_out, store, len(classes.names), EVALUATION_BATCH, runtime)
        return {"val_miou": scores(confusion, classes.names)["miou"]}

    history = fit(
        method,
        [stream],
        iterations=options.iterations,
        seed=args.seed,
        runtime=runtime,
        work=stage.work,
        key=fingerprint(stage.settings, [PREPARED, selection]),
        title=stage.name,
        workers=runtime.loaders(stage.workers),
        evaluate=evaluate if held_out else None,
        evaluate_every=options.evaluate_every,
    )
    with replacing(f"models/{stage.run}.safetensors") as weights, replacing(f"runs/{stage.run}") as curves:
        save_state(student, weights)
        write_curves(curves, history)
    finish(stage.work)


if __name__ == "__main__":
    run_stage(
        main,
        ["frames.size", "network", "train", "methods.{method}"],
        {"method": str, "selection": str, "labels": int, "seed": int},
    )
