"""Evaluation: whole frames through the network into a confusion matrix, and the counting alone."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks import plain
from benchmarks.cases import network_arguments, settings
from benchmarks.harness import PLAIN, Row, alternate, lower_is_better, rate, require
from semivid.data.classes import VOID
from semivid.data.index import read_classes, read_index
from semivid.data.store import FrameStore
from semivid.evaluation.confusion import confusion_matrix
from semivid.evaluation.inference import split_confusion
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.training.runtime import Runtime

GROUP = "Evaluation"
LIMIT = 1e-3  # share of pixels that rounding may move to another class


def count(case: str, threads: int) -> Row:
    """Confusion matrix of one frame."""
    classes, (width, height) = 19, settings(case).frames.size
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes + 1, (height, width)).astype(np.uint8)
    label[label == classes] = VOID
    prediction = rng.integers(0, classes, (height, width)).astype(np.uint8)
    same = np.array_equal(
        plain.confusion_matrix(prediction, label, classes), confusion_matrix(prediction, label, classes)
    )
    agreement = require(float(not same), 0.0, "confusion matrices")
    repeats = 10
    seconds = alternate(
        {
            PLAIN: lambda: [plain.confusion_matrix(prediction, label, classes) for _ in range(repeats)],
            "semivid": lambda: [confusion_matrix(prediction, label, classes) for _ in range(repeats)],
        },
        rounds=3,
        threads=threads,
    )
    milliseconds = [[s / repeats * 1000 for s in taken] for taken in seconds.values()]
    return lower_is_better(GROUP, f"confusion matrix, {case}, {width}x{height}", "ms", *milliseconds, agreement)


def run(case: str, folder: Path, threads: int, quick: bool) -> Row:
    """Frames per second of a split's evaluation, decoding included."""
    params = settings(case)
    names = read_classes(folder / "prepared/classes.json").names
    frames = read_index(folder / "prepared/index.csv").select("train", labelled=True)
    files = [(f.image, f.label) for f in frames]
    runtime = Runtime(threads)
    torch.manual_seed(0)
    network = build_segmentation_net(len(names), **network_arguments(params))
    with mock.patch("semivid.models.encoders.keep_depthwise_float32_on_cpu"):
        plain_network = build_segmentation_net(len(names), **network_arguments(params))
    plain_network.load_state_dict(network.state_dict())
    runtime.place(network).eval()
    plain_network.to(runtime.device).eval()
    results: dict[str, np.ndarray] = {}

    def plainly() -> None:
        results[PLAIN] = plain.evaluate(plain_network, files, len(names), runtime.device)

    def semividly() -> None:
        results["semivid"] = split_confusion(
            network, frames, FrameStore(), len(names), params.evaluate.batch_size, runtime
        )

    seconds = alternate({PLAIN: plainly, "semivid": semividly}, rounds=2 if quick else 5, threads=threads)
    moved = np.abs(results[PLAIN] - results["semivid"]).sum() / 2 / results[PLAIN].sum()
    agreement = require(float(moved), LIMIT, "evaluations", "of the pixels")
    (width, height), encoder = params.frames.size, params.network.encoder
    name = f"{case} ({encoder}), whole frames {width}x{height}"
    return rate(GROUP, name, seconds[PLAIN], len(frames), seconds["semivid"], len(frames), agreement)
