"""The training loop: bit-identical resuming, rates, clipping, losses, curves."""

import json
import logging
import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from semivid.data.index import VOID
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream
from semivid.errors import UserError
from semivid.evaluation.curves import best_of_curve
from semivid.methods.base import Method
from semivid.methods.supervised import Supervised
from semivid.models.encoder_decoder import SegmentationNet
from semivid.pipeline import fingerprint as fingerprints
from semivid.pipeline.fingerprint import fingerprint
from semivid.pipeline.params import Supervised as SupervisedOptions
from semivid.pipeline.params import Train
from semivid.training import loop
from semivid.training.loop import finish, fit, is_evaluated, write_curves
from semivid.training.losses import cross_entropy
from semivid.training.optim import build_optimizer, clip_gradients, rate_factor, set_rates
from semivid.training.resume import load_resume, save_resume
from semivid.training.rng import generator, torch_seed
from semivid.training.runtime import Runtime, as_float
from small import small_params, write_prepared

DATA = Path(__file__).parent / "data"
ITERATIONS = 104  # two steps per line of the history, so that a stop can fall between lines


class Interrupted(Exception):
    pass


class Toy(Method):
    """Convolutions, batch norm and dropout under AdamW; a second network under SGD with momentum."""

    def __init__(self, on_step=None):
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 3, 3, padding=1)
        )
        self.critic = nn.Conv2d(3, 4, 3)
        self.optimizers = [
            build_optimizer("adamw", [{"params": self.network.parameters(), "lr": 1e-2}], 1e-2),
            build_optimizer("sgd", [{"params": self.critic.parameters(), "lr": 1e-3}], 1e-4),
        ]
        self.on_step = on_step or (lambda step: None)
        self.rates = {}

    def rate(self, step):
        return rate_factor("poly", step, ITERATIONS)

    def training_step(self, batch, step):
        assert self.training
        self.rates[step] = [o.param_groups[0]["lr"] for o in self.optimizers]
        image = as_float(batch["labelled"]["image"])
        logits = self.network(image)
        losses = {
            "cross_entropy": cross_entropy(logits, batch["labelled"]["label"]),
            "critic": self.critic(logits.detach()).square().mean(),
        }
        for optimizer, loss in zip(self.optimizers, losses.values(), strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        self.on_step(step)
        return {k: v.detach() for k, v in losses.items()}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared"), size=(16, 16)).select("train")


@pytest.fixture
def train(frames, tmp_path):
    """Run `fit` on a Toy: train(on_step, key, workers, seed) -> (method, history)."""

    def run(on_step=None, key="key", workers=0, seed=1, iterations=ITERATIONS, work=tmp_path / "work", every=10):
        method = Toy(on_step)
        samples = LabelledSamples(FrameStore(), (16, 16), flip=0.5, scale=(0.8, 1.5))
        stream = Stream("labelled", frames, 3, seed, samples)
        history = fit(
            method, [stream], iterations=iterations, seed=seed, runtime=Runtime(1, device="cpu"), work=work, key=key,
            evaluate=evaluate, evaluate_every=every, workers=workers,
        )  # fmt: skip
        return method, history

    return run


def evaluate(method):
    assert not method.training and not torch.is_grad_enabled()
    image = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)
    return {"value": float(method.network(image).std())}


def everything(method):
    """Weights, buffers and optimiser states, flat, by name."""
    state = {f"network {k}": v for k, v in method.state_dict().items()}
    for i, optimizer in enumerate(method.optimizers):
        for number, values in optimizer.state_dict()["state"].items():
            state |= {f"optimizer {i} {number} {k}": v for k, v in values.items() if v is not None}
    return state


def assert_identical(run, reference):
    (method, history), (wanted, wanted_history) = run, reference
    assert history == wanted_history
    got, want = everything(method), everything(wanted)
    assert got.keys() == want.keys()
    different = [k for k in want if not torch.equal(got[k], want[k])]
    assert not different


@pytest.fixture(scope="module")
def reference(frames, tmp_path_factory):
    """The run without interruption."""
    method = Toy()
    samples = LabelledSamples(FrameStore(), (16, 16), flip=0.5, scale=(0.8, 1.5))
    torch.set_num_threads(1)
    history = fit(
        method, [Stream("labelled", frames, 3, 1, samples)], iterations=ITERATIONS, seed=1,
        runtime=Runtime(1, device="cpu"), work=tmp_path_factory.mktemp("work"), key="key",
        evaluate=evaluate, evaluate_every=10,
    )  # fmt: skip
    return method, history


# ---- resuming


def stop_at(*steps, number=signal.SIGTERM):
    return lambda step: os.kill(os.getpid(), number) if step in steps else None


def raise_at(*steps):
    def on_step(step):
        if step in steps:
            raise Interrupted

    return on_step


@pytest.mark.parametrize("steps", [(0,), (1,), (52,), (102,), (9, 10, 57)], ids=str)
def test_sigterm_saves_and_the_same_command_continues(train, reference, tmp_path, steps):
    for step in steps:
        with pytest.raises(SystemExit) as stop:
            train(stop_at(step))
        assert stop.value.code == 143
        assert load_resume(tmp_path / "work/resume.safetensors")["step"] == step + 1
    run = train(raise_at(*range(steps[-1] + 1)))  # would raise if a step were done again
    assert_identical(run, reference)


def test_ctrl_c_saves_too(train, reference, tmp_path):
    with pytest.raises(SystemExit) as stop:
        train(stop_at(30, number=signal.SIGINT))
    assert stop.value.code == 130
    assert load_resume(tmp_path / "work/resume.safetensors")["step"] == 31
    assert_identical(train(), reference)


def test_sigterm_in_the_last_step_is_too_late_to_matter(train, reference, tmp_path):
    assert_identical(train(stop_at(ITERATIONS - 1)), reference)
    assert not (tmp_path / "work").exists()


def test_checkpoints_are_a_while_apart(train, monkeypatch):
    """Writing one takes longer than a step: not with every step, but again and again."""
    clock = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 7.0 * next(clock)))  # 7 s per step
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 60.0)
    steps = []
    monkeypatch.setattr(loop, "save_resume", lambda path, state: steps.append(state["step"]))
    train()
    assert len(steps) > 5
    assert all(7 <= b - a <= 10 for a, b in pairwise(steps))


def test_checkpoints_are_some_steps_apart_too(train, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 25)
    steps = []
    monkeypatch.setattr(loop, "save_resume", lambda path, state: steps.append(state["step"]))
    train()
    assert steps == list(range(25, ITERATIONS, 25))


@pytest.mark.parametrize("ended_by", ["a fault", "a kill"])
@pytest.mark.parametrize("step", [0, 1, 57])
def test_a_run_ended_in_the_middle_continues_from_its_last_checkpoint(
    train, reference, monkeypatch, tmp_path, step, ended_by
):
    clock = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 7.0 * next(clock)))  # 7 s per step
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 30.0)
    if ended_by == "a fault":
        with pytest.raises(Interrupted):
            train(raise_at(step))
    else:
        child = os.fork()
        if child == 0:
            train(stop_at(step, number=signal.SIGKILL))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    saved = tmp_path / "work/resume.safetensors"
    assert saved.exists() == (step > 10)
    if saved.exists():
        assert step - 10 <= load_resume(saved)["step"] <= step
    assert_identical(train(), reference)


def test_the_handlers_are_given_back(train):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(iterations=1)
    with pytest.raises(Interrupted):
        train(raise_at(0), iterations=2)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_resumed_optimisers_keep_their_memory_layout(train, reference):
    """Another layout takes other kernels: slower, and free to round differently."""
    with pytest.raises(SystemExit):
        train(stop_at(10))
    method, _ = train()
    for resumed, whole in zip(method.optimizers, reference[0].optimizers, strict=True):
        for a, b in zip(resumed.state.values(), whole.state.values(), strict=True):
            for name in b:
                if b[name] is not None:
                    assert a[name].stride() == b[name].stride(), name


def test_the_number_of_workers_changes_nothing(train, reference):
    with pytest.raises(SystemExit):
        train(stop_at(40), workers=2)
    assert_identical(train(workers=1), reference)


def test_what_ran_before_changes_nothing(train, reference):
    torch.manual_seed(12345)
    torch.rand(7)
    np.random.seed(5)
    assert_identical(train(), reference)


def test_another_seed_changes_the_result(train, reference):
    """Else the tests of identity would show nothing."""
    method, history = train(seed=2)
    assert history != reference[1]
    assert not torch.equal(everything(method)["network network.0.weight"], reference[0].network[0].weight)


def test_dropout_differs_from_step_to_step():
    """Reseeding per step must not mean the same mask in every step."""
    masks = set()
    for step in range(5):
        torch.manual_seed(torch_seed(1, "torch", step))
        masks.add(tuple(nn.functional.dropout(torch.ones(64), 0.3).tolist()))
    assert len(masks) == 5


def test_another_fingerprint_never_resumes(train, reference, tmp_path):
    def ends(on_step, **options):
        with pytest.raises(SystemExit):
            train(on_step, **options)

    ends(stop_at(50), seed=2, key="other")
    done = []
    run = train(done.append)
    assert done == list(range(ITERATIONS))
    assert_identical(run, reference)
    # ... and the other's file is replaced by the first checkpoint of this one
    ends(stop_at(60))
    assert load_resume(tmp_path / "work/resume.safetensors")["key"] == "key"


def damaged(kind, content):
    if kind == "empty":
        return b""
    if kind == "garbage":
        return b"\x80\x05garbage" * 50
    if kind == "cut":
        return content[: len(content) // 2]
    return content[:-1] + bytes([255])


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut"])
def test_a_damaged_checkpoint_is_one_line(train, tmp_path, kind):
    with pytest.raises(SystemExit):
        train(stop_at(5))
    path = tmp_path / "work/resume.safetensors"
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(UserError, match=r"resume\.safetensors: .*delete it") as error:
        train()
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_kind_is_one_line(train, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "work/resume.safetensors"
    path.parent.mkdir()
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"resume\.safetensors: .*delete it"):
        train()
    save_resume(path, {"something": "else"})
    with pytest.raises(UserError, match=r"resume\.safetensors: .*delete it"):
        train()


def test_a_failing_checkpoint_leaves_the_last_one(train, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        train(stop_at(20))
    monkeypatch.setattr("semivid.training.resume.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        train(stop_at(40))
    assert load_resume(tmp_path / "work/resume.safetensors")["step"] == 21
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["resume.safetensors"]


def test_a_run_that_is_done_leaves_nothing(train, tmp_path):
    with pytest.raises(SystemExit):
        train(stop_at(20))
    train()
    finish(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    finish(tmp_path / "work")  # nothing there is fine
    (tmp_path / "work").mkdir()
    (tmp_path / "work/other").touch()
    finish(tmp_path / "work")
    assert (tmp_path / "work/other").exists()


# ---- what is logged


def test_history_means_losses_and_evaluates_on_time(reference):
    _, history = reference
    steps = [row["step"] for row in history]
    assert steps == list(range(2, ITERATIONS + 1, 2))
    assert all({"cross_entropy", "critic"} < set(row) for row in history)
    assert [r["step"] for r in history if "value" in r] == [*range(10, ITERATIONS, 10), ITERATIONS]
    first, last = history[0]["cross_entropy"], history[-1]["cross_entropy"]
    assert last < 0.8 * first, "the toy learns nothing: identity of results would show little"


def test_intervals_of_evaluation_may_grow_finer():
    """The paper's schedule; a step that is a key still belongs to the interval before."""
    wanted = json.loads((DATA / "three_ways_mix.json").read_text())["val_steps"]
    steps = range(1, wanted["train_iters"] + 1)
    assert [done for done in steps if is_evaluated(done, wanted["intervals"])] == wanted["evaluated at"]
    unsorted = {"9": 4, "0": 5, "10": 3}
    assert [done for done in range(1, 19) if is_evaluated(done, unsorted)] == [5, 12, 15, 18]
    assert [done for done in range(1, 9) if is_evaluated(done, 3)] == [3, 6]
    assert not any(is_evaluated(done, 0) for done in range(1, 9))


def test_intervals_of_evaluation_reach_the_loop(train):
    _, history = train(iterations=17, every={"0": 3, "6": 5})
    assert [row["step"] for row in history if "value" in row] == [3, 6, 10, 15, 17]


def test_history_lines_are_means_of_their_steps(train):
    losses = []

    class Recorded(Toy):
        def training_step(self, batch, step):
            out = super().training_step(batch, step)
            losses.append(float(out["critic"]))
            return out

    original, globals()["Toy"] = Toy, Recorded
    try:
        _, history = train(iterations=101, every=7)  # the last line is the mean of one step
    finally:
        globals()["Toy"] = original
    by_step = {row["step"]: row for row in history}
    assert by_step[4]["critic"] == pytest.approx((losses[2] + losses[3]) / 2)
    assert by_step[101]["critic"] == pytest.approx(losses[100])
    assert "critic" not in by_step[7] and "value" in by_step[7]


def test_rates_follow_the_step_also_after_resuming(train):
    with pytest.raises(SystemExit):
        train(stop_at(50))
    method, _ = train()
    assert sorted(method.rates) == list(range(51, ITERATIONS))
    for step, (first, second) in method.rates.items():
        factor = (1 - step / ITERATIONS) ** 0.9
        assert first == pytest.approx(1e-2 * factor, rel=1e-12)
        assert second == pytest.approx(1e-3 * factor, rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_state(train, tmp_path, monkeypatch, value):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    class Diverging(Toy):
        def training_step(self, batch, step):
            losses = super().training_step(batch, step)
            if step == 40:
                with torch.no_grad():
                    self.network[0].weight.fill_(value)
                losses["cross_entropy"] = torch.tensor(value)
            return losses

    monkeypatch.setitem(globals(), "Toy", Diverging)
    with pytest.raises(UserError, match=r"cross_entropy is (nan|inf).*step 4[12].*learning rate"):
        train()
    state = load_resume(tmp_path / "work/resume.safetensors")
    assert state["step"] == 40
    assert all(t.isfinite().all() for t in state["networks"].values())


def test_progress_is_told_in_plain_lines(train, caplog, monkeypatch):
    monkeypatch.setenv("SEMIVID_PROGRESS", "plain")
    monkeypatch.setattr(logging.getLogger("semivid"), "propagate", True)
    with caplog.at_level(logging.INFO, "semivid"):
        train(iterations=4)
    assert "train 4/4" in caplog.text and "/s" in caplog.text and "left" in caplog.text


def test_curves_are_dvclive_files_and_the_same_each_time(tmp_path):
    history = [
        {"step": 10, "loss": 0.123456789, "val_miou": 0.25},
        {"step": 20, "loss": 1e-7, "val_miou": 0.5},
        {"step": 25, "loss": 3.0},
        {"step": 30, "val_miou": 0.5},
    ]
    for name in ("a", "b"):
        write_curves(tmp_path / name, history)
    texts = [
        {
            str(p.relative_to(tmp_path / name)): p.read_text()
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file()
        }
        for name in ("a", "b")
    ]
    assert texts[0] == texts[1]
    assert texts[0]["plots/metrics/loss.tsv"].split() == ["step", "loss", "10", "0.123457", "20", "1e-07", "25", "3"]
    summary = json.loads(texts[0]["metrics.json"])
    assert summary["val_miou"] == 0.5 and summary["step"] == 30
    assert best_of_curve(tmp_path / "a") == {"best_miou": 0.5, "best_iteration": 20}
    assert best_of_curve(tmp_path / "none") == {"best_miou": None, "best_iteration": None}
    assert not (tmp_path / "dvc.yaml").exists()


# ---- fingerprints


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """(folder of inputs, folder that stands for this package's sources)."""
    for name in ("in/sub", "src"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/sub/a.png").write_text("a")
    (tmp_path / "in/b.csv").write_text("b")
    (tmp_path / "src/code.py").write_text("pass")
    monkeypatch.setattr(fingerprints, "SOURCES", tmp_path / "src")
    return tmp_path / "in", tmp_path / "src"


def test_fingerprints_are_equal_for_equal_runs(inputs):
    folder, source = inputs
    first = fingerprint("x", [folder])
    (source / "code.pyc").write_text("compiled")
    assert fingerprint("x", [str(folder)]) == first


@pytest.mark.parametrize("change", ["settings", "content", "time", "new file", "lost file", "source", "no input"])
def test_fingerprints_differ_for_any_change(inputs, change):
    folder, source = inputs
    first = fingerprint("x", [folder])
    match change:
        case "content":
            times = (folder / "b.csv").stat()
            (folder / "b.csv").write_text("bb")
            os.utime(folder / "b.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
        case "time":
            os.utime(folder / "sub/a.png", ns=(0, 5))
        case "new file":
            (folder / "c").touch()
        case "lost file":
            (folder / "b.csv").unlink()
        case "source":
            (source / "code.py").write_text("pass  # changed")
    second = fingerprint("y" if change == "settings" else "x", [] if change == "no input" else [folder])
    assert second != first


# ---- resume files


def test_resume_files_hold_any_nest(tmp_path):
    state = {
        "key": "ü", "step": 3, "none": None, "floats": [0.1, 1e-300], "empty": {},
        "tensors": {
            0: torch.arange(6).view(2, 3).t(), "bf16": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(2.5),
            "bool": torch.tensor([True]), "none": torch.zeros(0, 4),
        },
        "list": [{"a": torch.ones(1)}, (1, "b")],
    }  # fmt: skip
    save_resume(tmp_path / "r.safetensors", state)
    back = load_resume(tmp_path / "r.safetensors")
    assert {k: back[k] for k in ("key", "step", "none", "floats", "empty")} == {
        k: state[k] for k in ("key", "step", "none", "floats", "empty")
    }
    for name, tensor in state["tensors"].items():
        assert back["tensors"][name].dtype == tensor.dtype and torch.equal(back["tensors"][name], tensor)
    assert torch.equal(back["list"][0]["a"], torch.ones(1)) and back["list"][1] == [1, "b"]


def test_shared_tensors_are_saved_as_they_are_now(tmp_path):
    weight = torch.zeros(3)
    state = {"a": weight, "b": weight}
    save_resume(tmp_path / "r.safetensors", state)
    weight += 1
    back = load_resume(tmp_path / "r.safetensors")
    assert torch.equal(back["a"], torch.zeros(3)) and torch.equal(back["b"], torch.zeros(3))


# ---- random numbers


def test_draws_are_functions_of_their_arguments_alone():
    assert generator(1, "a", 2).random() == generator(1, "a", 2).random()
    draws = {
        generator(*a).random() for a in ((1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a"), (1, 2, "a"))
    }
    assert len(draws) == 6
    assert {torch_seed(1, "torch", step) for step in range(100)}.__len__() == 100
    assert all(0 <= torch_seed(s, "x") < 2**63 for s in range(50))


def test_draws_do_not_change_between_versions():
    """A stored result must be reproducible: these values are part of the interface."""
    assert generator(42, "labelled", "order", 0).permutation(6).tolist() == [1, 3, 4, 5, 0, 2]
    assert torch_seed(42, "network") == 2393838333122192487


# ---- optimisers and rates


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("poly", 0, 1.0),
        ("poly", 25, 0.75**0.9),
        ("poly", 99, 0.01**0.9),
        ("poly", 100, 1e-6),
        ("step", 0, 1.0),
        ("step", 29, 1.0),
        ("step", 30, 0.1),
        ("step", 59, 0.1),
        ("step", 60, 0.01),
        ("constant", 77, 1.0),
    ],
)
def test_rate_factors(schedule, step, factor):
    assert rate_factor(schedule, step, 100, (30, 60)) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("kind", "cls"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimisers_keep_base_rates_per_group(kind, cls):
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(kind, [{"params": iter([a]), "lr": 0.1}, {"params": [b], "lr": 0.01}], 0.05)
    assert type(optimizer).__name__ == cls
    assert [g["base_lr"] for g in optimizer.param_groups] == [0.1, 0.01]
    assert all(g["weight_decay"] == 0.05 for g in optimizer.param_groups)
    assert kind != "sgd" or all(g["momentum"] == 0.9 and not g["nesterov"] for g in optimizer.param_groups)
    for _ in range(2):  # not cumulative
        set_rates(optimizer, 0.5)
        assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.005]


def test_clipping_scales_the_global_norm_down_to_the_limit():
    """No published fixture reaches its clipping limit (Three Ways fixtures, section 18): tested by itself."""
    module = nn.Linear(2, 2)
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0.0, 12.0])  # norm 13

    def clipped(limit):
        module.weight.grad, module.bias.grad = weight.clone(), bias.clone()
        clip_gradients(module, limit)
        return module.weight.grad, module.bias.grad

    for limit, factor in ((10.0, 10 / 13), (1.0, 1 / 13), (13.5, 1.0), (0, 1.0)):
        w, b = clipped(limit)
        assert torch.allclose(w, weight * factor, rtol=1e-5) and torch.allclose(b, bias * factor, rtol=1e-5)
    norm = math.sqrt(sum(float(g.square().sum()) for g in clipped(10.0)))
    assert norm == pytest.approx(10.0, rel=1e-5)


# ---- losses


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels[0, :3] = VOID
    by_hand = [
        -torch.log_softmax(logits[b, :, y, x], 0)[labels[b, y, x].long()]
        for b in range(2) for y in range(5) for x in range(6) if labels[b, y, x] != VOID
    ]  # fmt: skip
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-6)


def test_a_batch_without_a_labelled_pixel_costs_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), VOID, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ---- the supervised method


class TinyHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 3, 1)

    def forward(self, maps, size):
        return self.convolution(maps)


def tiny_net():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return SegmentationNet(encoder, TinyHead())


def supervised(**options):
    params = small_params()
    block = params["methods"]["supervised"] | options
    return Supervised(tiny_net(), SupervisedOptions(**block), Train(**params["train"]), Runtime(1, device="cpu"))


def batch_of(labels):
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (*labels.shape[:1], 3, *labels.shape[1:]), generator=rng, dtype=torch.uint8)
    return {"labelled": {"image": image, "label": labels}}


def some_labels():
    return torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_supervised_groups_hold_every_parameter_once_at_its_rate():
    method = supervised(encoder_lr=0.001, lr=0.01)
    encoder, rest = method.optimizer.param_groups
    assert (encoder["base_lr"], rest["base_lr"]) == (0.001, 0.01)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in method.student.encoder.parameters()}
    everything = [id(p) for g in (encoder, rest) for p in g["params"]]
    assert sorted(everything) == sorted(id(p) for p in method.parameters())


def test_supervised_rates_follow_the_options():
    assert supervised(schedule="poly").rate(1) == pytest.approx((2 / 3) ** 0.9)  # of 3 iterations
    assert supervised(schedule="step", milestones=[2]).rate(2) == pytest.approx(0.1)


def test_supervised_clips_what_it_steps_by():
    """SGD's first step is the clipped gradient times the rate: its length is the limit times the rate."""
    lengths = {}
    for clip in (0.05, 0):
        method = supervised(optimizer="sgd", lr=0.5, encoder_lr=0.5, weight_decay=0.0, clip=clip)
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        method.training_step(batch_of(some_labels()), 0)
        change = sum(float((p.detach() - before[n]).square().sum()) for n, p in method.named_parameters())
        lengths[clip] = math.sqrt(change)
    assert lengths[0.05] == pytest.approx(0.05 * 0.5, rel=1e-3)
    assert lengths[0] > 2 * lengths[0.05], "the gradient is below the limit: the test shows nothing"


def test_supervised_logs_its_loss_and_learns():
    method = supervised(lr=1e-2, encoder_lr=1e-2)
    batch = batch_of(some_labels())
    losses = [method.training_step(batch, step)["cross_entropy"] for step in range(15)]
    assert not losses[0].requires_grad
    assert losses[-1] < losses[0]


def test_supervised_survives_a_batch_of_void():
    """A crop may hold no labelled pixel at all; the mean over none would be not-a-number, and so all weights after."""
    method = supervised(weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    loss = method.training_step(batch_of(torch.full((2, 6, 6), VOID, dtype=torch.uint8)), 0)["cross_entropy"]
    assert float(loss) == 0.0
    assert all(torch.equal(p, before[n]) for n, p in method.named_parameters())


# ---- the runtime


def test_bytes_become_fractions():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    out = as_float(image)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    assert out[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert as_float(image[None]).shape == (1, 2, 3, 4, 4)
    assert image.dtype == torch.uint8 and int(image.max()) == 255


def test_runtime_precision_and_placement():
    runtime = Runtime(1, "bfloat16", device="cpu")
    with runtime.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with Runtime(1, device="cpu").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    conv = runtime.place(nn.Conv2d(4, 4, 3))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    moved = runtime.move({"a": {"b": torch.ones(1)}, "c": torch.zeros(2)})
    assert torch.equal(moved["a"]["b"], torch.ones(1)) and torch.equal(moved["c"], torch.zeros(2))
