"""Multi-task training: its step against section 10 written out, its samples, resuming, its stage, bad input."""

import copy
import dataclasses
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
from semivid.data.index import VOID, Index, read_cameras, read_index, write_index
from semivid.data.mix_samples import MixSamples, frames_to_mix
from semivid.data.neighbour_samples import NeighbourSamples, check_video, frames_with_neighbours
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, Window
from semivid.data.strong import strong_augment
from semivid.depth.losses import monodepth_loss
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.methods.mixing import draw_mask
from semivid.methods.multitask import MultitaskTraining, build
from semivid.models.checkpoints import read_state, save_parts
from semivid.models.multitask import MultitaskDecoder, MultitaskNet, TaskDecoder, build_multitask_net
from semivid.models.pose import PoseNet
from semivid.pipeline.params import Multitask, MultitaskMethod, Train
from semivid.pipeline.stage import Stage
from semivid.training.loop import fit
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
        net.mtl_decoder.seg_final_head[0].weight *= 20  # else no pixel is sure of anything
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
        values |= {"pseudo_label": pseudo, "confident": w}
        logged.append({k: float(v) for k, v in values.items()} | {"norm": norm, "kept": kept})
    return logged


def opened(samples):
    before, after = (samples["neighbours"][:, i] / 255 for i in range(2))
    return samples["image"] / 255, {-1: before, 1: after}, samples["label"].long(), samples["k"]


STEPS = [
    {},
    {**WITH_TRUTH, "confidence": 0.8, "auto_mask": False, "foreground": [0.4, 0.4]},
    {"depth_weight": 3.0, "segmentation_weight": 0.4, "consistency_weight": 0.7, "min_depth": 0.5, "max_depth": 20.0},
    {"clip": 0.3, "ema_decay": 0.6},
    {"mask": "class", **OTHER_MASK},
    {"mask": "none", **OTHER_MASK},
]


@pytest.mark.parametrize("changes", STEPS, ids=str)
@pytest.mark.parametrize("parts", [{}, {"batch_norm": True, "aspp": (1, 2)}], ids=["plain", "aspp"])
def test_a_step_is_what_the_paper_says(changes, parts):
    changes = {"clip": 0.0, "confidence": 0.9} | changes
    data, count = batch(), 3
    start, net = network(**parts), network(**parts)
    teacher = copy.deepcopy(net)
    expected = written_out(net, teacher, data, 5, count, options(**changes))
    method = method_of(network(**parts), **changes).train()
    found = []
    for step in range(count):
        torch.manual_seed(step)
        found.append(method.training_step(data, step))
    for theirs, ours in zip(expected, found, strict=True):
        assert {k: float(v) for k, v in ours.items()} == pytest.approx({k: theirs[k] for k in ours}, rel=2e-5)
        assert not any(v.requires_grad for v in ours.values())
    for (name, ours), theirs in zip(method.student.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=name)
    for (name, ours), theirs in zip(method.student.named_buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
    theirs = dict(teacher.named_parameters())
    for name, ours in method.teacher.network.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
    # nothing of the above is so by chance
    for part in ("encoder", "mtl_decoder", "pose_net"):
        pairs = list(zip(getattr(start, part).parameters(), getattr(net, part).parameters(), strict=True))
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-4, part
    assert all(0 < row["confident"] < 1 for row in expected), "all or no pixels are confident"
    assert all((row["kept"] == 1) == (changes.get("mask") == "none") and row["kept"] > 0 for row in expected)
    if changes["clip"]:
        assert min(row["norm"] for row in expected) > 2 * changes["clip"], "the limit never acts"
