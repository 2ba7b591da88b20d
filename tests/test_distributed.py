"""Training over two processes: what it computes, against one process with the same batches; how it ends."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from semivid.data.index import read_index
from semivid.data.mix_samples import MixSamples, frames_to_mix
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream
from semivid.data.strong import strong_augment
from semivid.errors import UserError
from semivid.methods.pseudo_label import PseudoLabelMethod
from semivid.methods.supervised import Supervised
from semivid.models.depth_decoder import DepthDecoder
from semivid.models.encoder_decoder import SegmentationDecoder, SegmentationNet
from semivid.pipeline.params import Optimisation, PseudoLabel, Train
from semivid.training import distributed, loop
from semivid.training.distributed import leads, processes, rank, together
from semivid.training.loop import fit
from semivid.training.runtime import Runtime
from small import small_params, write_prepared

STEPS, SEED, CROP = 6, 5, (64, 32)
SUPERVISED = {
    "optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "weight_decay": 5e-4, "schedule": "poly", "milestones": [],
    "clip": 0.5,
}  # fmt: skip
MIXED = SUPERVISED | {
    "mask": "class", "margin": None, "foreground": None, "frames": "all", "ground_truth": True,
    "consistency_weight": 1.0, "confidence": 0.35, "ema_decay": 0.99, "jitter": 0.8, "jitter_strength": 0.25,
    "blur": 0.5,
}  # fmt: skip
DEPTHMIX = MIXED | {"mask": "depthmix", "margin": 0.03, "foreground": [0.0, 0.6]}
# options, size of the batch, further changes of `train`
RUNS = {
    "supervised": (SUPERVISED, 4, {}),
    "DepthMix": (DEPTHMIX, 2, {}),  # one frame for each process
    "ClassMix": (MIXED, 4, {}),
    "supervised, Adam": (SUPERVISED | {"optimizer": "adam", "lr": 1e-3}, 4, {}),
}


class Encoder(nn.Module):
    """Five maps of growing stride, batch-normalised by torch's layer or by timm's, which also activates."""

    channels, strides = (4, 6, 6, 8, 8), (2, 4, 8, 16, 16)

    def __init__(self):
        super().__init__()
        from timm.layers import BatchNormAct2d

        sides = zip((3, *self.channels), self.channels, (2, 2, 2, 2, 1), strict=False)
        norms = [lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()), BatchNormAct2d]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), norms[i % 2](b))
            for i, (a, b, stride) in enumerate(sides)
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Double(SegmentationNet):
    """In float64, where two orders of summation do not differ: what then differs is no rounding."""

    def forward(self, frames):
        return super().forward(frames.double())


def network(kind):
    torch.manual_seed(0)
    encoder = Encoder()
    unet = DepthDecoder(encoder.channels, encoder.strides, (4, 4, 6, 6, 8), batch_norm=True, aspp=[1], aspp_dropout=0.3)
    head = SegmentationDecoder(
        unet, encoder.channels, 3, (5, 8), 2, projection_channels=6, head_inter=True, head_channels=6, head_dropout=0.2
    )
    return kind(encoder, head).to(torch.float64 if kind is Double else torch.float32)


def train(folder, work, name, kind=SegmentationNet):
    """A few steps of a run: (history, the method's weights and buffers)."""
    options, batch_size, changes = RUNS[name]
    block = Train(**(small_params()["train"] | {"iterations": STEPS, "batch_size": batch_size} | changes))
    runtime = Runtime(1, device="cpu")
    index = read_index(folder / "data/prepared/index.csv")
    labelled = index.select("train")[:5]
    window = CROP, 0.5, (0.7, 1.3)  # smaller frames are padded with void, unevenly
    store = FrameStore(disparity=folder / "data/disparity")
    streams = [Stream("labelled", labelled, batch_size, SEED, LabelledSamples(store, *window))]
    if "mask" in options:
        method = PseudoLabelMethod(network(kind), PseudoLabel(**options), block, runtime, SEED)
        samples = MixSamples(store, *window, disparity="depth" in options["mask"], labelled=[f.frame for f in labelled])
        streams.append(Stream("unlabelled", frames_to_mix(index, labelled, "all"), batch_size, SEED, samples))
    else:
        method = Supervised(network(kind), Optimisation(**options), block, runtime)
    history = fit(
        method, streams, iterations=STEPS, seed=SEED, runtime=runtime, work=work, key=name, evaluate_every=2,
        evaluate=lambda m: {"value": float(m.predict(torch.full((1, 3, 32, 64), 0.5)).std())},
    )  # fmt: skip
    return history, copy.deepcopy(method.state_dict())


@contextlib.contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def all_runs(folder, out):
    """Every run that the tests look at, in this process; the results in ``out/RANK.pt``."""
    torch.set_num_threads(1)
    results, work = {}, out / "work"
    for name in RUNS:
        for kind in (SegmentationNet, Double):
            if leads():
                (work / "resume.safetensors").unlink(missing_ok=True)
            results[name, kind.__name__] = train(folder, work, name, kind)
    if processes() > 1:
        faults = {
            "statistics": replaced(distributed._SharedBatchNorm, "forward", nn.BatchNorm2d.forward),
            "gradients": replaced(distributed, "BUCKET_VALUES", 0),  # harmless: buckets of one gradient each
        }
        for fault, change in faults.items():
            with change:
                results[fault] = train(folder, out / fault, "supervised")
        with replaced(loop, "CHECKPOINT_STEPS", 3):
            results["saves"] = train(folder, out / "resumed", "DepthMix")
            results["resumes"] = train(folder, out / "resumed", "DepthMix")
    torch.save(results, out / f"{rank()}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(one process, the first of two, the second of two), each {run: (history, state)}."""
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, size=(64, 32), disparity=True)
    one, two = folder / "one", folder / "two"
    one.mkdir(), two.mkdir()
    all_runs(folder, one)
    with together(2, all_runs, folder, two):
        assert processes() == 2
        all_runs(folder, two)
    assert processes() == 1
    return [torch.load(path, weights_only=False) for path in (one / "0.pt", two / "0.pt", two / "1.pt")]


def differences(got, wanted):
    """(largest relative difference of a loss, largest difference of a weight or buffer)."""
    (history, state), (wanted_history, wanted_state) = got, wanted
    assert [row.keys() for row in history] == [row.keys() for row in wanted_history] and state.keys() == wanted_state.keys()
    losses = [abs(a[k] - b[k]) / abs(b[k]) for a, b in zip(history, wanted_history, strict=True) for k in b]
    return max(losses), max(float((state[k] - v).abs().max()) for k, v in wanted_state.items())


@pytest.mark.parametrize("name", RUNS)
def test_debug(results, name):
    one, first, _ = results
    for kind in ("SegmentationNet", "Double"):
        print(name, kind, differences(first[name, kind], one[name, kind]))
        print([ {k: f"{v:.9g}" for k, v in r.items()} for r in one[name, kind][0]][::3])
    if name == "supervised":
        print(differences(first["statistics"], one[name, "SegmentationNet"]), differences(first["gradients"], one[name, "SegmentationNet"]))
