"""Depth learning against the renderer's truth: camera, warp and loss agree with true depth and true motion."""

import json

import cv2
import numpy as np
import pytest
import torch

from semivid.data.street.truth import read_depth, read_poses
from semivid.data.street.write import render_dataset
from semivid.depth.losses import monodepth_loss
from semivid.depth.networks import build_depth_model
from semivid.depth.scores import direction_agreement

NEAREST, FARTHEST = 0.5, 300.0
SKY = 250.0  # metres, where the truth says "none"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The middle frame of every snippet in which the car drives: keyword arguments of `monodepth_loss`."""
    torch.set_num_threads(1)
    raw = tmp_path_factory.mktemp("street") / "raw"
    render_dataset(
        raw, seed=3, size=(192, 96), snippets={"train": 4, "val": 1}, frames_per_snippet=3, annotated=[1], fps=17.0
    )
    found = []
    for path in sorted((raw / "truth/poses/train").rglob("*.json")):
        names, poses = read_poses(path)
        if np.linalg.norm(poses[1, :3, 3] - poses[0, :3, 3]) < 0.1:
            continue
        city = path.stem.split("_")[0]
        stems = [f"{city}/{'_'.join(n.split('_')[:3])}" for n in names]
        colour = [cv2.imread(str(raw / f"leftImg8bit_sequence/train/{s}_leftImg8bit.png"))[..., ::-1] for s in stems]
        before, now, after = (torch.tensor(c.transpose(2, 0, 1)[None] / 255, dtype=torch.float32) for c in colour)
        depth = read_depth(raw / f"truth/depth/train/{stems[1]}_depth.png")
        inverse = torch.tensor(1 / np.where(depth == 0, SKY, depth), dtype=torch.float32)[None, None]
        camera = json.loads((raw / f"camera/train/{stems[1]}_camera.json").read_text())["intrinsic"]
        k = torch.tensor([[camera["fx"], 0, camera["u0"]], [0, camera["fy"], camera["v0"]], [0, 0, 1]])
        found.append(
            {
                "disparities": {0: (inverse - 1 / FARTHEST) / (1 / NEAREST - 1 / FARTHEST)},
                "target": now,
                "sources": {-1: before, 1: after},
                "transforms": {
                    o: torch.tensor(np.linalg.inv(poses[1 + o]) @ poses[1], dtype=torch.float32)[None] for o in (-1, 1)
                },
                "k": k,
                "min_depth": NEAREST,
                "max_depth": FARTHEST,
            }
        )
    assert len(found) >= 2
    return found


def loss(scene, **changes):
    return float(monodepth_loss(**scene | {"automask": False} | changes)["loss/0"])


def test_true_depth_and_motion_explain_the_neighbours(scenes):
    still = {o: torch.eye(4)[None] for o in (-1, 1)}
    for scene in scenes:
        assert loss(scene) < 0.6 * loss(scene, transforms=still)
        assert float(monodepth_loss(**scene)["warped/0"]) > 0.8


def test_a_wrong_depth_or_motion_explains_less(scenes):
    for scene in scenes:
        t = scene["transforms"]
        flat = {0: torch.full_like(scene["disparities"][0], float(scene["disparities"][0].median()))}
        assert loss(scene) < 0.8 * loss(scene, disparities=flat)
        assert loss(scene) < 0.6 * loss(scene, transforms={-1: t[1], 1: t[-1]})


def small_model():
    torch.manual_seed(0)
    model = build_depth_model(
        "tf_efficientnet_lite0", False, channels=[8] * 5, batch_norm=True, aspp=[], pose_encoder="tf_efficientnet_lite0"
    )
    return model.eval()


def test_the_start_is_forward_and_at_the_given_disparity(scenes):
    model, scene = small_model(), scenes[0]
    model.start_from(disparity=0.08, motion=0.05)
    with torch.no_grad():
        out = model(scene["target"], scene["sources"])
    for offset, transform in out["transforms"].items():
        assert direction_agreement(transform[0, :3, 3].numpy(), scene["transforms"][offset][0, :3, 3].numpy()) > 0.95
        assert float(transform[0, :3, 3].norm()) == pytest.approx(0.05, rel=0.2)
    for disparity in out["disp"].values():
        assert 0.04 < float(disparity.mean()) < 0.16


def test_a_neutral_start_changes_nothing():
    model = small_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.start_from(disparity=0.5, motion=0.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
