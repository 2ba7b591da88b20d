"""The multi-task network: parity with the reference, what its fixture cannot see, and the losses."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import fill_by_rule, rand, randn
from semivid.depth.losses import monodepth_loss
from semivid.errors import UserError
from semivid.models.multitask import Gate, build_multitask_net
from semivid.models.multitask_losses import multitask_losses, segmentation_loss
from semivid.pipeline.params import Multitask, Transfer

LITE = "tf_efficientnet_lite0"
SMALL = {"channels": (4, 5, 6, 7, 8), "aspp": (), "pose_encoder": LITE}
SIZE = (64, 96)
FRAMES = {offset: rand((2, 3, *SIZE), seed) for seed, offset in enumerate((0, -1, 1))}
K = torch.tensor([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]])


def small(classes=3, **options):
    torch.manual_seed(0)
    net = build_multitask_net(classes, LITE, **(SMALL | options))
    with torch.no_grad():  # gates that let through something of their own
        for gate in (net.mtl_decoder.sa_depth, net.mtl_decoder.sa_seg):
            gate.attention.weight.normal_()
    return net


def outputs(net, scales=(0, 1, 2, 3)):
    return net.outputs(FRAMES[0], {o: f for o, f in FRAMES.items() if o}, scales)


@torch.no_grad()
def test_equals_the_reference(data_dir):
    spec = json.loads((data_dir / "three_ways_multitask.json").read_text())
    expected = np.load(data_dir / "three_ways_multitask.npz")
    net = build_multitask_net(19)
    parts = {name: net.parts()[name] for name in ("encoder", "pose_encoder", "pose", "mtl_decoder")}
    keys = [
        [f"models.{part}.{key}", list(value.shape), str(value.dtype).removeprefix("torch.")]
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    ]
    assert keys == spec["keys"]
    assert sum(p.numel() for p in net.parameters()) == spec["n_parameters"]
    # The order is that of the file for the whole network too, whatever the pose parts are called in it.
    renamed = [f"models.{key.removeprefix('pose_net.')}" for key in net.state_dict()]
    assert renamed == [key for key, *_ in spec["keys"]]

    encoder, rest, pose = net.parameter_groups(1e-3, 1e-2)
    assert (encoder["lr"], rest["lr"], pose["lr"]) == (1e-3, 1e-2, 1e-6)
    counts = [(len(g["params"]), sum(p.numel() for p in g["params"])) for g in (encoder, rest, pose)]
    assert counts == [(312, 42_500_160), (96, 44_726_766), (68, 12_500_492)]

    for part, module in parts.items():
        fill_by_rule(module, f"models.{part}.").eval()
    frame, _, after = (rand((1, 3, 64, 128), seed) for seed in range(3))
    out = net.outputs(frame, {1: after})
    found = {"semantics": out.logits[:, :, ::4, ::4], "intermediate_semantics": out.side_logits[:, :, ::2, ::2]}
    found |= {f"disp{scale}": disp for scale, disp in out.disp.items()} | {"T_p1": out.transforms[1]}
    assert set(found) == set(expected.files) and out.logits.shape == (1, 19, 64, 128)
    assert out.side_logits.shape == (1, 19, 16, 32)
    for name, value in found.items():
        tolerance = 1e-6 if name == "T_p1" else 1e-4
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=tolerance, err_msg=name)


@torch.no_grad()
def test_a_new_gate_lets_half_through():
    gate = Gate(4)
    x = randn((2, 4, 6, 5), 0)
    torch.testing.assert_close(gate(x), F.conv2d(x, gate.conv.weight, padding=1) / 2)
    assert not gate.attention.weight.any() and gate.conv.weight.any()
    for built in (build_multitask_net(2, LITE, **SMALL).mtl_decoder.sa_seg, gate):
        assert not built.attention.weight.any() and built.conv.bias is None and built.attention.bias is None


@torch.no_grad()
def test_the_exchange_is_at_the_asked_layer_and_before_the_finer_disparities():
    """A closed gate (zero convolution) leaves the other task alone: what it changes is what comes after it."""
    for layer, changed in ((7, {0, 1}), (8, {0}), (6, {0, 1, 2}), (5, {0, 1, 2, 3})):
        net = small(distillation_layer=layer).eval()
        decoder = net.mtl_decoder
        assert decoder.sa_seg.conv.weight.shape[0] == SMALL["channels"][9 - layer]
        before = outputs(net)
        decoder.sa_seg.conv.weight.zero_()
        closed = outputs(net)
        differ = {scale for scale in range(4) if not torch.equal(before.disp[scale], closed.disp[scale])}
        assert differ == changed
        assert torch.equal(before.logits, closed.logits) and torch.equal(before.side_logits, closed.side_logits)
        # With the depth features alone the depth decoder is that of the depth network.
        plain = decoder.depth_dec(closed.encoder, SIZE)["disp"]
        assert all(torch.equal(plain[scale], closed.disp[scale]) for scale in range(4))

        decoder.sa_depth.conv.weight.zero_()
        both = outputs(net)
        assert not torch.equal(both.logits, closed.logits) and torch.equal(both.side_logits, closed.side_logits)
        features = decoder.seg_dec(closed.encoder, SIZE, scales=(), levels=(0,))["features"]
        torch.testing.assert_close(both.logits, decoder.seg_final_head(features[0]), rtol=0, atol=0)
        torch.testing.assert_close(both.side_logits, decoder.seg_intermediate_head(features[9 - layer]), rtol=0, atol=0)


@torch.no_grad()
def test_less_work_gives_the_same_numbers():
    net = small().eval()
    everything = outputs(net)
    ran = []
    for index, part in enumerate(net.mtl_decoder.depth_dec.decoder):
        part.register_forward_hook(lambda *_, index=index: ran.append(index))
    net.mtl_decoder.sa_seg.register_forward_hook(lambda *_: ran.append("gate"))
    torch.testing.assert_close(net(FRAMES[0]), everything.logits, rtol=0, atol=0)
    assert ran == [0, 2, 3, 5, 6, 8]  # the depth levels that the segmentation reads, no disparity

    ran.clear()
    few = net.outputs(FRAMES[0], scales=(0,))
    assert list(few.disp) == [0] and torch.equal(few.disp[0], everything.disp[0]) and few.transforms == {}
    assert 14 in ran and not {15, 16, 17} & set(ran)

    ran.clear()
    assert list(net.outputs(FRAMES[0], scales=(3, 2)).disp) == [3, 2]
    assert not {9, 11, 12, 13, "gate"} & set(ran)


@pytest.mark.parametrize("options", [{}, {"distillation_layer": 6, "final_layer": 8}, {"dilated": False}])
@torch.no_grad()
def test_any_input_size(options):
    net = small(**options).eval()
    frame = rand((1, 3, 70, 101), 0)
    out = net.outputs(frame, {1: frame})
    assert out.logits.shape == (1, 3, 70, 101) and out.transforms[1].shape == (1, 4, 4)
    assert [out.disp[s].shape[-2:] for s in range(4)] == [(70, 101), (35, 51), (18, 26), (9, 13)]


def test_bad_requests():
    for layers in ((4, 9), (9, 9), (8, 7), (7, 10)):
        with pytest.raises(UserError, match=f"distillation_layer {layers[0]} and final_layer {layers[1]}"):
            small(distillation_layer=layers[0], final_layer=layers[1])
    with pytest.raises(UserError, match="no pose network"):
        outputs(small(pose_encoder=None))
    with pytest.raises(UserError, match="64x32 pixels is too small"):
        small(dilated=False).eval()(rand((1, 3, 32, 64), 0))
    with pytest.raises(UserError, match="batch size 1 cannot train an ASPP"):
        small(aspp=(2,))(rand((1, 3, 64, 64), 0))


def test_a_teacher_has_no_pose_and_its_dropout_acts_in_training():
    net = small(aspp=(1, 2))
    teacher = copy.deepcopy(net.without_pose())
    assert [g["lr"] for g in teacher.parameter_groups(1, 2)] == [1, 2]
    assert list(teacher.parts()) == ["encoder", "mtl_decoder"]
    own = dict(net.without_pose().named_parameters())
    assert all(own[name] is p for name, p in net.named_parameters() if not name.startswith("pose_net."))
    assert list(own) == [name for name, _ in teacher.named_parameters()]
    teacher.train()
    assert not torch.equal(teacher(FRAMES[0]), teacher(FRAMES[0]))
    for part in (teacher.mtl_decoder.depth_dec, teacher.mtl_decoder.seg_dec):
        part.decoder[0].project[3].p = 0.0
    torch.testing.assert_close(teacher(FRAMES[0]), teacher(FRAMES[0]), rtol=0, atol=0)


def test_half_precision_answers_are_float32():
    net = small().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = outputs(net)
    kinds = {x.dtype for x in (out.logits, out.side_logits, *out.disp.values(), out.transforms[1])}
    assert kinds == {torch.float32} and out.encoder[-1].dtype == torch.bfloat16


LABELS = (5 * rand((2, *SIZE), 9)).long().masked_fill(rand((2, *SIZE), 8) < 0.3, 255)


@torch.no_grad()
def test_segmentation_loss_is_half_of_both_cross_entropies():
    logits, side = randn((2, 5, *SIZE), 0), randn((2, 5, SIZE[0] // 4, SIZE[1] // 4), 1)
    expected = 0.0
    for maps in (logits, corner_aligned(side, SIZE)):
        probabilities = maps.double().softmax(1)
        known = (LABELS != 255).nonzero().tolist()
        picked = [-probabilities[b, LABELS[b, y, x], y, x].log() for b, y, x in known]
        expected += float(torch.stack(picked).mean()) / 2
    assert float(segmentation_loss(logits, side, LABELS)) == pytest.approx(expected, rel=1e-5)
    assert float(segmentation_loss(logits, side, torch.full_like(LABELS, 255))) == 0


def corner_aligned(x, size):
    """Bilinear resize with align_corners True, written out: corner pixels keep their places."""
    rows, columns = (torch.linspace(0, n - 1, m) for n, m in zip(x.shape[-2:], size, strict=True))
    for axis, places in ((2, rows), (3, columns)):
        low = places.floor().long().clamp(max=x.shape[axis] - 2)
        share = (places - low).view(*(-1 if a == axis else 1 for a in range(4)))
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, low + 1) * share
    return x


@torch.no_grad()
def test_losses_and_their_weights():
    out, twin = outputs(small(5)), randn((2, 320, 4, 6), 0)
    sources = {o: f for o, f in FRAMES.items() if o}
    everything = multitask_losses(out, FRAMES, K, LABELS, twin, feature_weight=1e-2, automask=False)
    depth = monodepth_loss(out.disp, FRAMES[0], sources, out.transforms, K, automask=False)["loss"]
    assert {k: float(v) for k, v in everything.items()} == pytest.approx(
        {
            "depth": float(depth),
            "segmentation": float(segmentation_loss(out.logits, out.side_logits, LABELS)),
            # the root of the summed squares over the whole batch, no mean
            "feature_distance": 1e-2 * float(((out.encoder[-1] - twin) ** 2).sum().sqrt()),
        }
    )
    weighted = multitask_losses(
        out, FRAMES, K, LABELS, twin, depth_weight=3, segmentation_weight=0.5, feature_weight=1, automask=False
    )
    ratios = {name: float(weighted[name] / everything[name]) for name in everything}
    assert ratios == pytest.approx({"depth": 3, "segmentation": 0.5, "feature_distance": 100})

    # Without labels, without neighbours, by the published weights: what is absent is left out.
    assert list(multitask_losses(out, FRAMES, K, reference=twin)) == ["depth"]
    assert list(multitask_losses(out, labels=LABELS)) == ["segmentation"]
    assert multitask_losses(out, FRAMES, K, LABELS, depth_weight=0, segmentation_weight=0) == {}
    masked = multitask_losses(out, FRAMES, K)["depth"]
    assert float(masked) < float(everything["depth"])  # the auto-mask only adds candidates to a minimum
    options = {"min_depth": 1.0, "max_depth": 50.0}
    twice = [{**options, "generator": torch.Generator().manual_seed(3)} for _ in range(2)]
    noisy = monodepth_loss(out.disp, FRAMES[0], sources, out.transforms, K, **twice[0])["loss"]
    assert float(noisy) == float(multitask_losses(out, FRAMES, K, **twice[1])["depth"])
    for other in (options, {"min_depth": 1.0}, {"generator": twice[0]["generator"]}):
        assert float(noisy) != float(multitask_losses(out, FRAMES, K, **other)["depth"])


def test_which_loss_teaches_what():
    """Through the gates each task's loss reaches the other's decoder up to the exchange, and no further."""
    net = small(5)
    decoder = net.mtl_decoder

    def taught(losses):
        net.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}

    from_depth = taught(multitask_losses(outputs(net), FRAMES, K, automask=False))
    from_labels = taught(multitask_losses(outputs(net), labels=LABELS))
    common = {f"mtl_decoder.{d}.decoder.0.block.0.conv.weight" for d in ("depth_dec", "seg_dec")}
    assert common <= from_depth and common <= from_labels
    # decoder.11 is level 1's second block: after the exchange.
    assert "mtl_decoder.depth_dec.decoder.11.block.0.conv.weight" in from_depth - from_labels
    assert "mtl_decoder.seg_dec.decoder.11.block.0.conv.weight" in from_labels - from_depth
    assert any(name.startswith("pose_net.") for name in from_depth)
    assert not any(name.startswith("pose_net.") for name in from_labels)
    assert {"mtl_decoder.sa_seg.conv.weight", "mtl_decoder.sa_seg.attention.weight"} <= from_depth - from_labels
    assert {"mtl_decoder.sa_depth.conv.weight", "mtl_decoder.seg_final_head.0.weight"} <= from_labels - from_depth
    unused = [f"mtl_decoder.seg_dec.decoder.{i}.conv.weight" for i in range(14, 18)]
    assert not set(unused) & (from_depth | from_labels)
    assert all(decoder.seg_dec.decoder[i].conv.weight.grad is None for i in range(14, 18))


def test_steps_one_after_the_other_give_the_gradient_of_the_sum():
    """The reference calls backward for depth (graph kept), then for segmentation; channels_last changes nothing."""
    gradients, plain = [], torch.contiguous_format
    for together, layout in ((True, plain), (False, plain), (True, torch.channels_last)):
        net = small(5).to(memory_format=layout).eval()
        frames = {o: f.contiguous(memory_format=layout) for o, f in FRAMES.items()}
        losses = multitask_losses(
            net.outputs(frames[0], {o: frames[o] for o in (-1, 1)}), frames, K, LABELS, automask=False
        )
        if together:
            sum(losses.values()).backward()
        else:
            losses["depth"].backward(retain_graph=True)
            losses["segmentation"].backward()
        gradients.append([p.grad.contiguous() for p in net.parameters() if p.grad is not None])
    for one, other, last in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(one, last, rtol=2e-2, atol=1e-4)


BLOCK = {
    "encoder": LITE,
    "weights": "none",
    "dilated": False,
    "channels": [4, 5, 6, 7, 8],
    "batch_norm": True,
    "aspp_rates": [1, 2],
    "pose_encoder": LITE,
    "pose_weights": "none",
    "distillation_layer": 6,
    "final_layer": 8,
}


def test_options_reach_the_network():
    net = build_multitask_net(3, **Multitask(**BLOCK).arguments())
    assert (net.mtl_decoder.exchange, net.mtl_decoder.final) == (3, 1)
    assert net.mtl_decoder.seg_dec.channels == net.mtl_decoder.depth_dec.channels == (4, 5, 6, 7, 8)
    assert net.encoder.strides[-1] == 32 and net.pose_net.pose_encoder.name == LITE
    for decoder in (net.mtl_decoder.depth_dec, net.mtl_decoder.seg_dec):
        assert [conv[0].dilation[0] for conv in decoder.decoder[0].convs[1:3]] == [1, 2]
        assert any("block.1.weight" in key for key in decoder.state_dict())


def test_wrong_options():
    start = {"encoder": False, "decoder": False}
    for block, wrong, message in (
        (Multitask, BLOCK | {"final_layer": 6}, "final_layer 6 must lie beyond distillation_layer 6"),
        (Multitask, BLOCK | {"encoder": "resnet18", "dilated": True}, "cannot be dilated"),
        (Multitask, BLOCK | {"pose_encoder": "resnet18", "pose_weights": "package"}, "pose_weights: the package"),
        (Transfer, start, "both false"),
    ):
        with pytest.raises(ValueError, match=message):
            block(**wrong)
