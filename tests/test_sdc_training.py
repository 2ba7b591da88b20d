"""Training SDC networks on video: losses, frame sequences, the method on the shared loop, scores."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from helpers import rand
from semivid.data.index import Frame, Index, read_index
from semivid.data.store import FrameStore
from semivid.data.streams import Stream
from semivid.errors import UserError
from semivid.flow.estimators import build_estimator
from semivid.methods.sdc import SDCTraining, frame_scores
from semivid.propagation.flownet2 import resample2d
from semivid.propagation.sdc_losses import (
    as_picture,
    color_loss,
    gradient_loss,
    interpolation_error,
    psnr,
    sdc_losses,
    smoothness_loss,
)
from semivid.propagation.sdcnet import SDCNet2D, SDCNet2DRecon, estimated_flow, zero_flow
from semivid.propagation.sequence_samples import SequenceSamples, sequences
from semivid.training.distributed import together
from semivid.training.loop import fit
from semivid.training.resume import load_resume
from semivid.training.runtime import Runtime
from small import write_prepared

SIZE = (64, 48)  # width, height


# ---- losses


def test_losses_by_hand():
    prediction = torch.tensor([[10.0, 30.0, 25.0], [0.0, 4.0, 2.0]]).expand(2, 3, 2, 3)
    target = torch.tensor([[10.0, 5.0, 25.0], [6.0, 4.0, 2.0]]).expand(2, 3, 2, 3)
    assert float(color_loss(prediction, target)) == pytest.approx((25 + 6) / 6 / 255)
    # edges along x: 20, 5 | 4, 2 against 5, 20 | 2, 2; along y: 10, 26, 23 against 4, 1, 23
    assert float(gradient_loss(prediction, target)) == pytest.approx((15 + 15 + 2 + 0) / 4 + (6 + 25 + 0) / 3)
    motion = torch.stack([prediction[0, 0], torch.zeros(2, 3)])[None]
    assert float(smoothness_loss(motion)) == pytest.approx((20 + 5 + 4 + 2) / 8 + (10 + 26 + 23) / 6)
    losses = {k: float(v) for k, v in sdc_losses(prediction, target, motion).items()}
    parts = (losses["color"], losses["color_gradient"], losses["flow_smoothness"])
    assert losses["loss"] == pytest.approx(0.7 * parts[0] + 0.2 * parts[1] + 0.1 * parts[2])
    other = float(sdc_losses(prediction, target, motion, color=1, gradient=0, smoothness=2)["loss"])
    assert other == pytest.approx(parts[0] + 2 * parts[2])


def test_gradient_loss_compares_strengths_not_signs():
    ramp = torch.arange(5.0).expand(1, 3, 4, 5)
    assert float(gradient_loss(ramp, ramp.flip(3))) == 0 and float(gradient_loss(ramp, 2 * ramp)) == 1


def test_scores_against_opencv():
    cv2 = pytest.importorskip("cv2")
    a, b = rand((2, 3, 9, 11), 0) * 255, rand((2, 3, 9, 11), 1) * 255
    bytes_ = [x.round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for x in (a, b)]
    for i, value in enumerate(psnr(a, b).tolist()):
        assert value == pytest.approx(cv2.PSNR(bytes_[0][i], bytes_[1][i]), abs=1e-6)
    difference = bytes_[0].astype(float) - bytes_[1].astype(float)
    expected = np.linalg.norm(difference, axis=3).mean((1, 2))
    np.testing.assert_allclose(interpolation_error(a, b).numpy(), expected)
    assert psnr(a, a).isinf().all()
    assert as_picture(torch.tensor([-3.0, 1.4, 1.6, 300.0])).tolist() == [0, 1, 2, 255]


# ---- sequences


def numbered(clip, count, split="train", start=0):
    return [Frame(f"{split}/{clip}/f{p}", split, clip, p, None, "", None) for p in range(start, start + count)]


def test_sequences_are_those_of_the_reference(data_dir):
    index = Index(numbered("clip1", 7) + numbered("clip2", 5) + numbered("clip10", 4))
    cases = json.loads((data_dir / "sdc_frame_loader.json").read_text())["cases"]
    for case in cases:
        length = case["sequence_length"] + 1
        found = sequences(index, index.frames, length, case["sample_rate"])
        windows = [[index.neighbour(f, k).frame.removeprefix("train/") + ".png" for k in range(length)] for f in found]
        assert sorted(windows) == sorted(case["windows"]) and len(windows) == case["length"]
    assert len(cases) == 4


def test_sequences_do_not_cross_clips_gaps_and_splits():
    frames = numbered("a", 2) + numbered("b", 3) + numbered("b", 4, start=5) + numbered("b", 2, "val", start=3)
    index = Index(frames)
    # a is too short (the reference's count would be negative), b has a gap in its training frames
    assert [(f.sequence, f.position) for f in sequences(index, index.select("train"), 3)] == [
        ("b", 0), ("b", 5), ("b", 6),
    ]  # fmt: skip
    # Frames that were not asked for end a sequence like a gap.
    some = [f for f in index.select("train") if f.position != 6]
    assert [(f.sequence, f.position) for f in sequences(index, some, 2)] == [
        ("a", 0), ("b", 0), ("b", 1), ("b", 7),
    ]  # fmt: skip
    with pytest.raises(UserError, match="none of 2 frames begins 3 consecutive frames"):
        sequences(index, index.select("val"), 3)
    with pytest.raises(UserError, match="at least 2 frames"):
        sequences(index, frames, 1)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Videos of a texture that moves by (3, 1) pixels per frame; two to train, one held out."""
    import cv2

    folder = tmp_path_factory.mktemp("video")
    index = write_prepared(folder, size=SIZE, train=(6, 6), val=(5,))
    for number, (split, sequence) in enumerate(sorted({(f.split, f.sequence) for f in index.frames})):
        rng = np.random.default_rng(number)
        texture = cv2.GaussianBlur(rng.integers(0, 256, (100, 120, 3)).astype(np.uint8), (0, 0), 2)
        texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
        for f in index.frames:
            if (f.split, f.sequence) == (split, sequence):
                x, y = 30 - 3 * f.position, 20 - f.position
                cv2.imwrite(str(f.image), texture[y : y + SIZE[1], x : x + SIZE[0]])
    return index


def test_a_sample_is_one_window_of_consecutive_frames_in_either_order(moving):
    store = FrameStore()
    first = sequences(moving, moving.select("train"), 3)[1]
    samples = SequenceSamples(moving, store, 3, (40, 36), flip=0.5)
    seen = set()
    for seed in range(24):
        shown = samples(first, np.random.default_rng(seed))["frames"]
        assert shown.shape == (3, 3, 36, 40) and shown.dtype == np.uint8
        found = [
            (x, y, flip, backwards)
            for flip in (False, True)
            for backwards in (False, True)
            for x in range(25)
            for y in range(13)
            if all(
                np.array_equal(
                    picture,
                    store.image(moving.neighbour(first, 2 - k if backwards else k))[:, :: -1 if flip else 1][
                        y : y + 36, x : x + 40
                    ].transpose(2, 0, 1),
                )
                for k, picture in enumerate(shown)
            )
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len({s[:2] for s in seen}) > 10 and len({s[2:] for s in seen}) == 4
    plain = SequenceSamples(moving, store, 3, SIZE, reverse=0)
    for seed in range(5):
        shown = plain(first, np.random.default_rng(seed))["frames"]
        assert all(np.array_equal(shown[k], store.image(moving.neighbour(first, k)).transpose(2, 0, 1)) for k in (0, 2))


def test_flows_of_a_sample_lead_from_later_to_earlier(moving):
    first = sequences(moving, moving.select("train"), 3)[0]
    estimator = build_estimator("dis", {"finest_scale": 0})
    for reverse in (0, 1):
        samples = SequenceSamples(moving, FrameStore(), 3, (48, 40), reverse=reverse, estimator=estimator)
        flows = samples(first, np.random.default_rng(0))["flows"]
        assert flows.shape == (2, 2, 40, 48) and flows.dtype == np.float32
        sign = 1 if reverse else -1  # the texture moves by (3, 1)
        for flow in flows:
            assert np.median(flow[0]) == pytest.approx(3 * sign, abs=0.3)
            assert np.median(flow[1]) == pytest.approx(sign, abs=0.3)
    fewer = SequenceSamples(moving, FrameStore(), 3, (48, 40), estimator=estimator, inputs=2)
    assert fewer(first, np.random.default_rng(0))["flows"].shape == (1, 2, 40, 48)


def test_frames_of_several_sizes_are_refused(moving, tmp_path):
    import cv2

    frames = numbered("s", 2)
    frames = [Frame(f.frame, f.split, "s", f.position, tmp_path / f"{f.position}.png", "", None) for f in frames]
    for k, f in enumerate(frames):
        cv2.imwrite(str(f.image), np.zeros((40 + k, 50, 3), np.uint8))
    with pytest.raises(UserError, match="frames after it differ in size"):
        SequenceSamples(Index(frames), FrameStore(), 2, (40, 40))(frames[0], np.random.default_rng(0))


# ---- the method


def network_of(kind=SDCNet2D, **options):
    torch.manual_seed(0)
    network = kind(width=0.125, flow_mean=(0, 0), flow_std=(1, 1), **options)
    network.initialise("flow")
    return network


def method_of(network=None, flow=zero_flow, **options):
    options = {"iterations": 60, "lr": 2e-3, "schedule": "constant"} | options
    return SDCTraining(network or network_of(), flow, Runtime(1, device="cpu"), **options)


def batch_of(index, split="train", length=3, count=2, **options):
    stream = Stream(
        "video",
        sequences(index, index.select(split), length),
        count,
        0,
        SequenceSamples(index, FrameStore(), length, SIZE, reverse=0, **options),
    )
    return stream[0]


def test_what_is_warped_where(moving):
    """Reconstruction along the true motion shows the target; prediction from the newest input frame."""
    batch = batch_of(moving, estimator=build_estimator("dis", {"finest_scale": 0}))
    for kind, source in ((SDCNet2D, 1), (SDCNet2DRecon, 1)):
        network = network_of(kind)
        given = batch | {"flows": batch["flows"][:, : network.frames - 1]}
        out = method_of(network).outputs(given)
        bgr = batch["frames"].flip(2).float()
        assert torch.equal(out.source, bgr[:, source]) and torch.equal(out.target, bgr[:, 2])
        assert torch.equal(out.flow, given["flows"][:, -1])
        # "flow" weights: at first the motion is the newest flow
        torch.testing.assert_close(out.motion, out.flow, rtol=0, atol=1e-4)
        assert torch.equal(out.frame, resample2d(out.source, out.motion))
        inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))
        assert psnr(out.frame[inner], out.target[inner]).min() > psnr(out.source[inner], out.target[inner]).max() + 5


def test_flows_come_from_the_batch_or_the_source(moving):
    estimator = build_estimator("dis", {"finest_scale": 0})
    batch = batch_of(moving, estimator=estimator, inputs=2)
    with_source = method_of(flow=estimated_flow(estimator))
    alone = {"frames": batch["frames"]}
    torch.testing.assert_close(with_source.outputs(alone).flow, batch["flows"][:, 0], rtol=0, atol=0)
    assert not method_of().outputs(alone).flow.any()


def test_a_frozen_flow_network_is_no_part_of_checkpoints(moving):
    class Flow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.ones(1))
            self.norm = torch.nn.BatchNorm2d(2)

        def forward(self, newer, older):
            return self.norm(zero_flow(newer, older)) + self.shift

    flow = Flow()
    method = method_of(flow=flow)
    method.train()
    method.training_step({"video": batch_of(moving)}, 0)
    assert not flow.training and flow.shift.grad is None and float(flow.shift) == 1
    assert set(method.state_dict()) == {f"network.{k}" for k in method.network.state_dict()}
    assert (method.outputs(batch_of(moving)).flow == 1).all()


def test_one_step_is_adam_on_the_weighted_losses(moving):
    method, twin, batch = method_of(), network_of(), batch_of(moving)
    optimizer = torch.optim.Adam(twin.parameters(), 1e-3)
    weights = {"color": 0.5, "gradient": 0.1, "smoothness": 0.3}
    method = method_of(lr=1e-3, **weights)
    logged = method.training_step({"video": batch}, 0)
    frames = batch["frames"].flip(2).float().unbind(1)
    motion = twin(frames[:2], [zero_flow(*frames[:2])])
    losses = sdc_losses(resample2d(frames[1], motion), frames[2], motion, **weights)
    losses["loss"].backward()
    optimizer.step()
    assert {k: v.item() for k, v in logged.items()} == pytest.approx({k: v.item() for k, v in losses.items()})
    for (name, own), other in zip(method.network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other, msg=name)
    assert not logged["loss"].requires_grad


def test_gradients_are_clipped_by_value(moving):
    method = method_of(clip=1e-3, lr=0.0)
    method.training_step({"video": batch_of(moving)}, 0)
    gradients = [p.grad.abs().max() for p in method.parameters() if p.grad is not None]
    assert max(gradients) == pytest.approx(1e-3)


def test_rates_and_options():
    step = method_of(schedule="step", milestones=[30, 54])
    assert [step.rate(s) for s in (0, 29, 30, 53, 54)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert method_of(schedule="poly").rate(45) == pytest.approx(0.25**0.8)
    assert method_of().rate(59) == 1
    assert method_of().optimizer.param_groups[0]["weight_decay"] == 0
    assert method_of(weight_decay=0.5).optimizer.param_groups[0]["weight_decay"] == 0.5
    with pytest.raises(UserError, match="schedule is 'cosine'; give one of step, poly, constant"):
        method_of(schedule="cosine")


def test_predict_does_not_need_the_target(moving):
    batch = batch_of(moving)
    frames = batch["frames"].float() / 255
    for kind, inputs in ((SDCNet2D, 2), (SDCNet2DRecon, 3)):
        method = method_of(network_of(kind))
        with torch.no_grad():
            torch.nn.init.constant_(method.network.final_flow.bias, 0.3)
            frame = method.predict(frames[:, :inputs])
            expected = method.outputs(batch).frame.flip(1) / 255
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-6)


def fitted(method, index, work, key="k", iterations=60, evaluate=None):
    length = method.network.frames + method.network.unseen
    frames = sequences(index, index.select("train"), length)
    stream = Stream("video", frames, 2, 3, SequenceSamples(index, FrameStore(), length, SIZE, reverse=0))
    return fit(
        method, [stream], iterations=iterations, seed=3, runtime=method.runtime, work=work, key=key, evaluate=evaluate
    )


def test_training_learns_the_motion(moving, tmp_path):
    """Prediction without any flow given: the held-out video moves by (3, 1) too, copying its frames does not."""
    torch.manual_seed(0)
    network = SDCNet2D(width=0.25, flow_mean=(0, 0), flow_std=(1, 1))
    network.initialise("flow")
    method = method_of(network)
    held_out = [batch_of(moving, "val", count=3)]
    before = frame_scores(method, held_out)
    assert before["val_psnr"] == before["val_psnr_copy"] == before["val_psnr_flow"]
    fitted(method, moving, tmp_path)
    after = frame_scores(method, held_out)
    assert after["val_psnr_copy"] == before["val_psnr_copy"]
    assert after["val_psnr"] > before["val_psnr"] + 2
    assert after["val_interpolation_error"] < before["val_interpolation_error"]
    assert after["val_loss"] < before["val_loss"]


def test_scores_are_means_over_frames_whatever_the_batches(moving):
    method = method_of(network_of(SDCNet2DRecon))
    with torch.no_grad():
        method.network.final_flow.bias += 0.2
    whole = batch_of(moving, "val", count=3)
    whole["frames"][0, 1] = whole["frames"][0, 2]  # copying is perfect here
    parts = [{k: v[s] for k, v in whole.items()} for s in (slice(0, 1), slice(1, 3))]
    scores = frame_scores(method, [whole])
    assert frame_scores(method, parts) == pytest.approx(scores, rel=1e-5)
    others = psnr(whole["frames"][1:, 1], whole["frames"][1:, 2]).tolist()
    assert scores["val_psnr_copy"] == pytest.approx((100 + sum(others)) / 3)


def test_a_stopped_training_goes_on_as_if_it_had_not(moving, tmp_path):
    class Stopped(SDCTraining):
        def training_step(self, batch, step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, step)

    whole = method_of()
    fitted(whole, moving, tmp_path / "a", iterations=5)
    stopped = Stopped(network_of(), zero_flow, Runtime(1, device="cpu"), iterations=60, lr=2e-3, schedule="constant")
    with pytest.raises(SystemExit):
        fitted(stopped, moving, tmp_path / "b", iterations=5)
    assert load_resume(tmp_path / "b/resume.safetensors")["step"] == 3
    again = method_of()
    fitted(again, moving, tmp_path / "b", iterations=5)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def trained_over(folder, count):
    """The weights and losses of three steps in `count` processes, each on a part of every batch of 2."""
    index = read_index(folder / "data/prepared/frames.csv")
    method = method_of()
    history = fitted(method, index, folder / f"work{count}", iterations=3)
    return method.state_dict(), history


def test_two_processes_train_as_one(moving, tmp_path):
    folder = moving.frames[0].image.parents[4]
    state, history = trained_over(folder, 1)
    with together(2, trained_over, folder, 2):
        other, shared = trained_over(folder, 2)
    assert [r["loss"] for r in shared] == pytest.approx([r["loss"] for r in history], rel=1e-5)
    for key, value in state.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=1e-4, msg=key)
