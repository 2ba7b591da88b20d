"""Multi-task training: its step against section 10 written out, its samples, resuming, its stage, bad input."""

import copy
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from helpers import rand
from semivid.data.index import VOID, Camera, Index, read_cameras
from semivid.data.mix_samples import MixSamples, frames_to_mix
from semivid.data.neighbour_samples import NeighbourSamples, check_video, frames_with_neighbours
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, Window
from semivid.data.strong import strong_augment
from semivid.depth.losses import monodepth_loss
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.methods import multitask, pseudo_label
from semivid.methods.mixing import draw_mask
from semivid.methods.multitask import MultitaskTraining
from semivid.models.checkpoints import read_state, save_parts
from semivid.models.multitask import MultitaskDecoder, MultitaskNet, TaskDecoder, build_multitask_net
from semivid.models.pose import PoseNet
from semivid.pipeline.params import DepthNetwork, Multitask, MultitaskMethod, Train
from semivid.pipeline.stage import Stage
from semivid.training.loop import fit
from semivid.training.optim import set_rates
from semivid.training.resume import load_resume
from semivid.training.rng import generator, torch_seed
from semivid.training.runtime import Runtime
from small import small_params, write_prepared
from train_multitask import main as train_multitask

OPTIONS = {
    "method": "multitask", "optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "pose_lr": 1e-3, "weight_decay": 5e-4,
    "schedule": "constant", "milestones": [], "clip": 10.0, "mask": "depthmix", "margin": 0.03,
    "foreground": [0.0, 0.0], "frames": "unlabelled", "ground_truth": False, "consistency_weight": 1.0,
    "confidence": 0.968, "ema_decay": 0.99, "jitter": 0.8, "jitter_strength": 0.25, "blur": 0.5, "depth_weight": 1.0,
    "segmentation_weight": 1.0, "min_depth": 0.1, "max_depth": 100.0, "auto_mask": True, "intrinsics": "correct",
    "mixed_pass": "full",
}  # fmt: skip
OTHER_MASK = {"margin": None, "foreground": None}
WITH_TRUTH = {"frames": "all", "ground_truth": True}
SIZE = (32, 48)  # rows, columns
CLASSES = 3


def options(**changes):
    return MultitaskMethod(**(OPTIONS | changes))


def training(**changes):
    return Train(**(small_params()["train"] | changes))


class Encoder(nn.Module):
    """Five maps of a few channels, with batch normalisation."""

    channels, strides = (4, 4, 6, 6, 8), (2, 4, 8, 16, 16)

    def __init__(self, frames=1):
        super().__init__()
        widths, steps = (3 * frames, *self.channels), (2, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, step, 1) for a, b, step in zip(widths, self.channels, steps, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in self.channels)

    def forward(self, x):
        maps = [x - 0.5]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(torch.relu(norm(conv(maps[-1]))))
        return maps[1:]


def network(batch_norm=False, aspp=()):
    torch.manual_seed(2)
    decoders = [TaskDecoder(Encoder.channels, Encoder.strides, (4, 5, 6, 7, 8), batch_norm, aspp) for _ in range(2)]
    net = MultitaskNet(Encoder(), MultitaskDecoder(*decoders, CLASSES), PoseNet(Encoder(2)))
    with torch.no_grad():
        net.mtl_decoder.seg_final_head[0].weight *= 80  # else no pixel is sure of anything
        net.mtl_decoder.depth_dec.decoder[-4].conv.weight *= 5  # and disparities are all alike
        net.pose_net.pose.net[3].weight *= 20
    return net


def batch(count=2, seed=0):
    """Video that moves by a few pixels, so that warping can win."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    streams = {}
    for name in ("labelled", "unlabelled"):
        scenes = rng.integers(0, 256, (count, 3, height // 4, width // 4 + 4)).astype(np.uint8)
        scenes = scenes.repeat(4, 2).repeat(4, 3)
        views = [torch.from_numpy(scenes[..., x : x + width].copy()) for x in (4, 3, 6)]
        label = torch.from_numpy(rng.integers(0, CLASSES, (count, height, width)).astype(np.uint8))
        label[:, :2] = VOID
        known = torch.arange(count) % 2 == 0
        if name == "unlabelled":
            label[~known] = VOID
        k = torch.tensor([[60.0, 0, width / 2], [0, 60, height / 2], [0, 0, 1]]).repeat(count, 1, 1)
        k[:, 0, 2] += torch.arange(count)
        streams[name] = {
            "image": views[0], "neighbours": torch.stack(views[1:], 1), "k": k, "label": label, "labelled": known,
        }  # fmt: skip
    return streams


def method_of(net, seed=5, train=None, kind=MultitaskTraining, **changes):
    return kind(net, options(**changes), train or training(), Runtime(1, device="cpu"), seed)


# ---- the step


def written_out(net, teacher, data, seed, steps, o):
    """Section 10 as it stands, and sections 8 and 9 where it refers to them: image by image, four backward calls."""
    optimizer = torch.optim.SGD(
        [
            {"params": net.encoder.parameters(), "lr": o.encoder_lr},
            {"params": net.mtl_decoder.parameters(), "lr": o.lr},
            {"params": net.pose_net.parameters(), "lr": o.pose_lr},
        ],
        momentum=0.9,
        weight_decay=o.weight_decay,
    )
    logged = []
    for step in range(steps):
        torch.manual_seed(step)

        def depth_loss(out, x, around, k, stream, step=step):
            noise = torch.Generator().manual_seed(torch_seed(seed, "auto-mask noise", stream, step))
            return monodepth_loss(out.disp, x, around, out.transforms, k, o.auto_mask, noise, o.min_depth, o.max_depth)

        optimizer.zero_grad()
        x, around, y, k = opened(data["labelled"])
        out = net.outputs(x, around)
        depth = o.depth_weight * depth_loss(out, x, around, k, "labelled")["loss"]
        depth.backward(retain_graph=True)
        side = F.interpolate(out.side_logits, SIZE, mode="bilinear", align_corners=True)
        both = F.cross_entropy(out.logits, y, ignore_index=VOID) + F.cross_entropy(side, y, ignore_index=VOID)
        supervised = o.segmentation_weight * both / 2
        supervised.backward()

        x, around, y, k = opened(data["unlabelled"])
        out = net.outputs(x, around)
        unlabelled_depth = o.depth_weight * depth_loss(out, x, around, k, "unlabelled")["loss"]
        unlabelled_depth.backward()
        disparity = [(d - d.min()) / (d.max() - d.min()) for d in out.disp[0][:, 0].detach()]

        with torch.no_grad():
            p = teacher.outputs(x, around).logits.softmax(1)  # the whole network: its pose and disparity go nowhere
        count = len(p)
        if o.ground_truth:
            for i in range(count):
                if data["unlabelled"]["labelled"][i]:
                    p[i] = F.one_hot(y[i].clamp(max=CLASSES), CLASSES + 1).permute(2, 0, 1)[:CLASSES]
        if o.mask == "depthmix":
            m, t = o.margin, o.foreground[0]
            masks = [(disparity[i] >= disparity[(i + 1) % count] - m) & (disparity[i] >= t) for i in range(count)]
        else:
            masks = draw_mask(o.mask, p.argmax(1), CLASSES, torch.stack(disparity), generator(seed, "mask", step))
        mixed, mixed_p = torch.empty_like(x), torch.empty_like(p)
        for i in range(count):
            m, j = masks[i].float(), (i + 1) % count
            mixed[i], mixed_p[i] = m * x[i] + (1 - m) * x[j], m * p[i] + (1 - m) * p[j]
        seen = strong_augment(mixed, seed, step, o.jitter, o.jitter_strength, o.blur)
        largest, label = mixed_p.max(1)
        label[largest == 0] = VOID
        w = float((largest >= o.confidence).sum()) / largest.numel()
        losses = F.cross_entropy(net.outputs(seen, around).logits, label, ignore_index=VOID, reduction="none")
        pseudo = o.consistency_weight * (w * losses).sum() / losses.numel()
        pseudo.backward()

        norm = float(nn.utils.clip_grad_norm_(net.parameters(), o.clip or 1e9))
        optimizer.step()
        a = min(1 - 1 / (step + 2), o.ema_decay)
        with torch.no_grad():
            for part in ("encoder", "mtl_decoder"):
                pairs = zip(getattr(teacher, part).parameters(), getattr(net, part).parameters(), strict=True)
                for old, new in pairs:
                    old.copy_(a * old + (1 - a) * new)
        kept = float(torch.stack([m.float() for m in masks]).mean())
        values = {"cross_entropy": supervised, "depth": depth, "unlabelled_depth": unlabelled_depth}
        values = {k: v.item() for k, v in (values | {"pseudo_label": pseudo}).items()}
        logged.append(values | {"confident": w, "norm": norm, "kept": kept})
    return logged


def opened(samples):
    before, after = (samples["neighbours"][:, i].double() / 255 for i in range(2))
    return samples["image"].double() / 255, {-1: before, 1: after}, samples["label"].long(), samples["k"]


STEPS = [
    {},
    {**WITH_TRUTH, "confidence": 0.8, "auto_mask": False, "foreground": [0.4, 0.4]},
    {"depth_weight": 3.0, "segmentation_weight": 0.4, "consistency_weight": 0.7, "min_depth": 0.5, "max_depth": 20.0},
    {"clip": 0.3, "ema_decay": 0.6},
    {"mask": "class", **OTHER_MASK},
    {"mask": "none", **OTHER_MASK},
]


@pytest.fixture
def double(monkeypatch):
    """Steps in double precision, in which rounding cannot grow to what an error would look like."""
    for module in (pseudo_label, multitask):
        monkeypatch.setattr(module, "as_float", lambda image: image.double() / 255)


@pytest.mark.parametrize(
    ("changes", "parts"), [*((c, {}) for c in STEPS), *((c, {"batch_norm": True, "aspp": (1, 2)}) for c in STEPS[:3])]
)
def test_a_step_is_what_the_paper_says(double, changes, parts):
    changes = {"clip": 0.0, "confidence": 0.9} | changes
    data, count = batch(3 if parts else 2), 3
    start, net = network(**parts).double(), network(**parts).double()
    teacher = copy.deepcopy(net)
    expected = written_out(net, teacher, data, 5, count, options(**changes))
    method = method_of(network(**parts).double(), **changes).train()
    found = []
    for step in range(count):
        torch.manual_seed(step)
        found.append(method.training_step(data, step))
    for step, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        assert ours.keys() == theirs.keys() - {"norm", "kept"}
        for name, value in ours.items():
            # The share is kept in single precision, and so is what has been learnt by it; noise counts 1e-5 of a pixel.
            rounding = 1e-6 if step or name in ("confident", "pseudo_label") else 1e-10
            assert float(value) == pytest.approx(theirs[name], rel=rounding), name
        assert not any(v.requires_grad for v in ours.values())
    for (name, ours), theirs in zip(method.student.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    for (name, ours), theirs in zip(method.student.named_buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    theirs = dict(teacher.named_parameters())
    for name, ours in method.teacher.network.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    # nothing of the above is so by chance
    for part in ("encoder", "mtl_decoder", "pose_net"):
        pairs = list(zip(getattr(start, part).parameters(), getattr(net, part).parameters(), strict=True))
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-5, part
    assert all(0 < row["confident"] < 1 for row in expected), "all or no pixels are confident"
    assert all((row["kept"] == 1) == (changes.get("mask") == "none") and row["kept"] > 0 for row in expected)
    if changes["clip"]:
        assert min(row["norm"] for row in expected) > 2 * changes["clip"], "the limit never acts"


def test_each_group_has_a_rate_of_its_own():
    """The pose network has a rate of its own, and all follow the schedule."""
    net = network()
    method = method_of(net, encoder_lr=2e-3, lr=3e-2, pose_lr=1e-6, schedule="step", milestones=[4])
    groups = method.optimizer.param_groups
    assert [g["lr"] for g in groups] == [2e-3, 3e-2, 1e-6]
    for group, part in zip(groups, (net.encoder, net.mtl_decoder, net.pose_net), strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in part.parameters()}
    set_rates(method.optimizer, method.rate(4))
    assert [g["lr"] for g in groups] == pytest.approx([2e-4, 3e-3, 1e-7])


class Watched(MultitaskTraining):
    """Keeps what the masks are made from."""

    def mixed(self, unlabelled, step):
        self.given = unlabelled
        self.result = super().mixed(unlabelled, step)
        return self.result


def test_frames_are_mixed_by_the_disparity_of_the_same_step():
    """That of the student on the clean frames, scaled within each crop, without a gradient."""
    data = batch(3)
    method = method_of(network(), kind=Watched).train()
    same = network().train()
    method.training_step(data, 0)
    disparity = method.given["disparity"]
    assert not disparity.requires_grad and disparity.shape == (3, *SIZE)
    assert "disparity" not in data["unlabelled"]

    # The weights have not moved yet; statistics have, but training mode does not read them.
    with torch.no_grad():
        clean = same.outputs(data["unlabelled"]["image"] / 255).disp[0][:, 0]
    assert len({round(float(d.min()), 4) for d in clean}) == 3, "crops share their limits"
    for i, d in enumerate(clean):
        torch.testing.assert_close(disparity[i], (d - d.min()) / (d.max() - d.min()), rtol=1e-4, atol=1e-4)
    images, _, _ = method.result
    for i in range(3):
        own = disparity[i] >= disparity[(i + 1) % 3] - 0.03
        pictures = data["unlabelled"]["image"]
        assert torch.equal(images[i], torch.where(own, pictures[i], pictures[(i + 1) % 3])) and own.float().mean() > 0.1
        assert own.float().mean() < 0.9


@pytest.mark.parametrize("mixed_pass", ["full", "segmentation"])
def test_what_each_network_sees_and_in_which_order(mixed_pass):
    """Three batches for the student's statistics, one for the teacher's (section 10)."""
    data = batch()
    method = method_of(network(), mixed_pass=mixed_pass, jitter=1.0, kind=Watched).train()
    seen = []
    for name, part in (
        ("student", method.student.encoder),
        ("teacher", method.teacher.network.encoder),
        ("pose", method.student.pose_net.pose_encoder),
    ):
        part.register_forward_pre_hook(lambda module, inputs, name=name: seen.append((name, inputs[0].detach())))
    method.training_step(data, 0)
    labelled, unlabelled = ({"now": d["image"] / 255, "then": d["neighbours"] / 255} for d in data.values())
    mix = strong_augment(method.result[0] / 255, 5, 0, 1.0, 0.25, 0.5)
    assert not torch.allclose(mix, unlabelled["now"], atol=0.1)

    def pairs(now, then):  # in the order of time
        return [("pose", torch.cat(pair, 1)) for pair in ((then[:, 0], now), (now, then[:, 1]))]

    expected = [("student", labelled["now"]), *pairs(**labelled), ("student", unlabelled["now"]), *pairs(**unlabelled)]
    expected += [("teacher", unlabelled["now"]), ("student", mix)]
    if mixed_pass == "full":
        expected += pairs(mix, unlabelled["then"])
    assert [name for name, _ in seen] == [name for name, _ in expected]
    for (_, found), (_, wanted) in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_rest_of_the_full_mixed_pass_moves_statistics_alone():
    parts = {"batch_norm": True, "aspp": (1,)}
    full, less = (method_of(network(**parts), mixed_pass=kind).train() for kind in ("full", "segmentation"))
    for method in (full, less):
        for step in range(2):
            torch.manual_seed(step)
            method.training_step(batch(), step)
    for a, b in zip(full.parameters(), less.parameters(), strict=True):
        assert torch.equal(a, b)
    differ = {k for k, v in full.state_dict().items() if not torch.equal(v, less.state_dict()[k])}
    # The pose network's, and those of the depth decoder beyond the exchange (levels 1 and 0).
    places = [f"student.mtl_decoder.depth_dec.decoder.{i}." for i in (9, 11, 12, 13)] + ["student.pose_net."]
    assert differ and all(any(k.startswith(place) for k in differ) for place in places)
    assert all(any(k.startswith(place) for place in places) for k in differ)


def test_the_teacher_has_no_pose_and_the_students_weights_are_evaluated():
    method = method_of(network(), lr=0.1, encoder_lr=0.1).train()
    teacher = method.teacher.network
    assert teacher.pose_net is None
    own = dict(method.student.named_parameters())
    assert all(torch.equal(p, own[name]) and p is not own[name] for name, p in teacher.named_parameters())
    for step in range(2):
        method.training_step(batch(), step)
    assert all(p.grad is None for p in teacher.parameters())
    method.eval()
    image = batch()["labelled"]["image"] / 255
    assert torch.equal(method.predict(image), method.student(image))
    assert not torch.allclose(method.predict(image), teacher(image), rtol=1e-2)


def test_half_precision_learns_the_same():
    losses = []
    for precision in ("float32", "bfloat16"):
        method = MultitaskTraining(network(), options(), training(), Runtime(1, precision, "cpu"), 5).train()
        losses.append({k: float(v) for k, v in method.training_step(batch(), 0).items()})
        assert all(p.dtype == torch.float32 for p in method.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]


# ---- resuming

ITERATIONS = 9


class Stopping(MultitaskTraining):
    def training_step(self, batch, step):
        assert step >= self.first
        losses = super().training_step(batch, step)
        if step in self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return folder, write_prepared(folder, size=(64, 40))


def run(prepared, work, stop=(), first=0, seed=1):
    folder, index = prepared
    labelled = frames_with_neighbours(index, index.select("train"))[:3]
    train = training(iterations=ITERATIONS)
    changes = WITH_TRUTH | {"schedule": "poly", "confidence": 0.5}
    method = method_of(network(aspp=(1, 2)), seed, train, Stopping, **changes)
    method.stop, method.first = stop, first
    cameras = read_cameras(folder / "data/prepared/cameras.json")
    samples = NeighbourSamples(index, FrameStore(), cameras, (48, 32), 0.5, (0.9, 1.5), labelled=[labelled[0].frame])
    truth = NeighbourSamples(index, FrameStore(), cameras, (48, 32), 0.5, labelled=[f.frame for f in labelled])
    frames = frames_with_neighbours(index, frames_to_mix(index, labelled, method.options.frames))
    streams = [Stream("labelled", labelled, 2, seed, truth), Stream("unlabelled", frames, 2, seed, samples)]
    history = fit(
        method, streams, iterations=ITERATIONS, seed=seed, runtime=Runtime(1, device="cpu"), work=work, key="key",
        evaluate=lambda m: {"value": float(m.predict(rand((1, 3, 32, 32), 1)).std())}, evaluate_every=4,
    )  # fmt: skip
    return method, history


def everything(method):
    state = dict(method.state_dict())
    for number, values in method.optimizer.state_dict()["state"].items():
        state |= {f"optimizer {number} {k}": v for k, v in values.items() if v is not None}
    return state


def test_resuming_is_bit_identical(prepared, tmp_path):
    whole, history = run(prepared, tmp_path / "whole")
    state = everything(whole)
    assert sum(k.startswith("teacher.network.mtl_decoder.") for k in state) > 20
    assert len(whole.optimizer.state_dict()["state"]) > 60
    assert all(row["confident"] > 0 and row["pseudo_label"] > 0 for row in history if "confident" in row)
    for stops in ((0,), (3, 6)):
        work, first = tmp_path / "-".join(map(str, stops)), 0
        for stop in stops:
            with pytest.raises(SystemExit):
                run(prepared, work, (stop,), first)
            first = stop + 1
            assert load_resume(work / "resume.safetensors")["step"] == first
        resumed, again = run(prepared, work, first=first)
        assert again == history
        found = everything(resumed)
        assert found.keys() == state.keys()
        assert not [k for k in state if not torch.equal(state[k], found[k])]
    assert run(prepared, tmp_path / "other", seed=2)[1] != history


# ---- samples


def test_windows_are_those_of_samples_without_neighbours(prepared):
    folder, index = prepared
    cameras, store = read_cameras(folder / "data/prepared/cameras.json"), FrameStore()
    frame = index.by_name["train0_02"]
    window = (48, 32), 0.5, (0.4, 1.5)  # smaller than the crop at times, so padded
    samples = NeighbourSamples(index, store, cameras, *window, labelled=[frame.frame])
    unknown = NeighbourSamples(index, store, cameras, *window, labelled=[])
    flips = set()
    for seed in range(8):
        found = samples(frame, np.random.default_rng(seed))
        plain = LabelledSamples(store, *window)(frame, np.random.default_rng(seed))
        assert np.array_equal(found["image"], plain["image"]) and np.array_equal(found["label"], plain["label"])
        assert found["labelled"] and found["k"].dtype == np.float32 and found["k"].shape == (3, 3)
        for neighbour, name in zip(found["neighbours"], ("train0_01", "train0_03"), strict=True):
            plain = MixSamples(store, *window)(index.by_name[name], np.random.default_rng(seed))
            assert np.array_equal(neighbour, plain["image"])  # the same window, and colours as they are
        hidden = unknown(frame, np.random.default_rng(seed))
        assert (hidden["label"] == VOID).all() and not hidden["labelled"]
        assert np.array_equal(hidden["neighbours"], found["neighbours"])
        flips.add(Window((64, 40), window[0], np.random.default_rng(seed), *window[1:]).flip)
    assert flips == {True, False}
    assert "label" not in NeighbourSamples(index, store, cameras, *window)(frame, np.random.default_rng(0))


def spot(picture):
    """Centre (x, y) of what is bright."""
    weight = picture.astype(float).sum(0)
    rows, columns = np.indices(weight.shape)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def test_intrinsics_follow_the_window(tmp_path):
    """A thing seen in some direction is seen in that direction in every window, mirrored where it is flipped."""
    index = write_prepared(tmp_path, size=(64, 40))
    (camera,) = read_cameras(tmp_path / "data/prepared/cameras.json").values()
    places = {"train0_00": (27, 15), "train0_01": (30, 17), "train0_02": (36, 18)}
    for name, (x, y) in places.items():
        picture = np.zeros((40, 64, 3), np.uint8)
        picture[y - 1 : y + 2, x - 1 : x + 2] = 255
        cv2.imwrite(str(index.by_name[name].image), picture)
    store, frame = FrameStore(), index.by_name["train0_01"]
    checked = {True: 0, False: 0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sample = NeighbourSamples(index, store, {"cam": camera}, (40, 32), 0.5, (1.0, 1.6))(frame, rng)
        window = Window((64, 40), (40, 32), np.random.default_rng(seed), 0.5, (1.0, 1.6))
        before, after = sample["neighbours"]
        views = {"train0_00": before, "train0_01": sample["image"], "train0_02": after}
        for name, view in views.items():
            if view.sum() < 0.95 * 9 * 765 * np.prod(window.resized) / (64 * 40):
                continue  # not wholly inside
            ray = np.linalg.inv(sample["k"]) @ [*spot(view), 1]
            straight = np.linalg.inv(camera.matrix()) @ [*places[name], 1]
            straight[0] *= -1 if window.flip else 1
            # within a pixel: the centre of a pixel is where it is to within half of one
            assert np.abs(ray - straight)[:2] @ [camera.fx, camera.fy] < 1.5, (seed, name)
            checked[window.flip] += 1
    assert min(checked.values()) > 10


def test_reference_intrinsics_are_the_erroneous_ones(prepared):
    """Those of the source size, and a flip mirrors v0 too (section 16, 1 and 2)."""
    _, index = prepared
    camera = Camera.of_source(2262.52, 2265.3, 1096.98, 513.137, 2048, 1024).resized(64, 40)
    frame, flips = index.by_name["train0_01"], set()
    for seed in range(6):
        samples = NeighbourSamples(
            index, FrameStore(), {"cam": camera}, (40, 32), 0.5, intrinsics="reference", labelled=None
        )
        window = Window((64, 40), (40, 32), np.random.default_rng(seed), 0.5)
        u, v = (2048 - 1096.98, 1024 - 513.137) if window.flip else (1096.98, 513.137)
        expected = [[2262.52, 0, u - window.x], [0, 2265.3, v - window.y], [0, 0, 1]]
        np.testing.assert_allclose(samples(frame, np.random.default_rng(seed))["k"], expected, rtol=1e-6)
        flips.add(window.flip)
    assert flips == {True, False}


def test_which_frames_can_be_in_a_stream(tmp_path):
    index = write_prepared(tmp_path, train=(4, 3), val=(3,), unlabelled=2)
    train = index.select("train")
    # Unlabelled frames are neighbours too; a snippet's ends drop out.
    assert [f.frame for f in frames_with_neighbours(index, train)] == ["train0_01", "train0_02", "train1_01"]
    labelled = [f for f in train if f.label]
    assert [f.frame for f in frames_with_neighbours(index, labelled)] == ["train0_01", "train0_02"]
    check_video(index, frames_with_neighbours(index, train), {"cam"})
    with pytest.raises(UserError, match=r"2 of 3 frames lack a neighbour in time \(train0_00, train0_03\)"):
        check_video(index, [train[0], train[1], train[3]], {"cam"}, auto_mask=False)
    check_video(index, [train[0], train[1], train[3]], {"cam"})
    with pytest.raises(UserError, match="2 of 2 frames lack a neighbour"):
        check_video(index, [train[0], train[3]], {"cam"})
    with pytest.raises(UserError, match=r"1 of 1 frames have no camera \(train0_01\); set `data\.camera`"):
        check_video(index, [train[1]], {"another"})
    photographs = Index([f for f in index.frames if f.position % 2 == 0])
    with pytest.raises(UserError, match="none of 4 frames has both neighbours in time"):
        frames_with_neighbours(photographs, photographs.select("train"))


# ---- the stage

SMALL = small_params()
NETWORK = SMALL["depth_network"] | {"distillation_layer": 7, "final_layer": 9}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Prepared frames, a selection and a depth model in the working directory."""
    monkeypatch.chdir(tmp_path)
    index = write_prepared(tmp_path)
    Path("splits/selected").mkdir(parents=True)
    Path("splits/selected/random-7.txt").write_text("train0_01\ntrain1_02\ntrain0_00\n")
    torch.manual_seed(0)
    depth = build_depth_model(**DepthNetwork(**SMALL["depth_network"]).arguments())
    save_parts(depth.parts(), "models/depth_finetune")
    return index, depth


def stage_of(labels=2, train=None, **changes):
    params = {
        "depth_model": "models/depth_finetune",
        "frames.size": (64, 32),
        "multitask_network": Multitask(**NETWORK),
        "train": train or training(),
        "methods.pad": options(**changes),
    }
    args = SimpleNamespace(method="pad", selection="random", labels=labels, seed=7)
    return Stage(f"train_multitask@pad-random-{labels}-7", args, params)


def test_the_stage_trains_from_depth(checkout):
    _, depth = checkout
    train_multitask(stage_of(lr=1e-30, encoder_lr=1e-30, pose_lr=1e-30, **WITH_TRUTH))
    net = build_multitask_net(CLASSES, **Multitask(**NETWORK).arguments())
    net.load_state_dict(read_state("models/pad-random-2-7.safetensors"))
    decoders = net.mtl_decoder.depth_dec, net.mtl_decoder.seg_dec
    for ours, theirs in (
        (net.encoder, depth.encoder), *((d, depth.depth) for d in decoders), (net.pose_net, depth.pose_net)
    ):  # fmt: skip
        start = dict(theirs.named_parameters())
        assert all(torch.allclose(p, start[name], rtol=0, atol=1e-20) for name, p in ours.named_parameters())
    running = "encoder.bn1.running_mean"
    assert not torch.equal(net.encoder.state_dict()[running], depth.encoder.state_dict()[running])
    metrics = json.loads(Path("runs/pad-random-2-7/metrics.json").read_text())
    assert {"cross_entropy", "depth", "unlabelled_depth", "pseudo_label", "confident", "val_miou"} <= metrics.keys()
    assert not Path(".work/train_multitask@pad-random-2-7").exists()


@pytest.mark.parametrize("truth", [False, True])
def test_the_stage_shows_the_masks_of_the_labelled_frames_alone(checkout, monkeypatch, truth):
    given = {}

    def record(stage, data, labelled, build, streams, inputs, start, **more):
        given.update(more, labelled=labelled, streams=streams, inputs=inputs)

    monkeypatch.setattr("train_multitask.train", record)
    train_multitask(stage_of(**(WITH_TRUTH if truth else {})))
    assert [f.frame for f in given["labelled"]] == ["train0_01", "train1_02"]
    (stream,) = given["streams"]
    known = {"train0_01", "train1_02"} if truth else set()
    assert {f.frame for f in stream.frames} == known | {"train0_02", "train1_01"}  # those with both neighbours
    rng = np.random.default_rng(0)
    for frame in stream.frames:
        sample = stream._sample(frame, rng)
        assert ("label" in sample) == truth
        assert not truth or bool(sample["labelled"]) == (frame.frame in known)
    assert all(given["labelled_samples"](f, rng)["labelled"] for f in given["labelled"])
    assert given["inputs"] == [Path("splits/selected/random-7.txt"), Path("models/depth_finetune")]


def test_a_run_from_another_depth_model_is_another_run(checkout, monkeypatch):
    seen = []
    monkeypatch.setattr("semivid.training.run.fingerprint", lambda settings, inputs: seen.extend(inputs) or "key")
    monkeypatch.setattr("semivid.training.run.fit", lambda *args, **options: [{"step": 1, "depth": 0.5}])
    train_multitask(stage_of())
    assert {Path("models/depth_finetune"), Path("splits/selected/random-7.txt"), Path("data/prepared")} == set(seen)


def test_a_frame_without_a_neighbour_teaches_no_depth(checkout):
    """Its own picture stands for the neighbour: the auto-mask takes that for a camera at rest."""
    index, _ = checkout
    samples = NeighbourSamples(index, FrameStore(), read_cameras(Path("data/prepared/cameras.json")), (64, 32), 0.0)
    first = samples(index.by_name["train0_00"], generator(0, "a"))
    assert (first["neighbours"][0] == first["image"]).all() and (first["neighbours"][1] != first["image"]).any()
    frames = {0: first["image"], -1: first["neighbours"][0], 1: first["neighbours"][1]}
    frames = {o: torch.from_numpy(f).float()[None] / 255 for o, f in frames.items()}
    disp = {s: rand((1, 1, 32 >> s, 64 >> s), s).requires_grad_() for s in range(4)}
    pose = {o: torch.eye(4)[None].clone() for o in (-1, 1)}
    for o, moved in pose.items():
        moved[0, 0, 3] = 0.3 * o
    k = torch.from_numpy(first["k"])[None]
    with_mask, without = (
        monodepth_loss(disp, frames[0], {o: frames[o] for o in (-1, 1)}, pose, k, automask)["loss"]
        for automask in (True, False)
    )
    # What is left is the gradient of the smoothness, whose weight is 1e-3.
    grad = torch.autograd.grad(with_mask, disp[0], retain_graph=True)[0].abs().sum()
    full = torch.autograd.grad(without, disp[0])[0].abs().sum()
    assert 0 < grad < 0.02 * full, (grad, full)


def test_labelled_frames_without_video_are_one_line(checkout):
    with pytest.raises(UserError, match=r"1 of 3 frames lack a neighbour in time \(train0_00\)") as error:
        train_multitask(stage_of(labels=3, auto_mask=False))
    assert len(str(error.value).splitlines()) == 1 and not Path("models/pad-random-3-7.safetensors").exists()


def test_a_missing_depth_model_is_one_line(checkout):
    for file in Path("models/depth_finetune").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="models/depth_finetune: "):
        train_multitask(stage_of())


# ---- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pseudo_label"}, "method"),
        ({"min_depth": 5.0, "max_depth": 2.0}, "min_depth 5.0 must be smaller than max_depth 2.0"),
        ({"margin": None}, "depthmix needs margin and foreground"),
        ({"ground_truth": True}, "frames unlabelled have none"),
        ({"mixed_pass": "half"}, "mixed_pass"),
        ({"intrinsics": "wrong"}, "intrinsics"),
        ({"depth_weight": 0.0}, "depth_weight"),
        ({"pose_lr": 0.0}, "pose_lr"),
        ({"feature_distance": 1e-2}, "feature_distance"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


def test_contradictions_with_training_are_one_line(prepared):
    _, index = prepared
    with pytest.raises(UserError, match=r"`train\.batch_size` 1 leaves mask depthmix nothing to mix"):
        method_of(network(), train=training(batch_size=1))
    with pytest.raises(UserError, match=r"`train\.scale` \[0\.5, 1\.5\] cannot go with intrinsics: reference"):
        NeighbourSamples(index, FrameStore(), {}, (40, 32), 0.5, (0.5, 1.5), "reference")
