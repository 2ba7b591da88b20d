"""Pseudo-label training on the shared loop: the reference's toy steps, the teacher, resuming, frames and options."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from helpers import fill_by_rule, rand
from semivid.data.index import VOID, Index
from semivid.data.mix_samples import MixSamples, frames_to_mix
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, UnlabelledSamples, Window
from semivid.data.strong import strong_augment
from semivid.depth.disparity import write_disparity
from semivid.errors import UserError
from semivid.methods.mixing import depthmix_mask, draw_mask, normalise_per_image
from semivid.methods.pseudo_label import PseudoLabelMethod, build
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.pipeline.params import PseudoLabel, Train
from semivid.training.ema import Teacher, ema_decay
from semivid.training.loop import fit
from semivid.training.resume import load_resume
from semivid.training.rng import generator
from semivid.training.runtime import Runtime
from small import small_params, write_prepared

OPTIONS = {
    "method": "pseudo_label",
    "optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "weight_decay": 5e-4, "schedule": "constant",
    "milestones": [], "clip": 10.0, "mask": "none", "margin": None, "foreground": None, "frames": "unlabelled",
    "ground_truth": False, "consistency_weight": 1.0, "confidence": 0.968, "ema_decay": 0.99, "jitter": 0.8,
    "jitter_strength": 0.25, "blur": 0.5,
}  # fmt: skip
DEPTHMIX = {"mask": "depthmix", "margin": 0.03, "foreground": [0.0, 0.0]}
WITH_TRUTH = {"frames": "all", "ground_truth": True}


def options(**changes):
    return PseudoLabel(**(OPTIONS | changes))


def training(**changes):
    return Train(**(small_params()["train"] | changes))


class Network(nn.Module):
    """The fixture's toy network; with `dropout`, a layer of it before the head."""

    def __init__(self, classes=19, dropout=0.0):
        super().__init__()
        self.enc = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.bn(self.enc(x)))))

    def parameter_groups(self, encoder_lr, lr):
        return [
            {"params": [*self.enc.parameters(), *self.bn.parameters()], "lr": encoder_lr},
            {"params": list(self.head.parameters()), "lr": lr},
        ]


def method_of(network, seed=1, train=None, **changes):
    return build(network, options(**changes), train or training(), Runtime(1, device="cpu"), seed)


# ---- the reference's three steps


class Fixed(Stream):
    """A stream whose batch k is `batch(k)`."""

    batch_size = 0

    def __init__(self, name, batch):
        self.name, self.batch = name, batch

    def part(self, step, slots):
        return self.batch(step)


def ints(shape, seed):
    values = torch.randint(0, 19, shape, generator=torch.Generator().manual_seed(seed))
    values[:, :2] = VOID
    return values.to(torch.uint8)


def bytes_of(shape, seed):
    """The fixture's images in [0, 1), as what becomes them when the method divides by 255."""
    return rand(shape, seed).double() * 255


def toy_labelled(k):
    return {"image": bytes_of((2, 3, 16, 24), 500 + k), "label": ints((2, 16, 24), 510 + k)}


def toy_unlabelled(k):
    disparity = F.interpolate(rand((2, 1, 4, 6), 530 + k), size=(16, 24), mode="bilinear", align_corners=False)
    label = ints((2, 16, 24), 540 + k)
    label[1] = VOID
    return {
        "image": bytes_of((2, 3, 16, 24), 520 + k),
        "disparity": disparity[:, 0],
        "label": label,
        "labelled": torch.tensor([True, False]),
    }


class Watched(PseudoLabelMethod):
    """Keeps the sums that the fixture gives, after every step."""

    def training_step(self, batch, step):
        losses = super().training_step(batch, step)
        student, teacher = self.student, self.teacher.network
        self.seen = [
            *getattr(self, "seen", []),
            {
                "student head.weight sum/abs sum": [student.head.weight.sum().item(), abs_sum(student.head)],
                "student enc.weight abs sum": abs_sum(student.enc),
                "teacher head.weight abs sum": abs_sum(teacher.head),
                "teacher bn.running_mean": teacher.bn.running_mean.tolist(),
                "student bn.running_mean": student.bn.running_mean.tolist(),
            },
        ]
        return losses


def abs_sum(layer):
    return layer.weight.abs().sum().item()


def test_three_steps_equal_the_reference(data_dir, tmp_path):
    expected = json.loads((data_dir / "three_ways_toy_steps.json").read_text())
    settings = options(
        **DEPTHMIX, **WITH_TRUTH, schedule="step", milestones=[2], jitter=0.0, blur=0.0
    )  # lr, weight decay, clip as in OPTIONS
    method = Watched(fill_by_rule(Network()), settings, training(iterations=3), Runtime(1, device="cpu"), seed=1)
    history = fit(
        method, [Fixed("labelled", toy_labelled), Fixed("unlabelled", toy_unlabelled)], iterations=3, seed=1,
        runtime=Runtime(1, device="cpu"), work=tmp_path, key="key",
    )  # fmt: skip
    assert len(history) == len(method.seen) == 3
    for row, seen, step in zip(history, method.seen, expected["steps"], strict=True):
        assert row["cross_entropy"] == pytest.approx(step["CE (labelled)"], rel=1e-6)
        assert row["pseudo_label"] == pytest.approx(step["L_u"], rel=1e-5)
        assert row["confident"] == pytest.approx(step["confident fraction w"], rel=1e-6)
        for name, value in seen.items():
            tolerance = {"abs": 2e-6} if "running" in name else {"rel": 5e-6}
            assert value == pytest.approx(step[name], **tolerance), name
    rates = [[1e-3, 1e-2], [1e-4, 1e-3], [1e-4, 1e-3]]  # after a step = in the next one
    assert [step["lr after step"] for step in expected["steps"]] == rates
    for step, after in enumerate(rates):
        assert [g["base_lr"] * method.rate(step + 1) for g in method.optimizer.param_groups] == pytest.approx(after)


# ---- a step written out


def batch(count=2, size=(12, 16), classes=3, seed=0):
    torch.manual_seed(seed)
    height, width = size
    labels = torch.randint(0, classes, (2, count, height, width), dtype=torch.uint8)
    labels[..., :2, :] = VOID
    labelled = torch.arange(count) % 2 == 0
    labels[1][~labelled] = VOID
    images = torch.randint(0, 256, (2, count, 3, height, width), dtype=torch.uint8)
    return {
        "labelled": {"image": images[0], "label": labels[0]},
        "unlabelled": {
            "image": images[1],
            "disparity": torch.rand(count, height, width),
            "label": labels[1],
            "labelled": labelled,
        },
    }


def network(dropout=0.0, classes=3):
    torch.manual_seed(2)
    net = Network(classes, dropout)
    nn.init.normal_(net.head.weight, std=2.0)  # else no pixel is sure of anything
    return net


def written_out(net, teacher, data, seed, steps, settings):
    """Section 8 as it stands: probabilities of all classes, mixed as M x_i + (1 - M) x_j, image by image."""
    optimizer = torch.optim.SGD(
        net.parameter_groups(settings.encoder_lr, settings.lr), momentum=0.9, weight_decay=settings.weight_decay
    )
    logged, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        x, y = data["labelled"]["image"] / 255, data["labelled"]["label"].long()
        supervised = F.cross_entropy(net(x), y, ignore_index=VOID)
        supervised.backward()

        u = data["unlabelled"]
        x = u["image"] / 255
        with torch.no_grad():
            p = teacher(x).softmax(1)
        count, classes = p.shape[:2]
        if settings.ground_truth:
            for i in range(count):
                if u["labelled"][i]:
                    p[i] = F.one_hot(u["label"][i].long().clamp(max=classes), classes + 1).permute(2, 0, 1)[:classes]
        if settings.mask == "depthmix":
            mask = depthmix_mask(u["disparity"], settings.margin, settings.foreground[0])
        else:
            mask = draw_mask(settings.mask, p.argmax(1), classes, u["disparity"], generator(seed, "mask", step))
        mixed, mixed_p = torch.empty_like(x), torch.empty_like(p)
        for i in range(count):
            m, j = mask[i].float(), (i + 1) % count
            mixed[i], mixed_p[i] = m * x[i] + (1 - m) * x[j], m * p[i] + (1 - m) * p[j]
        seen = strong_augment(mixed, seed, step, settings.jitter, settings.jitter_strength, settings.blur)
        largest, label = mixed_p.max(1)
        label[largest == 0] = VOID
        w = float((largest >= settings.confidence).sum()) / largest.numel()
        losses = F.cross_entropy(net(seen), label, ignore_index=VOID, reduction="none")
        loss = settings.consistency_weight * (w * losses).sum() / losses.numel()
        loss.backward()

        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), settings.clip or 1e9)))
        optimizer.step()
        a = min(1 - 1 / (step + 2), settings.ema_decay)
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), net.parameters(), strict=True):
                old.copy_(a * old + (1 - a) * new)
        logged.append((supervised.item(), loss.item(), w))
    return logged, norms


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "none"},
        {"mask": "class"},
        {"mask": "class", **WITH_TRUTH},
        {"mask": "depth"},
        DEPTHMIX,
        DEPTHMIX | WITH_TRUTH | {"consistency_weight": 0.7, "ema_decay": 0.6, "confidence": 0.8},
        DEPTHMIX | WITH_TRUTH | {"clip": 0.3, "frames": "labelled"},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_is_what_the_paper_says(changes, count):
    changes = {"clip": 0.0, "lr": 0.1, "encoder_lr": 0.05, "confidence": 0.9} | changes
    data = batch(count)
    net, teacher = network(), network()
    expected, norms = written_out(net, teacher, data, 5, 4, options(**changes))
    method = method_of(network(), seed=5, **changes).train()
    found = [method.training_step(data, step) for step in range(4)]
    for (supervised, loss, w), row in zip(expected, found, strict=True):
        values = [float(row[k]) for k in ("cross_entropy", "pseudo_label", "confident")]
        assert values == pytest.approx([supervised, loss, w], rel=1e-4)
        assert not any(v.requires_grad for v in row.values())
    for ours, theirs in ((method.student, net), (method.teacher.network, teacher)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert 0 < expected[0][2] < 1, "all or no pixels are confident: the weight is not tested"
    if changes["clip"]:
        assert min(norms) > 2 * changes["clip"], "the limit never acts"


def test_the_loss_is_the_confident_share_times_the_loss_of_every_pixel():
    """Not a threshold per pixel: with none confident the mix teaches nothing, and one confident one turns all on."""
    data = batch()
    start = method_of(network(), confidence=1.0, **DEPTHMIX).train()
    assert float(start.training_step(data, 0)["pseudo_label"]) == 0
    rows = [
        method_of(network(), confidence=c, jitter=0.0, blur=0.0, **DEPTHMIX).train().training_step(data, 0)
        for c in (0.0, 0.9)
    ]
    assert float(rows[0]["confident"]) == 1 and 0 < float(rows[1]["confident"]) < 1
    assert float(rows[1]["pseudo_label"]) == pytest.approx(
        float(rows[0]["pseudo_label"]) * float(rows[1]["confident"]), rel=1e-5
    )


# ---- the teacher


def test_the_average_equals_the_reference(data_dir):
    spec = json.loads((data_dir / "three_ways_mix.json").read_text())["ema"]
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, spec["teacher start"])
    teacher = Teacher(layer)
    values = []
    for step in range(1, 6):
        nn.init.constant_(layer.weight, step)
        teacher.update(layer, step)
        values.append(float(teacher.network.weight))
    assert values == pytest.approx(spec["teacher after steps 1..5"], rel=1e-6)


def test_the_average_forgets_at_most_at_its_limit():
    assert [ema_decay(s) for s in (1, 2, 98, 99, 10**6)] == pytest.approx([0.5, 2 / 3, 1 - 1 / 99, 0.99, 0.99])
    assert ema_decay(50, 0.9) == 0.9


def test_parameters_are_averaged_and_buffers_are_not():
    student = network()
    teacher = Teacher(student)
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    with torch.no_grad():
        for value in (*student.parameters(), *student.buffers()):
            value += 1
    teacher.update(student, 1)
    buffers = dict(student.named_buffers())
    for name, value in teacher.network.state_dict().items():
        expected = before[name] if name in buffers else before[name] + 0.5
        torch.testing.assert_close(value, expected, msg=name)
    assert {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"} == set(buffers)


def test_a_teacher_may_lack_parts_of_the_student():
    student = nn.ModuleDict({"shared": nn.Linear(2, 2), "pose": nn.Linear(2, 2)})
    teacher = Teacher(nn.ModuleDict({"shared": student["shared"]}))
    nn.init.constant_(teacher.network["shared"].weight, 0.0)
    teacher.update(student, 1)
    torch.testing.assert_close(teacher.network["shared"].weight, student["shared"].weight.detach() / 2)


def test_the_teacher_never_trains_and_the_optimiser_does_not_know_it():
    method = method_of(network(), **DEPTHMIX).train()
    method.training_step(batch(), 0)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    held = {id(p) for g in method.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in method.student.parameters()}
    assert not held & {id(p) for p in method.teacher.parameters()}


def test_the_teacher_runs_in_training_mode_with_dropout(tmp_path):
    """ASPP dropout and batch statistics are active while it makes the labels; no fixture can show it (section 8)."""
    torch.manual_seed(0)
    student = build_segmentation_net(3, "tf_efficientnet_lite0", channels=(4, 4, 8, 8, 8), layers=(8,), output_stride=2)
    method = method_of(student, **DEPTHMIX)
    (dropout,) = [m for m in method.teacher.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    kept = []
    dropout.register_forward_hook(lambda module, inputs, out: kept.append((out == 0) & (inputs[0] != 0)))
    data = batch(2, (32, 64))
    statistics = [m for m in method.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in statistics]
    labels = []
    losses = fit(
        method, [Fixed("labelled", lambda k: data["labelled"]), Fixed("unlabelled", lambda k: data["unlabelled"])],
        iterations=2, seed=1, runtime=Runtime(1, device="cpu"), work=tmp_path, key="key", evaluate_every=1,
        evaluate=lambda m: labels.append(m.teacher.training) or {},  # the loop's evaluation mode does not last
    )  # fmt: skip
    assert len(losses) == 2 and labels == [False, False]
    assert len(kept) == 2 and all(float(k.float().mean()) > 0.1 for k in kept)
    assert not torch.equal(*kept), "each step drops the same"
    assert all(not torch.equal(m.running_mean, b) for m, b in zip(statistics, before, strict=True))


def test_what_is_predicted_is_the_students():
    method = method_of(network(), lr=0.1, **DEPTHMIX).train()
    for step in range(3):
        method.training_step(batch(), step)
    method.eval()
    image = batch()["labelled"]["image"] / 255
    assert torch.equal(method.predict(image), method.student(image))
    assert not torch.allclose(method.predict(image), method.teacher(image), rtol=1e-2)


def test_the_students_statistics_see_the_labelled_and_the_mixed_batch_the_teachers_the_unlabelled_one():
    data = batch()
    data["labelled"]["image"] = data["labelled"]["image"] // 3
    method = method_of(network(), **DEPTHMIX, jitter=0.0, blur=0.0).train()
    method.training_step(data, 0)
    assert int(method.student.bn.num_batches_tracked) == 2 and int(method.teacher.network.bn.num_batches_tracked) == 1
    start = network()
    start(data["unlabelled"]["image"] / 255)
    torch.testing.assert_close(method.teacher.network.bn.running_mean, start.bn.running_mean)


def test_the_mix_alone_is_augmented():
    """The teacher sees the frames as they are; the labels are mixed, not augmented."""
    data = batch()["unlabelled"]
    method = method_of(network(), jitter=1.0, blur=1.0, **DEPTHMIX).train()
    seen = []
    method.teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.training_step(batch(), 0)
    labelled, clean, augmented = seen
    assert torch.equal(clean, data["image"] / 255) and torch.equal(labelled, batch()["labelled"]["image"] / 255)
    mixed, _, _ = method.mixed(data, 0)
    assert mixed.dtype == torch.uint8
    assert torch.equal(augmented, strong_augment(mixed / 255, 1, 0, 1.0, 0.25, 1.0))
    assert not torch.allclose(augmented, mixed / 255, atol=0.05)


class Online(PseudoLabelMethod):
    """The masks come from a disparity that the student makes in the same step, as a multi-task network does."""

    def mixed(self, unlabelled, step):
        assert "disparity" not in unlabelled
        disparity = torch.relu(self.student.bn(self.student.enc(unlabelled["image"] / 255)))[:, :1]
        assert disparity.requires_grad
        return super().mixed(unlabelled | {"disparity": normalise_per_image(disparity)}, step)


def test_disparity_can_be_made_online():
    data = batch(3)
    given = data["unlabelled"].pop("disparity")
    method = Online(network(), options(**DEPTHMIX), training(), Runtime(1, device="cpu"), 1).train()
    images, _, _ = method.mixed(data["unlabelled"], 0)
    disparity = torch.relu(network().bn(network().enc(data["unlabelled"]["image"] / 255)))[:, 0].detach()
    disparity = torch.stack([(d - d.min()) / (d.max() - d.min()) for d in disparity])
    for i in range(3):
        own = disparity[i] >= disparity[(i + 1) % 3] - 0.03
        expected = torch.where(own, data["unlabelled"]["image"][i], data["unlabelled"]["image"][(i + 1) % 3])
        assert torch.equal(images[i], expected) and own.any() and not own.all()
    assert not torch.equal(depthmix_mask(given, 0.03), depthmix_mask(disparity, 0.03))
    assert float(method.training_step(data, 0)["pseudo_label"]) > 0


# ---- resuming


ITERATIONS = 60


class Stopping(PseudoLabelMethod):
    stop = ()

    def training_step(self, batch, step):
        assert step >= self.first
        losses = super().training_step(batch, step)
        if step in self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, write_prepared(folder, size=(24, 16), disparity=True)


RUNS = {
    "mean teacher": {"mask": "none", "frames": "video"},
    "ClassMix": {"mask": "class"},
    "DepthMix": DEPTHMIX | WITH_TRUTH | {"foreground": [0.0, 0.6]},
}


def run(prepared, work, changes, stop=(), first=0, workers=0, seed=1):
    folder, index = prepared
    labelled = index.select("train")[:3]
    settings = options(schedule="poly", confidence=0.5, **changes)
    method = Stopping(
        network(dropout=0.3), settings, training(iterations=ITERATIONS, batch_size=3), Runtime(1, device="cpu"), seed
    )
    method.stop, method.first = stop, first
    store = FrameStore(disparity=folder / "data/disparity")
    window = (16, 16), 0.5, (0.9, 1.5)
    names = [f.frame for f in labelled] if settings.ground_truth else None
    streams = [
        Stream("labelled", labelled, 3, seed, LabelledSamples(store, *window)),
        Stream(
            "unlabelled", frames_to_mix(index, labelled, settings.frames), 3, seed,
            MixSamples(store, *window, disparity=settings.disparity, labelled=names),
        ),
    ]  # fmt: skip
    history = fit(
        method, streams, iterations=ITERATIONS, seed=seed, runtime=Runtime(1, device="cpu"), work=work, key="key",
        workers=workers, evaluate=lambda m: {"value": float(m.predict(rand((1, 3, 8, 8), 1)).std())}, evaluate_every=7,
    )  # fmt: skip
    return method, history


def everything(method):
    state = dict(method.state_dict())
    for number, values in method.optimizer.state_dict()["state"].items():
        state |= {f"optimizer {number} {k}": v for k, v in values.items() if v is not None}
    return state


@pytest.mark.parametrize("name", RUNS)
def test_resuming_is_bit_identical_with_a_teacher(prepared, tmp_path, name):
    whole, history = run(prepared, tmp_path / "whole", RUNS[name])
    state = everything(whole)
    assert any(k.startswith("teacher.network.") for k in state)
    assert not torch.equal(whole.teacher.network.head.weight, whole.student.head.weight)
    assert all(row["confident"] > 0 for row in history if "confident" in row), "the teacher has no say"
    for stops in ((0,), (1,), (30, 31, 58), (12, 40)):
        work, first = tmp_path / "-".join(map(str, stops)), 0
        for stop in stops:
            with pytest.raises(SystemExit):
                run(prepared, work, RUNS[name], (stop,), first)
            first = stop + 1
            assert load_resume(work / "resume.safetensors")["step"] == first
        resumed, again = run(prepared, work, RUNS[name], first=first)
        assert again == history
        found = everything(resumed)
        assert found.keys() == state.keys()
        assert not [k for k in state if not torch.equal(state[k], found[k])]
        for a, b in zip(resumed.teacher.parameters(), whole.teacher.parameters(), strict=True):
            assert a.stride() == b.stride(), "another layout takes other kernels"


def test_workers_and_other_draws_change_nothing_but_the_seed_does(prepared, tmp_path):
    whole, history = run(prepared, tmp_path / "a", RUNS["DepthMix"])
    torch.manual_seed(5)
    np.random.seed(5)
    other, again = run(prepared, tmp_path / "b", RUNS["DepthMix"], workers=1)
    assert again == history
    assert all(torch.equal(v, everything(other)[k]) for k, v in everything(whole).items())
    assert run(prepared, tmp_path / "c", RUNS["DepthMix"], seed=2)[1] != history


# ---- samples


def test_samples_have_the_windows_of_those_without_disparity(prepared):
    folder, index = prepared
    store = FrameStore(disparity=folder / "data/disparity")
    frame = index.select("train")[0]
    window = (16, 12), 0.5, (0.4, 1.5)  # smaller than the crop at times, so padded
    for seed in range(6):
        plain = UnlabelledSamples(store, *window)(frame, np.random.default_rng(seed))
        rich = MixSamples(store, *window, disparity=True, labelled=[frame.frame])(frame, np.random.default_rng(seed))
        labelled = LabelledSamples(store, *window)(frame, np.random.default_rng(seed))
        assert np.array_equal(plain["image"], rich["image"])
        assert np.array_equal(labelled["label"], rich["label"]) and rich["labelled"]
        assert rich["disparity"].shape == (12, 16) and rich["disparity"].dtype == np.float32
        assert MixSamples(store, *window)(frame, np.random.default_rng(seed)).keys() == {"image"}


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.6, 1.6)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_disparity_moves_with_the_picture_and_keeps_its_values(tmp_path, scale, flip):
    """A picture whose brightness is its disparity, also where the disparity was kept at half the size."""
    import cv2

    index = write_prepared(tmp_path, size=(64, 32), disparity=True)
    frame = index.select("train")[0]
    y, x = np.mgrid[:32, :64] / (31, 63)[0]
    ramp = (x * 31 / 63 * 0.7 + y * 0.3).astype(np.float32)
    cv2.imwrite(str(frame.image), np.repeat(np.rint(ramp * 255)[..., None], 3, 2).astype(np.uint8))
    store = FrameStore(disparity=tmp_path / "data/disparity")
    for disparity in (ramp, cv2.resize(ramp, (32, 16), interpolation=cv2.INTER_AREA)):
        write_disparity(tmp_path / f"data/disparity/train/{frame.frame}.png", disparity)
        store = FrameStore(disparity=tmp_path / "data/disparity")
        sample = MixSamples(store, (48, 24), flip, scale, disparity=True)(frame, np.random.default_rng(4))
        difference = np.abs(sample["disparity"] - sample["image"][0] / 255.0)
        assert difference.max() < 0.03
        assert Window((64, 32), (48, 24), np.random.default_rng(4), flip, scale).flip == bool(flip)
        assert np.sign(np.diff(sample["disparity"], axis=1).mean()) == (-1 if flip else 1)


def test_masks_outside_the_labelled_subset_are_never_read(tmp_path):
    index = write_prepared(tmp_path, size=(24, 16), disparity=True)
    inside, outside = index.select("train")[:2]
    outside.label.write_bytes(b"no picture")
    store = FrameStore(disparity=tmp_path / "data/disparity")
    samples = MixSamples(store, (16, 16), 0.0, labelled=[inside.frame])
    stream = Stream("unlabelled", [inside, outside], 2, 1, samples)
    found = stream[0]
    assert found["label"].dtype == torch.uint8 and found["labelled"].dtype == torch.bool
    order = [[inside, outside][i].frame for i in stream.order(0)]
    for name, label, known in zip(order, found["label"], found["labelled"], strict=True):
        assert bool(known) == (name == inside.frame)
        assert bool((label == VOID).all()) == (name == outside.frame)


@pytest.fixture
def half_annotated(tmp_path):
    return write_prepared(tmp_path, train=(4, 5), unlabelled=3)


def test_which_frames_mix(half_annotated):
    index = half_annotated
    train, annotated = index.select("train"), index.select("train", labelled=True)
    labelled = annotated[1:3]
    assert len(train) == 9 and len(annotated) == 6
    found = {which: frames_to_mix(index, labelled, which) for which in ("unlabelled", "all", "labelled", "video")}
    assert found["unlabelled"] == [annotated[0], *annotated[3:]]
    assert found["all"] == annotated
    assert found["labelled"] == labelled
    # 28 of 30 frames per snippet in Cityscapes: each snippet's ends drop out
    assert [f.frame for f in found["video"]] == [
        "train0_01", "train0_02", "train1_01", "train1_02", "train1_03"
    ]  # fmt: skip


def test_nothing_to_mix_is_one_line(half_annotated):
    index = half_annotated
    annotated = index.select("train", labelled=True)
    with pytest.raises(UserError, match="frames: unlabelled: all annotated training frames are labelled in this run"):
        frames_to_mix(index, annotated, "unlabelled")
    apart = Index([f for f in index.frames if f.position % 2 == 0])
    with pytest.raises(UserError, match="frames: video: no training frame has both neighbours"):
        frames_to_mix(apart, annotated, "video")
    with pytest.raises(UserError, match="no frames 'every' to mix; choose one of unlabelled, all, labelled, video"):
        frames_to_mix(index, annotated, "every")


# ---- options


@pytest.mark.parametrize("mask", ["none", "class", "depth", "depthhist"])
def test_margins_belong_to_depthmix(mask):
    assert options(mask=mask).disparity == mask.startswith("depth") and options(**DEPTHMIX).disparity
    for wrong in ({"margin": 0.03}, {"foreground": [0, 0]}):
        with pytest.raises(ValidationError, match=f"belong to mask depthmix; set both to null for mask {mask}"):
            options(mask=mask, **wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (DEPTHMIX | {"margin": None}, "depthmix needs margin and foreground"),
        (DEPTHMIX | {"foreground": None}, "depthmix needs margin and foreground"),
        (DEPTHMIX | {"foreground": [0.5, 0.2]}, "the smaller number comes first"),
        (DEPTHMIX | {"foreground": [0.5, 1.2]}, "foreground"),
        ({"ground_truth": True}, "frames unlabelled have none; set frames to all or labelled"),
        ({"ground_truth": True, "frames": "video"}, "frames video have none"),
        ({"mask": "classmix"}, "mask"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
    ids=str,
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


def test_a_batch_of_one_has_no_partner():
    with pytest.raises(UserError, match=r"`train\.batch_size` 1 leaves mask class nothing to mix; raise it to 2"):
        method_of(network(), train=training(batch_size=1), mask="class")
    method_of(network(), train=training(batch_size=1), mask="none")


def test_a_stream_without_disparity_is_one_line():
    data = batch()
    del data["unlabelled"]["disparity"]
    with pytest.raises(UserError, match="the unlabelled stream carries no disparity"):
        method_of(network(), **DEPTHMIX).train().training_step(data, 0)
