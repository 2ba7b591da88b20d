"""FlowNet2 and the SDC networks: parity with the reference, its layers against slow loops, what it cannot show."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from helpers import fill_value, rand, randn
from semivid.errors import UserError
from semivid.propagation import flownet2
from semivid.propagation.flownet2 import (
    FlowNet2,
    FlowNetC,
    channel_norm,
    correlation,
    load_flownet2,
    padded,
    resample2d,
)
from semivid.propagation.sdc_losses import sdc_losses
from semivid.propagation.sdcnet import (
    SDCNet2D,
    SDCNet2DRecon,
    build_sdcnet,
    estimated_flow,
    interframe_flows,
    load_sdcnet,
    predict_frame,
    zero_flow,
)

SIZE = (64, 128)
BUILT_IN = ("flow_mean", "flow_std", "rgb_mean")


def spec_of(data_dir, name):
    return json.loads((data_dir / f"sdc_{name}.json").read_text())


def keys_of(network):
    return [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in network.state_dict().items()]


def filled(network, prefix=""):
    """Filled by the rule, but for the statistics; nothing is drawn before, which takes long for FlowNet2."""
    network = network.to_empty(device="cpu") if next(network.parameters()).is_meta else network
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key not in BUILT_IN:
                value.copy_(fill_value(prefix + key, value))
    return network.eval()


def on_meta(kind, *args):
    with torch.device("meta"):
        return kind(*args)


def same(actual, expected, tolerance):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


def images_of(size=SIZE, count=3, batch=1):
    return [rand((batch, 3, *size), seed) * 255 for seed in range(count)]


# ---- the reference's numbers


@pytest.mark.parametrize(
    ("name", "kind"), [("flownet2", FlowNet2), ("sdcnet2d", SDCNet2D), ("sdcnet2drecon", SDCNet2DRecon)]
)
def test_keys_are_the_published_ones(data_dir, name, kind):
    spec = spec_of(data_dir, name)
    network = on_meta(kind)
    assert keys_of(network) == spec["keys"]
    count = spec["n_params"] if "n_params" in spec else spec["n_params_without_flownet2"]
    assert sum(p.numel() for p in network.parameters()) == count


def test_resample2d_equals_the_reference(data_dir):
    expected = np.load(data_dir / "sdc_resample2d.npz")
    image, flow = torch.from_numpy(expected["image"]), torch.from_numpy(expected["flow"])
    same(resample2d(image, flow), expected["bilinear"], 1e-5)
    same(resample2d(image, flow, "nearest"), expected["nearest"], 0)


@torch.no_grad()
def test_video_prediction_equals_the_reference(data_dir):
    spec, expected = spec_of(data_dir, "sdcnet2d"), np.load(data_dir / "sdc_net2d.npz")
    network = filled(SDCNet2D())
    images, source, target = network.split(images_of())
    motion = network(images, [randn((1, 2, *SIZE), 3) * 5])
    same(motion, expected["flow_prediction"], 1e-3)
    frame = resample2d(source, motion)
    same(frame[..., ::2, ::2], expected["image_prediction_s2"], 0.05)
    compare_losses(frame, target, motion, spec["fixture"]["losses"])


@torch.no_grad()
def test_video_reconstruction_equals_the_reference(data_dir):
    spec, expected = spec_of(data_dir, "sdcnet2drecon"), np.load(data_dir / "sdc_net2d_recon.npz")
    network = filled(SDCNet2DRecon())
    images, source, target = network.split(images_of())
    motion = network(images, [randn((1, 2, *SIZE), seed) * 5 for seed in (3, 4)])
    same(motion, expected["flow_prediction"], 1e-3)
    frame = resample2d(source, motion)
    same(frame[..., ::2, ::2], expected["image_prediction_s2"], 0.05)
    compare_losses(frame, target, motion, spec["fixture"]["losses_given_flows"])
    label = torch.randint(0, 34, (1, 1, *SIZE), generator=torch.Generator().manual_seed(5)).float()
    carried = resample2d(label, motion, "nearest")
    # A target within float error of half a pixel may fall to either side.
    assert (carried.numpy() != expected["label_prediction"]).mean() < 1e-3


@torch.no_grad()
def test_the_whole_chain_with_flownet2_equals_the_reference(data_dir):
    spec, expected = spec_of(data_dir, "sdcnet2drecon"), np.load(data_dir / "sdc_net2d_recon.npz")
    whole = filled(on_meta(FlowNet2), "flownet2.")
    images = images_of()
    flows = interframe_flows(images, whole)
    same(flows[0], expected["flownet2_flow_21"], 2e-4)
    same(flows[1], expected["flownet2_flow_32"], 2e-4)
    network = filled(SDCNet2DRecon())
    given = iter(flows)
    frame, motion = predict_frame(network, images, lambda newer, older: next(given))
    same(frame[..., ::2, ::2], expected["full_image_prediction_s2"], 0.05)
    compare_losses(frame, images[2], motion, spec["fixture"]["losses_full"])

    # Other sizes are mirrored up to multiples of 64, what is there is not changed.
    cut = [i[..., :60, :100] for i in images[:2]]
    flow = whole(*cut)
    assert flow.shape == (1, 2, 60, 100) and not flow.requires_grad
    mirrored = [torch.from_numpy(np.pad(c.numpy(), ((0, 0), (0, 0), (0, 4), (0, 28)), "reflect")) for c in cut]
    torch.testing.assert_close(flow, whole(*mirrored)[..., :60, :100], rtol=0, atol=0)


def compare_losses(frame, target, motion, expected):
    losses = {"tot" if k == "loss" else k: float(v) for k, v in sdc_losses(frame, target, motion).items()}
    assert losses == pytest.approx(expected, rel=1e-4)


# ---- layers against slow loops


def slow_warp(image, flow, mode):
    _, height, width = image.shape
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            xf, yf = x + float(flow[0, y, x]), y + float(flow[1, y, x])
            if mode == "nearest":
                column, row = int(np.floor(xf + 0.5)), int(np.floor(yf + 0.5))
                out[:, y, x] = image[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                continue
            left, top = int(np.floor(xf)), int(np.floor(yf))
            value = 0
            for dy in (0, 1):
                for dx in (0, 1):
                    share = (xf - left if dx else 1 - xf + left) * (yf - top if dy else 1 - yf + top)
                    row, column = min(max(top + dy, 0), height - 1), min(max(left + dx, 0), width - 1)
                    value = value + share * image[:, row, column]
            out[:, y, x] = value
    return out


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_against_a_loop(mode):
    image, flow = rand((2, 3, 7, 5), 0).double(), randn((2, 2, 7, 5), 1).double() * 3
    flow[0, :, 2, 2] = torch.tensor([0.5, -0.5])
    expected = torch.stack([slow_warp(i, f, mode) for i, f in zip(image, flow, strict=True)])
    torch.testing.assert_close(resample2d(image, flow, mode), expected, rtol=0, atol=1e-12)


def test_warp_by_nothing_and_by_whole_pixels_is_exact_at_any_size():
    image = rand((1, 3, 37, 1000), 0) * 255
    flow = torch.zeros(1, 2, 37, 1000)
    for mode in ("bilinear", "nearest"):
        assert torch.equal(resample2d(image, flow, mode), image)
    flow[:, 0], flow[:, 1] = 3, -2
    rows, columns = torch.arange(37).sub(2).clamp(0), torch.arange(1000).add(3).clamp(max=999)
    for mode in ("bilinear", "nearest"):
        assert torch.equal(resample2d(image, flow, mode), image[:, :, rows][..., columns])


def test_nearest_keeps_ids_and_halves_go_up():
    label = torch.arange(40, dtype=torch.uint8).view(1, 1, 4, 10)
    flow = torch.full((1, 2, 4, 10), 0.5)
    carried = resample2d(label, flow, "nearest")
    assert carried.dtype == torch.uint8
    expected = label[:, :, [1, 2, 3, 3]][..., [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert torch.equal(carried, expected)
    flow[:] = -0.5
    assert torch.equal(resample2d(label, flow, "nearest"), label)


def test_gradient_of_the_warp():
    """Autograd against finite differences, and none from far outside, where only the border is seen."""
    image = rand((1, 2, 5, 6), 0).double().requires_grad_()
    flow = randn((1, 2, 5, 6), 1).double()
    fraction = flow - flow.floor()
    flow = (flow.floor() + fraction.clamp(0.1, 0.9)).requires_grad_()
    assert torch.autograd.gradcheck(resample2d, (image, flow))
    far = torch.full((1, 2, 5, 6), 50.0, requires_grad=True)
    resample2d(image.detach(), far).sum().backward()
    assert not far.grad.any()


def test_warp_refuses_what_does_not_fit():
    image = torch.zeros(1, 3, 4, 5)
    with pytest.raises(UserError, match=r"flow \(1, 2, 4, 4\) cannot warp"):
        resample2d(image, torch.zeros(1, 2, 4, 4))
    with pytest.raises(UserError, match="bilinear or nearest, not 'cubic'"):
        resample2d(image, torch.zeros(1, 2, 4, 5), "cubic")
    spoilt = resample2d(image, torch.full((1, 2, 4, 5), float("nan")))
    assert spoilt.isnan().all()


def slow_correlation(a, b, displacement, stride):
    batch, _, height, width = a.shape
    n = displacement // stride
    out = a.new_zeros(batch, (2 * n + 1) ** 2, height, width)
    for j in range(-n, n + 1):
        for i in range(-n, n + 1):
            for y in range(height):
                for x in range(width):
                    row, column = y + stride * j, x + stride * i
                    if 0 <= row < height and 0 <= column < width:
                        dots = (a[:, :, y, x] * b[:, :, row, column]).mean(1)
                        out[:, (j + n) * (2 * n + 1) + i + n, y, x] = dots
    return out


@pytest.mark.parametrize(("size", "displacement", "stride"), [((6, 7), 4, 2), ((5, 8), 3, 1), ((3, 1), 4, 2)])
def test_correlation_against_a_loop(size, displacement, stride):
    a, b = randn((2, 3, *size), 0), randn((2, 3, *size), 1)
    expected = slow_correlation(a, b, displacement, stride)
    torch.testing.assert_close(correlation(a, b, displacement, stride), expected, rtol=0, atol=1e-6)


def test_correlation_has_a_gradient_and_ignores_half_precision():
    a, b = (randn((1, 2, 4, 5), s).double().requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: correlation(a, b, 2, 2), (a, b))
    a, b = randn((1, 8, 4, 6), 0), randn((1, 8, 4, 6), 1)
    plain = correlation(a, b)
    assert plain.shape == (1, 441, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(correlation(a, b), plain)


@torch.no_grad()
def test_matches_pass_a_leaky_relu(monkeypatch):
    """The fixture holds no negative correlation, so it cannot tell; here they all are."""
    monkeypatch.setattr(flownet2, "correlation", lambda first, second: -correlation(first, second))
    network = on_meta(FlowNetC).to_empty(device="cpu")
    for name in ("conv1", "conv2", "conv3", "conv_redir"):
        filled(getattr(network, name), f"{name}.")
    seen = []
    network._flow2 = lambda *levels: seen.append(levels)
    network.conv3_1 = torch.nn.Identity()
    x = randn((1, 6, 64, 64), 0)
    network(x)
    level2, level3 = seen[0]
    first = network.conv3(network.conv2(network.conv1(x[:, :3])))
    second = network.conv3(network.conv2(network.conv1(x[:, 3:])))
    matches = correlation(first, second)
    assert matches.max() > 0.1 and matches.min() >= 0
    expected = torch.cat([network.conv_redir(first), -0.1 * matches], 1)
    torch.testing.assert_close(level3, expected)
    torch.testing.assert_close(level2, network.conv2(network.conv1(x[:, :3])))


def test_channel_norm():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert float(channel_norm(x)) == 5 and channel_norm(torch.zeros(2, 3, 4, 5)).shape == (2, 1, 4, 5)


def test_padding_mirrors_at_the_bottom_and_to_the_right():
    image = rand((1, 3, 70, 100), 0)
    big = padded(image)
    assert big.shape == (1, 3, 128, 128) and torch.equal(big[..., :70, :100], image)
    assert torch.equal(big[..., 70, :100], image[..., 68, :]) and torch.equal(big[..., :70, 100], image[..., 98])
    assert padded(image[..., :64, :64]).shape[-2:] == (64, 64)
    assert padded(image[..., :33, :33]).shape[-2:] == (64, 64)
    with pytest.raises(UserError, match="40x32 are too small"):
        padded(image[..., :32, :40])


# ---- SDC networks


def test_inputs_are_packed_flows_first_and_channel_by_channel():
    network = SDCNet2DRecon(flow_mean=(1, 2), flow_std=(3, 4))
    images = [torch.full((1, 3, 64, 64), 0.0) for _ in range(3)]
    for frame, image in enumerate(images):
        image += torch.tensor([0.0, 10, 20]).view(1, 3, 1, 1) + frame
    flows = [torch.full((1, 2, 64, 64), 5.0 * f) for f in (1, 2)]
    x = network.packed(images, flows)[0, :, 0, 0]
    flow = [(5 - 1) / 9, (10 - 1) / 9, (5 - 2) / 12, (10 - 2) / 12]
    assert x.tolist() == pytest.approx(flow + [-1 / 255, 0, 1 / 255] * 3, abs=1e-6)


def test_what_is_warped_and_what_is_the_target():
    frames = [torch.tensor(float(i)) for i in range(3)]
    images, source, target = SDCNet2D().split(frames)
    assert (images, source, target) == (frames[:2], frames[1], frames[2])
    images, source, target = SDCNet2DRecon().split(frames)
    assert (images, source, target) == (frames, frames[1], frames[2])
    assert SDCNet2D.unseen == 1 and SDCNet2DRecon.unseen == 0
    # A second network has as many inputs as the first (the reference counts up).
    assert SDCNet2DRecon().conv1[0].in_channels == SDCNet2DRecon().conv1[0].in_channels == 13


@pytest.mark.parametrize("kind", [SDCNet2D, SDCNet2DRecon])
@torch.no_grad()
def test_sizes_widths_and_numbers_of_frames(kind):
    torch.manual_seed(0)
    network = kind(4, width=0.125)
    assert sum(p.numel() for p in network.parameters()) < 2e5
    images, flows = images_of((60, 100), 4, 2), [randn((2, 2, 60, 100), s) for s in range(3)]
    motion = network(images, flows)
    assert motion.shape == (2, 2, 60, 100)
    whole = [padded(i) for i in images], [F.pad(f, (0, 28, 0, 4), mode="replicate") for f in flows]
    torch.testing.assert_close(motion, network(*whole)[..., :60, :100], rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images, flows).dtype == torch.float32


@pytest.mark.parametrize("kind", [SDCNet2D, SDCNet2DRecon])
@torch.no_grad()
def test_training_can_begin_with_the_newest_flow(kind):
    torch.manual_seed(0)
    network = kind(width=0.125)
    frames = images_of()[: network.frames]
    flows = [randn((1, 2, *SIZE), s) * 5 for s in range(network.frames - 1)]
    network.initialise("flow")
    torch.testing.assert_close(network(frames, flows), flows[-1], rtol=0, atol=1e-4)
    motion = network(frames, interframe_flows(frames, zero_flow))
    torch.testing.assert_close(motion, torch.zeros(1, 2, *SIZE), rtol=0, atol=1e-5)

    network.initialise("published")
    assert network(frames, flows).abs().max() > 10
    for layer in (network.conv1[0], network.conv6_1[0]):
        outputs, inputs, height, width = layer.weight.shape
        bound = (6 / ((inputs + outputs) * height * width)) ** 0.5  # Glorot and Bengio 2010, equation 16
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    biases = network.conv6[0].bias
    assert 0 <= biases.min() < biases.max() <= 1 and biases.mean() == pytest.approx(0.5, abs=0.15)
    with pytest.raises(UserError, match="published or flow, not 'zeros'"):
        network.initialise("zeros")


def test_flows_between_frames_lead_from_the_newer_to_the_older():
    frames = images_of(SIZE, 3)
    calls = []

    def flow(newer, older):
        calls.append((newer, older))
        return zero_flow(newer, older)

    flows = interframe_flows(frames, flow)
    assert len(flows) == 2 and calls[0][0] is frames[1] and calls[0][1] is frames[0]
    assert calls[1][0] is frames[2] and calls[1][1] is frames[1]


def test_an_estimator_sees_rgb_bytes():
    seen = []

    def estimator(first, second):
        seen.append((first, second))
        return np.stack([first[..., 0], second[..., 2]], 2).astype(np.float32)

    newer, older = images_of((5, 6), 2, batch=2)
    flow = estimated_flow(estimator)(newer, older)
    assert len(seen) == 2 and seen[0][0].dtype == np.uint8 and seen[0][0].shape == (5, 6, 3)
    torch.testing.assert_close(flow[:, 0], newer[:, 2].round())  # red is BGR's last
    torch.testing.assert_close(flow[:, 1], older[:, 0].round())


def test_checkpoints_say_which_network_they_are(tmp_path):
    torch.manual_seed(0)
    for kind, name in ((SDCNet2D, None), (SDCNet2DRecon, None), (SDCNet2DRecon, "SDCNet2DRecon")):
        network = kind(width=0.25, flow_mean=(0, 1), flow_std=(2, 3))
        # as the reference's saver leaves it: nested, here even with a tensor of its frozen sub-network
        content = {"epoch": 3, "state_dict": {**network.state_dict(), "flownet2.x": torch.zeros(1)}}
        torch.save(content, tmp_path / "sdc.pth.tar")
        loaded = load_sdcnet(tmp_path / "sdc.pth.tar", name)
        assert type(loaded) is kind and not loaded.training
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
    # With four frames the number of inputs does not tell.
    state = SDCNet2D(4, width=0.125).state_dict()
    with pytest.raises(UserError, match=r"18 input channels; published SDC networks have 8 .* or 13"):
        build_sdcnet(state, "f")
    assert build_sdcnet(state, "f", "SDCNet2D").frames == 4
    with pytest.raises(UserError, match="SDCNet2D or SDCNet2DRecon, not 'SDC'"):
        build_sdcnet(state, "f", "SDC")
    with pytest.raises(UserError, match="no SDC network"):
        build_sdcnet({"conv1.weight": torch.zeros(2)}, "f")
    state.pop("deconv0.0.bias")
    with pytest.raises(UserError, match=r"lacks deconv0\.0\.bias"):
        build_sdcnet(state, "f", "SDCNet2D")
    save_file({"conv1.0.weight": torch.zeros(1)}, tmp_path / "flow.safetensors")
    with pytest.raises(UserError, match="does not fit this network"):
        load_flownet2(tmp_path / "flow.safetensors")


def test_bad_input_of_the_networks():
    network, frames = SDCNet2D(width=0.125), images_of()
    flow = zero_flow(*frames[:2])
    with pytest.raises(UserError, match="SDCNet2D of 2 frames needs 1 flows between them, not 3 frames and 1 flows"):
        network(frames, [flow])
    with pytest.raises(UserError, match="must have one size"):
        network(frames[:2], [flow[..., :-1]])
    with pytest.raises(UserError, match="1 input frames are too few; give at least 2"):
        SDCNet2DRecon(1)
    with pytest.raises(UserError, match=r"width is 0\.3"):
        SDCNet2D(width=0.3)
    with pytest.raises(UserError, match=r"flow_std is \[0, 1\]"):
        SDCNet2D(flow_std=(0, 1))
    with pytest.raises(UserError, match="frames of one size"):
        on_meta(FlowNet2)(frames[0], frames[1][..., :-1])
