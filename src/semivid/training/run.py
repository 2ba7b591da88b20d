"""One training from prepared frames to weights and curves: what the training stages of all methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from semivid.data.index import Classes, Frame, Index, read_classes, read_index
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Sample, Stream, check_crop
from semivid.errors import UserError
from semivid.evaluation.confusion import scores
from semivid.evaluation.inference import split_confusion
from semivid.methods.base import Method
from semivid.models.build import build_network
from semivid.models.checkpoints import save_state
from semivid.pipeline.artifacts import replacing, write_json
from semivid.pipeline.fingerprint import fingerprint
from semivid.pipeline.stage import Stage, log
from semivid.selection.lists import first_labels, read_selection
from semivid.training.cost import Cost
from semivid.training.distributed import leads, over_processes
from semivid.training.loop import finish, fit, write_curves
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")
EVALUATION_BATCH = 4


@dataclass(frozen=True)
class Prepared:
    """The prepared frames: names and colours of the classes, the index, and a store that decodes."""

    classes: Classes
    index: Index
    store: FrameStore


def read_prepared(store: FrameStore) -> Prepared:
    """Read index and classes. UserError if the stages frames and masks have not run."""
    return Prepared(read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv"), store)


def labelled_frames(data: Prepared, selection: Path, labels: int | None) -> list[Frame]:
    """The first `labels` training frames (None: all) of the list at `selection`, sorted by name.

    Raises UserError if the list is missing or too short, or names a frame that has no mask or is not for training.
    """
    candidates = {f.frame for f in data.index.select("train")}  # never a validation frame, whatever the list says
    names = first_labels(selection, labels, candidates) if labels else read_selection(selection, candidates)
    frames = [data.index.by_name[n] for n in names]
    without = [f.frame for f in frames if f.label is None]
    if without:
        raise UserError(
            f"{selection}: {len(without)} of the first {len(frames)} frames have no mask ({', '.join(without[:5])}"
            f"{', ...' * (len(without) > 5)}); annotate them, or correct `data.masks` in params.yaml"
        )
    return sorted(frames, key=lambda f: f.frame)


@over_processes
def train(
    stage: Stage,
    data: Prepared,
    labelled: Sequence[Frame],
    build: Callable[[nn.Module, Runtime], Method],
    streams: Sequence[Stream] = (),
    inputs: Sequence[Path] = (),
    start: Callable[[nn.Module], object] | None = None,
    network: Callable[[int], nn.Module] | None = None,
    labelled_samples: Callable[[Frame, np.random.Generator], Sample] | None = None,
) -> None:
    """Train the network of params.yaml and write ``models/RUN.safetensors``, ``runs/RUN`` and ``costs/RUN.json``.

    labelled: frames of the stream ``labelled``. build: the method around a fresh network. streams: what else the
    method reads. inputs: files and folders besides the prepared frames that the result depends on. start: fills the
    fresh network with other weights, whose file is one of the inputs then. network: the student of so many classes,
    where it is not that of the block `network`. labelled_samples: of the stream ``labelled``, where it needs more than
    image and label.
    Raises UserError for a crop larger than the frames and for a diverged training.
    """
    seed, options = stage.args.seed, stage.params.train
    check_crop(options.crop, stage.params.frames.size, "train.crop")
    runtime = Runtime(max(1, options.threads // options.processes), options.precision)
    log.info("%s on %d labelled frames", stage.args.method, len(labelled))

    torch.manual_seed(torch_seed(seed, "network"))
    count = len(data.classes.names)
    student = network(count) if network else build_network(count, stage.params.network)
    if start:
        start(student)
    method = build(student, runtime)
    samples = labelled_samples or LabelledSamples(data.store, options.crop, options.flip, options.scale)
    held_out = data.index.select("val", labelled=True)

    def evaluate(method: Method) -> dict[str, float]:
        classes = data.classes.names
        confusion = split_confusion(method.predict, held_out, data.store, len(classes), EVALUATION_BATCH, runtime)
        return {"val_miou": scores(confusion, classes)["miou"]}

    cost = Cost()
    history = fit(
        method,
        [Stream("labelled", labelled, options.batch_size, seed, samples), *streams],
        iterations=options.iterations,
        seed=seed,
        runtime=runtime,
        work=stage.work,
        key=fingerprint(stage.settings, [PREPARED, *inputs]),
        title=stage.name,
        workers=runtime.loaders(max(1, stage.workers // options.processes)),
        evaluate=evaluate if held_out else None,
        evaluate_every=options.evaluate_every,
        cost=cost,
    )
    spent = cost.report(runtime.device)
    if not leads():
        return
    with replacing(f"models/{stage.run}.safetensors") as weights, replacing(f"runs/{stage.run}") as curves:
        save_state(student, weights)
        write_curves(curves, history)
    write_json(f"costs/{stage.run}.json", spent)
    finish(stage.work)
