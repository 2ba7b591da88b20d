"""Depth pretraining: samples with their cameras, colour jitter, and what each phase trains."""

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2 import functional as tv

from semivid.data.cameras import Camera
from semivid.data.index import Frame, Index, read_cameras
from semivid.data.store import FrameStore
from semivid.data.streams import Stream
from semivid.depth.losses import monodepth_loss
from semivid.depth.networks import build_depth_model
from semivid.depth.pretrain import DepthPretraining, mean_losses
from semivid.depth.samples import OFFSETS, VideoSamples, frames_with_neighbours, jitter
from semivid.depth.scores import depth_errors, direction_agreement
from semivid.errors import UserError
from semivid.pipeline.params import DepthFinetune, DepthNetwork, DepthPretrain
from semivid.training.loop import fit
from semivid.training.runtime import Runtime, as_float
from small import small_params, write_prepared

SIZE = (64, 32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    index = write_prepared(folder, size=SIZE, train=(5, 4), val=(3,))
    return index, read_cameras(folder / "data/prepared/cameras.json")


def samples(place, crop=(40, 24), **options):
    index, cameras = place
    return VideoSamples(index, FrameStore(), cameras, crop, **options)


# ---- which frames


def numbered(*positions, split="train", sequence="s"):
    return [Frame(f"{split}{sequence}{p:03d}", split, sequence, p, None, "", None) for p in positions]


def test_the_ends_of_snippets_drop_out():
    index = Index(numbered(*range(5)) + numbered(*range(3), sequence="t"))
    assert [(f.sequence, f.position) for f in frames_with_neighbours(index, "train")] == [
        ("s", 1), ("s", 2), ("s", 3), ("t", 1),
    ]  # fmt: skip
    assert [f.position for f in frames_with_neighbours(index, "train", (0, 1)) if f.sequence == "s"] == [0, 1, 2, 3]


def test_neighbours_do_not_reach_over_a_gap_or_into_another_split():
    index = Index(numbered(0, 1, 2, 4, 5) + numbered(6, 7, split="val") + numbered(3, sequence="other"))
    assert [f.position for f in frames_with_neighbours(index, "train")] == [1]


def test_single_frames_are_refused():
    with pytest.raises(UserError, match="no frame of split 'val' has both neighbours"):
        frames_with_neighbours(Index(numbered(0, 1, 2) + numbered(0, 1, split="val")), "val")


# ---- samples


def test_a_sample_holds_the_frame_and_its_neighbours_in_one_window(place):
    index, _ = place
    store = FrameStore()
    frame = frames_with_neighbours(index, "train")[1]
    shown = set()
    for seed in range(20):
        sample = samples(place, flip=0.5)(frame, np.random.default_rng(seed))
        assert sample["frames"].shape == (3, 3, 24, 40) and sample["frames"].dtype == np.uint8
        windows = set()
        for offset, picture in zip((0, -1, 1), sample["frames"], strict=True):
            whole = store.image(index.neighbour(frame, offset))
            windows |= {
                (x, y, flip)
                for flip in (False, True)
                for x in range(64 - 40 + 1)
                for y in range(32 - 24 + 1)
                if np.array_equal(
                    picture, (whole[:, ::-1] if flip else whole)[y : y + 24, x : x + 40].transpose(2, 0, 1)
                )
            }
        assert len(windows) == 1, "the three frames show different windows, or are no windows of their frames"
        shown |= windows
    assert len(shown) > 5 and len({flip for *_, flip in shown}) == 2


def test_the_camera_is_that_of_the_window(place):
    """By hand, from three_ways.md sections 2 and 16: scale to the frame's size, mirror, then subtract the offset."""
    index, cameras = place
    fx, fy, cx, cy = 2.0 * 64 / 2, 3.0 * 64 / 2, (64 / 2 + 1) / 2, (32 / 2 - 2) / 2  # written for twice the size
    assert cameras["cam"].fx == fx and cameras["cam"].cy == cy
    frame = frames_with_neighbours(index, "train")[0]
    flips = set()
    for seed in range(8):
        _, u_x, u_y, u_flip = np.random.default_rng(seed).random(4)
        x, y, flip = int(u_x * (64 - 40 + 1)), int(u_y * (32 - 24 + 1)), u_flip < 0.5
        k = samples(place, flip=0.5)(frame, np.random.default_rng(seed))["k"]
        wanted = [[fx, 0, (64 - cx if flip else cx) - x], [0, fy, cy - y], [0, 0, 1]]
        assert k.dtype == np.float32
        assert np.allclose(k, wanted, atol=1e-5)
        flips.add(bool(flip))
    assert flips == {True, False}


def test_the_references_erroneous_camera_can_be_had(place):
    """Intrinsics of the source size, and a flip that mirrors both axes (section 16, errors 1 and 2)."""
    index, _ = place
    frame = frames_with_neighbours(index, "train")[0]
    for seed in range(4):
        _, u_x, u_y, u_flip = np.random.default_rng(seed).random(4)
        x, y, flip = int(u_x * 25), int(u_y * 9), u_flip < 0.5
        k = samples(place, flip=0.5, intrinsics="reference")(frame, np.random.default_rng(seed))["k"]
        cx, cy = (128 - 33, 64 - 14) if flip else (33, 14)
        assert np.allclose(k, [[128, 0, cx - x], [0, 192, cy - y], [0, 0, 1]])


def test_a_frame_without_a_camera_is_told(place):
    index, _ = place
    frame = frames_with_neighbours(index, "train")[0]
    with pytest.raises(UserError, match=f"{frame.frame}: no camera.*data.camera"):
        VideoSamples(index, FrameStore(), {}, (40, 24))(frame, np.random.default_rng(0))


def test_jitter_is_drawn_for_half_of_the_samples_in_its_ranges(place):
    frame = frames_with_neighbours(place[0], "train")[0]
    on = samples(place, color_jitter=True)
    drawn = [on(frame, np.random.default_rng(seed)) for seed in range(300)]
    factors = np.array([s["jitter"] for s in drawn])
    off = (factors == [1, 1, 1, 0]).all(1)
    assert 110 < off.sum() < 190
    active = factors[~off]
    assert active[:, :3].min() >= 0.8 and active[:, :3].max() <= 1.2 and np.ptp(active[:, :3]) > 0.35
    assert np.abs(active[:, 3]).max() <= 0.1 and np.ptp(active[:, 3]) > 0.17
    assert {tuple(s["order"]) for s in drawn} == set(itertools.permutations(range(4)))
    never = samples(place)
    assert all((never(frame, np.random.default_rng(s))["jitter"] == [1, 1, 1, 0]).all() for s in range(20))


# ---- jitter


def pictures():
    """Two samples of three frames."""
    return torch.rand(2, 3, 3, 6, 7, generator=torch.Generator().manual_seed(0))


def test_no_jitter_is_the_identity():
    frames = pictures()
    out = jitter(frames, torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2), torch.tensor([[3, 2, 1, 0]] * 2))
    assert torch.equal(out, frames) and out.data_ptr() != frames.data_ptr()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_jitter_is_torchvisions_in_the_given_order(order):
    frames = pictures()
    before = frames.clone()
    factors = torch.tensor([[1.1, 0.85, 1.2, 0.07], [0.8, 1.15, 0.9, -0.1]])
    out = jitter(frames, factors, torch.tensor([order, order[::-1]]))
    for sample, sequence in enumerate((order, order[::-1])):
        wanted = before[sample]
        for k in sequence:
            call = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[k]
            wanted = call(wanted, float(factors[sample, k]))
        assert torch.equal(out[sample], wanted)
        assert float(out[sample].min()) >= 0 and float(out[sample].max()) <= 1
    assert torch.equal(frames, before), "the photometric loss needs the true colours"
    other = jitter(frames, factors, torch.tensor([order[::-1], order]))
    assert not torch.equal(other, out), "the order makes no difference: the test shows nothing"


def test_jitter_agrees_with_the_transform_of_torchvision(monkeypatch):
    """ColorJitter itself, its draws replaced by ours."""
    frames = pictures()[:1]
    transform = ColorJitter(0.2, 0.2, 0.2, 0.1)
    values = {"fn_idx": torch.tensor([2, 0, 3, 1]), "brightness_factor": 0.9, "contrast_factor": 1.2,
              "saturation_factor": 1.1, "hue_factor": 0.05}  # fmt: skip
    monkeypatch.setattr(transform, "make_params", lambda inputs: values)
    out = jitter(frames, torch.tensor([[0.9, 1.2, 1.1, 0.05]]), values["fn_idx"][None])
    assert torch.allclose(out[0], transform(frames[0]), atol=1e-6)


def test_every_frame_of_a_sample_gets_the_same_jitter():
    frames = pictures()
    frames[:, 1:] = frames[:, :1]
    out = jitter(frames, torch.tensor([[0.9, 1.1, 0.8, 0.1], [1.0, 1.0, 1.0, 0.0]]), torch.tensor([[1, 0, 3, 2]] * 2))
    # contrast goes by the mean of each frame, which is the same here
    assert torch.allclose(out[0, 0], out[0, 1]) and torch.allclose(out[0, 0], out[0, 2])
    assert not torch.allclose(out[0], frames[0]) and torch.equal(out[1], frames[1])


# ---- the two phases


def depth_method(phase, **changes):
    params = small_params()
    torch.manual_seed(0)
    model = build_depth_model(**DepthNetwork(**params["depth_network"]).arguments())
    if phase == 1:
        method = DepthPretraining(model, DepthPretrain(**params["depth_pretrain"] | changes), RUNTIME)
    else:
        options = DepthFinetune(**params["depth_finetune"] | changes)
        method = DepthPretraining(model, options, RUNTIME, options.feature_distance)
    method.place_imagenet()
    RUNTIME.place(method)
    return method


RUNTIME = Runtime(1, device="cpu")


@pytest.fixture(scope="module")
def batch(place):
    index, cameras = place
    video = VideoSamples(index, FrameStore(), cameras, SIZE, flip=0.5, color_jitter=True)
    return {"video": Stream("video", frames_with_neighbours(index, "train"), 2, 1, video)[0]}


def weights(module):
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def changed(module, before):
    return {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("statistics", ["moving", "fixed"])
def test_phase_1_leaves_the_encoder_and_trains_the_rest(batch, statistics):
    method = depth_method(1, encoder_statistics=statistics).train()
    before = {name: weights(part) for name, part in method.model.parts().items()}
    mean = method.model.encoder.encoder.bn1.running_mean.clone()
    out = method.training_step(batch, 0)
    method.training_step(batch, 1)
    moved = {name: changed(part, before[name]) for name, part in method.model.parts().items()}
    assert not moved["encoder"]
    assert all(len(moved[name]) > 0.5 * len(before[name]) for name in ("depth", "pose", "pose_encoder"))
    assert set(out) == {"loss", "photometric", "warped"} and not any(v.requires_grad for v in out.values())
    # "frozen" means the weights: in the reference (section 6) the statistics move
    assert torch.equal(method.model.encoder.encoder.bn1.running_mean, mean) == (statistics == "fixed")
    assert {id(p) for g in method.optimizer.param_groups for p in g["params"]}.isdisjoint(
        id(p) for p in method.model.encoder.parameters()
    )


def test_phase_2_trains_the_encoder_too(batch):
    method = depth_method(2).train()
    before = {name: weights(part) for name, part in method.model.parts().items()}
    twin = weights(method._imagenet[0])
    out = method.training_step(batch, 0)
    for name, part in method.model.parts().items():
        assert len(changed(part, before[name])) > 0.5 * len(before[name])
    assert not changed(method._imagenet[0], twin)
    assert "feature_distance" in out
    # the twin is no part of what is saved or trained
    assert not any("imagenet" in key for key in method.state_dict())


@pytest.mark.parametrize("phase", [1, 2])
def test_every_trained_weight_has_one_rate(phase):
    """Depth and pose learn at rates of their own (phase 1: nothing of the encoder)."""
    method = depth_method(phase, lr=1e-3, pose_lr=1e-5)
    depth, pose = method.optimizer.param_groups
    assert (depth["base_lr"], pose["base_lr"]) == (1e-3, 1e-5)
    parts = method.model.parts()
    wanted = {"pose": ("pose", "pose_encoder"), "depth": ("depth",) if phase == 1 else ("depth", "encoder")}
    for group, names in ((pose, wanted["pose"]), (depth, wanted["depth"])):
        ids = [id(p) for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for name in names for p in parts[name].parameters())


def test_the_feature_distance_pulls_back_to_imagenet(batch):
    """With its weight alone deciding, training brings moved features nearer again."""
    method = depth_method(2, feature_distance=1e3, lr=1e-4, color_jitter=False)
    method.train()
    method.model.encoder.eval()
    with torch.no_grad():
        for parameter in method.model.encoder.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    distances = [float(method.training_step(batch, step)["feature_distance"]) for step in range(6)]
    assert distances[-1] < 0.9 * distances[0]


def test_features_of_an_untouched_encoder_are_those_of_its_twin(batch):
    """With fixed statistics, where both normalise alike; else the batch's own statistics tell them apart."""
    method = depth_method(2, encoder_statistics="moving").train()
    assert float(method.losses(batch["video"], 0)["feature_distance"].detach()) > 0
    method = depth_method(2, encoder_statistics="fixed").train()
    assert float(method.losses(batch["video"], 0)["feature_distance"].detach()) == 0.0


def test_the_loss_is_that_of_the_true_colours_and_weighs_the_distance(batch):
    method = depth_method(2, feature_distance=0.5, auto_mask=True).train()
    assert (batch["video"]["jitter"] != torch.tensor([1.0, 1, 1, 0])).any(), "no jitter: the test shows nothing"
    seen = {}
    real = method.model.forward

    def watch(frame, neighbours, **more):
        seen["frames"] = [frame, neighbours[-1], neighbours[1]]
        seen["output"] = real(frame, neighbours, **more)
        return seen["output"]

    method.model.forward = watch
    result = method.losses(batch["video"], noise_seed=5)
    frames = as_float(batch["video"]["frames"])
    jittered = jitter(frames, batch["video"]["jitter"], batch["video"]["order"])
    for i, picture in enumerate(seen["frames"]):
        assert torch.equal(picture, jittered[:, i])
    wanted = monodepth_loss(
        seen["output"]["disp"], frames[:, 0], {-1: frames[:, 1], 1: frames[:, 2]}, seen["output"]["transforms"],
        batch["video"]["k"], generator=torch.Generator().manual_seed(5),
    )["loss"]  # fmt: skip
    assert result["loss"].item() == pytest.approx((wanted + 0.5 * result["feature_distance"]).item(), rel=1e-6)


def test_validation_sees_true_colours_and_changes_nothing(place, batch):
    method = depth_method(1)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    method.eval()
    with torch.no_grad():
        first = mean_losses(method, [batch["video"], batch["video"]])
        plain = batch["video"] | {"jitter": torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)}
        again = mean_losses(method, [plain, plain])
    assert set(first) == {"val_loss", "val_photometric", "val_warped"}
    assert first == again
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())


def test_predictions_are_disparities(batch):
    method = depth_method(1).eval()
    with torch.no_grad():
        disparity = method.predict(as_float(batch["video"]["frames"][:, 0]))
    assert disparity.shape == (2, 1, 32, 64) and 0 < float(disparity.min()) <= float(disparity.max()) < 1


def test_rates_drop_at_the_milestones():
    method = depth_method(1, iterations=10, milestones=[4, 8])
    assert [method.rate(s) for s in (0, 3, 4, 7, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("phase", [1, 2])
def test_both_phases_resume_bit_for_bit(place, tmp_path, phase):
    """Frozen weights, drifting statistics, the twin, dilated convolutions: nothing is lost or shifted by a stop."""
    import os
    import signal

    index, cameras = place
    video = VideoSamples(index, FrameStore(), cameras, SIZE, flip=0.5, color_jitter=True)
    stream = Stream("video", frames_with_neighbours(index, "train"), 2, 1, video)

    def run(work, stop=None):
        method = depth_method(phase)
        step_of = method.training_step

        def training_step(batch, step):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return step_of(batch, step)

        method.training_step = training_step
        arguments = {"iterations": 4, "seed": 1, "runtime": RUNTIME, "work": tmp_path / work, "key": "k"}
        return method, fit(method, [stream], **arguments)

    whole, history = run("whole")
    with pytest.raises(SystemExit):
        run("cut", stop=1)
    resumed, resumed_history = run("cut")
    assert resumed_history == history
    state = resumed.state_dict()
    assert not [k for k, v in whole.state_dict().items() if not torch.equal(v, state[k])]


# ---- scores against the truth


def test_depth_errors_know_no_scale():
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 60, (20, 30))
    assert depth_errors(0.01 / truth, truth) == pytest.approx({"abs_rel": 0.0, "correlation": 1.0})
    wrong = truth.copy()
    wrong[:, :10] *= 1.5  # a third of the pixels half as far again; the median ratio stays 1
    errors = depth_errors(1 / wrong, truth)
    assert 0.1 < errors["abs_rel"] < 0.2 and 0.9 < errors["correlation"] < 1
    assert depth_errors(truth, truth)["correlation"] < 0


def test_unknown_and_far_depths_do_not_count():
    truth = np.array([[10.0, 20.0, 30.0, 0.0, 200.0]])
    inverse = np.array([[0.1, 0.05, 1 / 30, 7.0, 7.0]])
    assert depth_errors(inverse, truth) == pytest.approx({"abs_rel": 0.0, "correlation": 1.0})


def test_directions_know_no_scale():
    assert direction_agreement(np.array([0.0, 0, 2]), np.array([0.0, 0, 9])) == pytest.approx(1)
    assert direction_agreement(np.array([0.0, 0, -2]), np.array([0.0, 0, 9])) == pytest.approx(-1)
    assert direction_agreement(np.array([1.0, 0, 0]), np.array([0.0, 0, 9])) == pytest.approx(0)
    assert direction_agreement(np.zeros(3), np.ones(3)) == pytest.approx(0)


def test_offsets_are_the_frame_then_its_neighbours():
    """`frames`, the networks and the loss count on it."""
    assert OFFSETS == (0, -1, 1)
    assert Camera.of_source(1, 1, 0, 0, 2, 2).matrix().shape == (3, 3)
