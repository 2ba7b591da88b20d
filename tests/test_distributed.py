"""Training over two processes: what it computes, against one process with the same batches; how it ends."""

import contextlib
import copy
import json
import multiprocessing as mp
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

import endings
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
from semivid.training.distributed import processes, rank, together
from semivid.training.loop import fit
from semivid.training.resume import load_resume
from semivid.training.runtime import Runtime
from small import small_params, write_prepared

ROOT = Path(__file__).resolve().parent.parent
STEPS, SEED, CROP = 6, 5, (64, 32)
SUPERVISED = {
    "optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "weight_decay": 5e-4, "schedule": "poly", "milestones": [],
    "clip": 0.5,
}  # fmt: skip
MIXED = SUPERVISED | {
    "method": "pseudo_label", "mask": "class", "margin": None, "foreground": None, "frames": "all",
    "ground_truth": True, "consistency_weight": 1.0, "confidence": 0.35, "ema_decay": 0.99, "jitter": 0.8,
    "jitter_strength": 0.25, "blur": 0.5,
}  # fmt: skip
DEPTHMIX = MIXED | {"mask": "depthmix", "margin": 0.03, "foreground": [0.0, 0.6]}
# options, size of the batch, type of the network
RUNS = {
    "supervised": (SUPERVISED, 4, torch.float32),
    "DepthMix": (DEPTHMIX, 2, torch.float32),  # one frame for each process
    "supervised, Adam": (SUPERVISED | {"optimizer": "adam", "lr": 1e-3}, 4, torch.float32),
    # A pixel at the threshold of confidence, or between two classes, may fall to either side by rounding.
    "DepthMix, float64": (DEPTHMIX, 4, torch.float64),
    "ClassMix, float64": (MIXED, 4, torch.float64),
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


class Network(SegmentationNet):
    """In float64 hardly anything is lost by rounding: what then differs has another cause."""

    def forward(self, frames):
        return super().forward(frames.to(self.encoder.stages[0][0].weight.dtype))


def network(dtype=torch.float32):
    torch.manual_seed(0)
    encoder = Encoder()
    unet = DepthDecoder(encoder.channels, encoder.strides, (4, 4, 6, 6, 8), batch_norm=True, aspp=[1], aspp_dropout=0.3)
    head = SegmentationDecoder(
        unet, encoder.channels, 3, (5, 8), 2, projection_channels=6, head_inter=True, head_channels=6, head_dropout=0.2
    )
    return Network(encoder, head).to(dtype)


def train(folder, work, name):
    """A few steps of a run: (history, the method's weights and buffers)."""
    options, batch_size, dtype = RUNS[name]
    block = Train(**(small_params()["train"] | {"iterations": STEPS, "batch_size": batch_size}))
    runtime = Runtime(1, device="cpu")
    index = read_index(folder / "data/prepared/index.csv")
    labelled = index.select("train")[:5]
    window = CROP, 0.5, (0.7, 1.3)  # smaller frames are padded with void, unevenly
    store = FrameStore(disparity=folder / "data/disparity")
    streams = [Stream("labelled", labelled, batch_size, SEED, LabelledSamples(store, *window))]
    if "mask" in options:
        method = PseudoLabelMethod(network(dtype), PseudoLabel(**options), block, runtime, SEED)
        samples = MixSamples(store, *window, disparity="depth" in options["mask"], labelled=[f.frame for f in labelled])
        streams.append(Stream("unlabelled", frames_to_mix(index, labelled, "all"), batch_size, SEED, samples))
    else:
        method = Supervised(network(dtype), Optimisation(**options), block, runtime)
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
    results = {name: train(folder, out / name, name) for name in RUNS}
    if processes() > 1:
        with replaced(distributed._SharedBatchNorm, "forward", nn.BatchNorm2d.forward):
            results["statistics of one's own"] = train(folder, out / "statistics", "supervised")
        with replaced(distributed, "BUCKET_VALUES", 1000):
            results["many buckets"] = train(folder, out / "buckets", "supervised")
        with replaced(loop, "CHECKPOINT_STEPS", 3):
            train(folder, out / "resumed", "DepthMix")
            results["resumed"] = train(folder, out / "resumed", "DepthMix")
    torch.save(results, out / f"{rank()}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(of one process, of the first of two, of the second of two), each {run: (history, state)}."""
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, size=(64, 32), disparity=True)
    one, two = folder / "one", folder / "two"
    one.mkdir(), two.mkdir()
    all_runs(folder, one)
    with together(2, all_runs, folder, two):
        assert processes() == 2
        all_runs(folder, two)
    assert processes() == 1
    assert load_resume(two / "resumed/resume.safetensors")["step"] == 3
    return [torch.load(path, weights_only=False) for path in (one / "0.pt", two / "0.pt", two / "1.pt")]


def differences(got, wanted):
    """(largest relative difference of a loss or evaluated value, largest difference of a weight or buffer)."""
    (history, state), (wanted_history, wanted_state) = got, wanted
    assert [row.keys() for row in history] == [row.keys() for row in wanted_history]
    assert state.keys() == wanted_state.keys()
    losses = [abs(a[k] - b[k]) / abs(b[k]) for a, b in zip(history, wanted_history, strict=True) for k in b]
    return max(losses), max(float((state[k] - v).abs().max()) for k, v in wanted_state.items())


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_compute_what_one_does(results, name):
    """In float64 to the last digits (the logged losses are float32), in float32 up to rounding."""
    one, first, _ = results
    losses, weights = differences(first[name], one[name])
    print(f"{name}: losses {losses:.1e}, weights {weights:.1e}")
    double = "float64" in name
    assert losses < (1e-6 if double else 1e-5)
    assert weights < (1e-12 if double else 1e-4)
    history = one[name][0]
    assert len(history) == STEPS and len({row["cross_entropy"] for row in history}) == STEPS
    if "pseudo_label" in history[0]:
        assert any(0 < row["confident"] < 1 for row in history), "the confident share has no say"


def test_statistics_of_one_s_own_would_not_do(results):
    """What the comparison above would say without synchronised batch normalisation."""
    one, first, _ = results
    losses, weights = differences(first["statistics of one's own"], one["supervised"])
    assert losses > 1e-3 and weights > 1e-3


def test_all_processes_hold_the_same_bits(results):
    _, first, second = results
    for name in RUNS:
        for key, value in first[name][1].items():
            assert torch.equal(value, second[name][1][key]), (name, key)


def test_only_the_first_process_evaluates(results):
    _, first, second = results
    for name in RUNS:
        rows = [{k: v for k, v in row.items() if k != "value"} for row in first[name][0]]
        assert rows == second[name][0] and rows != first[name][0]


def test_gradients_may_be_summed_in_many_buckets(results):
    _, first, _ = results
    assert differences(first["many buckets"], first["supervised"]) < (1e-5, 1e-5)


def test_resuming_is_bit_identical(results):
    for of_one in results[1:]:
        (history, state), (wanted_history, wanted_state) = of_one["resumed"], of_one["DepthMix"]
        assert [r["cross_entropy"] for r in history] == [r["cross_entropy"] for r in wanted_history]
        assert all(torch.equal(state[k], v) for k, v in wanted_state.items())


# ---- slices


def test_a_part_of_a_batch_is_that_of_the_whole(tmp_path):
    frames = write_prepared(tmp_path, size=(64, 32)).select("train")
    stream = Stream("labelled", frames, 6, SEED, LabelledSamples(FrameStore(), CROP, 0.5, (0.7, 1.3)))
    for slots in (slice(0, 2), slice(2, 4), slice(4, 6)):
        for key, value in stream.part(3, slots).items():
            assert torch.equal(value, stream[3][key][slots])


def test_a_part_of_a_batch_is_augmented_as_in_the_whole():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = []
    for step in range(4):
        whole = strong_augment(images, SEED, step)
        assert torch.equal(strong_augment(images[2:], SEED, step, first=2), whole[2:])
        other.append(not torch.equal(strong_augment(images[2:], SEED, step), whole[2:]))
    assert any(other), "no step jitters"


# ---- what is refused


def test_batches_must_be_divisible():
    with pytest.raises(ValidationError, match="batch_size 3 cannot be divided over 2 processes"):
        Train(**(small_params()["train"] | {"batch_size": 3, "processes": 2}))


def test_methods_say_that_they_can_be_shared(monkeypatch):
    class Further(Supervised):
        """Its step is another, so its parent does not speak for it."""

    options, block = Optimisation(**SUPERVISED), Train(**small_params()["train"])
    method = Further(network(), options, block, Runtime(1, device="cpu"))
    distributed.share(method)  # one process
    assert not any(isinstance(m, distributed._SharedBatchNorm) for m in method.modules())
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(UserError, match=r"`train\.processes` is 2, but Further trains in one process; set it to 1"):
        distributed.share(method)


# ---- endings


def test_the_error_of_one_ends_all():
    with pytest.raises(UserError) as caught, together(2, endings.meets_bad_input):
        endings.meets_bad_input()
    assert str(caught.value) == "frame.png: damaged; replace it"
    assert "endings.py" in caught.value.__notes__[0], "where it happened is kept, for bugs"
    assert processes() == 1


def test_the_end_of_the_first_ends_all():
    """SIGTERM and Ctrl-C become SystemExit there; the others do not heed them."""
    with pytest.raises(SystemExit), together(2, endings.goes_on):
        endings.goes_on()
        (second,) = mp.active_children()
        time.sleep(0.3)
        assert second.is_alive()
        raise SystemExit(143)
    assert not second.is_alive() and processes() == 1


def test_a_first_process_that_hangs_is_ended_too(monkeypatch, caplog):
    told = r"^process 1 of 0\.\.1 of the training was killed \(signal 9\); free memory .*the same command continues$"
    codes, ended = [], threading.Event()
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    with pytest.raises(UserError, match=told), together(2, endings.is_killed):
        assert ended.wait(60)
    assert codes == [2] and "error: process 1 of 0..1" in caplog.text


def test_a_command_goes_on_in_the_first_process_alone(monkeypatch):
    train = distributed.over_processes(lambda stage, more: more)
    stage = SimpleNamespace(params=SimpleNamespace(train=SimpleNamespace(processes=1)))
    assert train(stage, more=3) == 3
    stage.params.train.processes = 2
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(SystemExit) as ended:
        train(stage, more=3)
    assert not ended.value.code


def test_a_stage_command_starts_its_processes(tmp_path):
    """As DVC and Snakemake call it: the same command, one set of files, nothing else on the terminal."""
    write_prepared(tmp_path)
    params = small_params()
    params["train"] |= {"processes": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (tmp_path / "splits/selected").mkdir(parents=True)
    (tmp_path / "splits/selected/random-7.txt").write_text("train0_01\ntrain0_02\n")
    command = [
        sys.executable,
        ROOT / "stages/train.py",
        *["--method", "supervised", "--selection", "random", "--labels", "2", "--seed", "7"],
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("[train@supervised-random-2-7] ") for line in done.stderr.splitlines()), done.stderr
    assert done.stderr.count("2 labelled frames") == 1
    metrics = json.loads((tmp_path / "runs/supervised-random-2-7/metrics.json").read_text())
    assert metrics.keys() == {"cross_entropy", "step", "val_miou"} and metrics["step"] == 3
    assert (tmp_path / "models/supervised-random-2-7.safetensors").exists()
    assert json.loads((tmp_path / "costs/supervised-random-2-7.json").read_text())["cpu_seconds"] > 0
    assert not (tmp_path / ".work/train@supervised-random-2-7").exists()
