"""Encoders, depth decoder, pose, segmentation network: parity with the reference and what it cannot show."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from helpers import fill_by_rule, rand
from semivid.depth.networks import DepthModel, build_depth_model
from semivid.errors import UserError
from semivid.models.build import build_network
from semivid.models.depth_decoder import ASPP, DepthDecoder
from semivid.models.encoder_decoder import SegmentationDecoder, SegmentationNet, build_segmentation_net
from semivid.models.encoders import build_encoder
from semivid.models.pose import PoseDecoder, PoseNet
from semivid.pipeline.params import EncoderDecoder, FCN8s
from small import small_params

SIZE = (64, 128)
FRAME = (1, 3, *SIZE)
LITE = "tf_efficientnet_lite0"
DEC6 = {"channels": (64, 128, 128, 256, 256), "batch_norm": False}
DEC9 = {"channels": (64, 64, 128, 128, 256), "batch_norm": True}


def reference(data_dir, name):
    spec = json.loads((data_dir / f"three_ways_{name}.json").read_text())
    return spec, np.load(data_dir / f"three_ways_{name}.npz")


def named_keys(modules):
    """[name, shape, type] of every tensor with the reference's prefix, as its key lists write them."""
    return [
        [f"models.{part}.{key}", list(value.shape), str(value.dtype).removeprefix("torch.")]
        for part, module in modules.items()
        for key, value in module.state_dict().items()
    ]


def fill(modules):
    for part, module in modules.items():
        fill_by_rule(module, f"models.{part}.").eval()


def same(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_depth_model_equals_the_reference(data_dir):
    spec, expected = reference(data_dir, "depth")
    model = build_depth_model()
    parts = model.parts()
    order = ("encoder", "pose_encoder", "pose", "depth")
    assert named_keys({name: parts[name] for name in order}) == spec["keys"]
    assert sum(p.numel() for p in model.parameters()) == spec["n_parameters"]
    fill(parts)
    frame, before, after = (rand(FRAME, seed) for seed in range(3))

    out = model(frame, {-1: before, 1: after})
    for scale in range(4):
        same(out["disp"][scale], expected[f"disp{scale}"])
    same(out["features"][3], expected["upconv3"])
    axisangle, translation = model.pose_net(before, frame)
    same(axisangle, expected["axisangle_m1"], 1e-6)
    same(translation, expected["translation_m1"], 1e-6)
    same(out["transforms"][-1], expected["T_m1"], 1e-6)
    same(out["transforms"][1], expected["T_p1"], 1e-6)

    # Less work gives the same numbers.
    few = model(frame, scales=(), levels=(3,))
    assert few["disp"] == {} and set(few["features"]) == {4, 3} and few["transforms"] == {}
    torch.testing.assert_close(few["features"][3], out["features"][3], rtol=0, atol=0)


def test_aspp_rates(data_dir):
    """The reference's 64x128 inputs cannot tell the rates 12 and 18; its check on a 20x40 map can."""
    check = reference(data_dir, "depth")[0]["aspp_check"]
    aspp = fill_by_rule(ASPP(2048, 256, (6, 12, 18), 0.5), "models.depth.decoder.0.").eval()
    with torch.no_grad():
        y = aspp(rand((1, 2048, 20, 40), 0))
    assert list(y.shape) == check["shape"]
    assert float(y.mean()) == pytest.approx(check["mean"], rel=1e-4)
    assert float(y.abs().sum()) == pytest.approx(check["abs sum"], rel=1e-4)
    for c, i, j in ((0, 0, 0), (100, 19, 39), (255, 10, 20), (1, 10, 20)):
        assert float(y[0, c, i, j]) == pytest.approx(check[f"y[0,{c},{i},{j}]"], abs=1e-4)


@torch.no_grad()
def test_segmentation_net_equals_the_reference(data_dir):
    spec, expected = reference(data_dir, "transfer_seg")
    net = build_segmentation_net(19)
    modules = {"encoder": net.encoder, "segmentation": net.segmentation}
    assert named_keys(modules) == spec["keys"]
    fill(modules)
    logits = net(rand(FRAME, 0))
    assert logits.shape == (1, 19, *SIZE)
    same(logits[:, :, ::4, ::4], expected["semantics"])

    encoder, rest = net.parameter_groups(1e-3, 1e-2)
    assert (encoder["lr"], rest["lr"]) == (1e-3, 1e-2)
    assert len(encoder["params"]) == 312 and sum(p.numel() for p in encoder["params"]) == 42_500_160
    assert len(rest["params"]) == 47 and sum(p.numel() for p in rest["params"]) == 22_071_959


@torch.no_grad()
def test_selection_student_equals_the_reference(data_dir):
    spec, expected = reference(data_dir, "selection_student")
    student = build_depth_model("resnet50", **DEC9, pose_encoder=None)
    encoder = student.encoder
    segmentation = SegmentationDecoder(
        DepthDecoder(encoder.channels, encoder.strides, **DEC9),
        encoder.channels,
        19,
        layers=(8,),
        output_stride=2,
        head_inter=True,
    )
    modules = {"encoder": encoder, "depth": student.depth, "segmentation": segmentation}
    assert named_keys(modules) == spec["keys"]
    fill(modules)
    frame = rand(FRAME, 0)
    same(student(frame, scales=(0,))["disp"][0], expected["disp0"])
    same(SegmentationNet(encoder, segmentation)(frame)[:, :, ::4, ::4], expected["semantics"])


def test_dropout_and_batch_norm_of_the_aspp_act_in_training_only():
    torch.manual_seed(0)
    aspp, x = ASPP(8, 16, (2,), 0.5), rand((2, 8, 6, 6), 0)
    y = aspp(x)
    assert not torch.equal(y, aspp(x))
    # A ReLU alone leaves about half of the values 0, with dropout it is about three quarters.
    assert 0.65 < float((y == 0).float().mean()) < 0.85
    aspp.project[3].p = 0.0
    assert float((aspp(x) == 0).float().mean()) < 0.6
    aspp.eval()
    torch.testing.assert_close(aspp(x), aspp(x), rtol=0, atol=0)


def test_head_dropout_acts_in_training_only():
    torch.manual_seed(0)
    options = {"aspp": (), "channels": (4,) * 5, "layers": (8,), "output_stride": 2, "head_inter": True}
    net = build_segmentation_net(3, LITE, **options, head_dropout=0.5)
    frame = rand((2, 3, 32, 48), 0)
    assert not torch.equal(net(frame), net(frame))
    net.eval()
    torch.testing.assert_close(net(frame), net(frame), rtol=0, atol=0)


def test_aspp_cannot_be_trained_with_one_sample():
    net = build_segmentation_net(3, LITE, aspp=(2,), channels=(4,) * 5)
    with pytest.raises(UserError, match="batch size 1 cannot train an ASPP"):
        net(rand((1, 3, 32, 48), 0))
    assert net.eval()(rand((1, 3, 32, 48), 0)).shape == (1, 3, 32, 48)
    plain = build_segmentation_net(3, LITE, aspp=(), channels=(4,) * 5)
    assert plain(rand((1, 3, 32, 48), 0)).shape == (1, 3, 32, 48)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", LITE])
@pytest.mark.parametrize("dilated", [False, True])
@torch.no_grad()
def test_encoder_maps(name, dilated):
    if dilated and name == "resnet18":
        with pytest.raises(UserError, match="cannot be dilated"):
            build_encoder(name, dilated)
        return
    encoder = build_encoder(name, dilated).eval()
    assert encoder.strides == (2, 4, 8, 16, 16 if dilated else 32)
    assert all(key.startswith("encoder.") for key in encoder.state_dict())
    height, width = 45, 64
    maps = encoder(rand((1, 3, height, width), 0))
    for one, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert one.shape == (1, channels, -(-height // stride), -(-width // stride))


@torch.no_grad()
def test_encoders_normalise_inside():
    """Grey 0.45 is a ResNet's zero, 127 of 255 that of lite0: their first convolution then answers zero."""
    for name, grey in (("resnet18", 0.45), (LITE, 127 / 255)):
        encoder = build_encoder(name, dilated=False).eval()
        first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
        seen = []
        first.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        encoder(torch.full((1, 3, 32, 32), grey))
        encoder(torch.ones(1, 3, 32, 32))
        assert float(seen[0].abs().max()) < 1e-6
        one = 0.55 / 0.225 if name == "resnet18" else 1.0
        assert float(seen[1].mean()) == pytest.approx(one, rel=1e-5)


@torch.no_grad()
def test_dilation_keeps_the_weights_but_not_the_answer():
    plain, dilated = (build_encoder("resnet50", dilated=flag).eval() for flag in (False, True))
    dilated.load_state_dict(plain.state_dict())
    x = rand((1, 3, 64, 64), 0)
    coarse, fine = plain(x), dilated(x)
    torch.testing.assert_close(coarse[3], fine[3])
    assert coarse[4].shape[-1] == 2 and fine[4].shape[-1] == 4
    # The first block of layer 4 has a stride-1, not yet dilated 3x3, later ones dilation 2.
    convs = [block.conv2.dilation for block in dilated.encoder.layer4]
    assert convs == [(1, 1), (2, 2), (2, 2)]


def test_unknown_encoder():
    with pytest.raises(UserError, match="unknown encoder 'resnet34'"):
        build_encoder("resnet34", dilated=False)


@pytest.mark.parametrize("size", [(180, 240), (33, 50), (64, 96)])
@pytest.mark.parametrize("dilated", [False, True])
@torch.no_grad()
def test_any_input_size(size, dilated):
    model = build_depth_model(LITE, dilated, channels=(4,) * 5, aspp=(), pose_encoder=LITE).eval()
    frames = [rand((1, 3, *size), seed) for seed in range(2)]
    out = model(frames[0], {1: frames[1]}, levels=(0,))
    assert out["transforms"][1].shape == (1, 4, 4)
    for scale, disp in out["disp"].items():
        expected = tuple(-(-side // 2**scale) for side in size)
        assert disp.shape[-2:] == expected and disp.min() > 0 and disp.max() < 1
    options = {"layers": (3, 7, 8), "output_stride": 2, "head_inter": True}
    net = build_segmentation_net(5, LITE, dilated, channels=(4,) * 5, aspp=(), **options).eval()
    assert net(frames[0]).shape == (1, 5, *size)


@torch.no_grad()
def test_only_needed_levels_run():
    net = build_segmentation_net(5, LITE, channels=(4, 5, 6, 7, 8), aspp=(), layers=(8,)).eval()
    ran = []
    for index, part in enumerate(net.segmentation.unet_dec.decoder):
        part.register_forward_hook(lambda *_, index=index: ran.append(index))
    net(rand((1, 3, 64, 64), 0))
    assert ran == [0, 2, 3, 5, 6, 8, 9, 11]

    model = build_depth_model(LITE, channels=(4, 5, 6, 7, 8), aspp=(), pose_encoder=None).eval()
    ran.clear()
    for index, part in enumerate(model.depth.decoder):
        part.register_forward_hook(lambda *_, index=index: ran.append(index))
    assert list(model(rand((1, 3, 64, 64), 0), scales=(0,))["disp"]) == [0]
    assert 14 in ran and not {15, 16, 17} & set(ran)


def test_too_small_an_input():
    net = build_segmentation_net(2, LITE, dilated=False, channels=(4,) * 5, aspp=()).eval()
    with pytest.raises(UserError, match="64x32 pixels is too small"):
        net(rand((1, 3, 32, 64), 0))


def test_bad_layers():
    with pytest.raises(UserError, match="segmentation layers"):
        build_segmentation_net(2, LITE, channels=(4,) * 5, aspp=(), layers=(3,))
    with pytest.raises(UserError, match="five levels"):
        build_segmentation_net(2, LITE, channels=(4,) * 4)


def test_pose_decoder_has_no_relu_at_the_end_and_scales():
    decoder = PoseDecoder(4)
    for conv in decoder.net[:-1]:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    decoder.net[-1].bias.data = torch.arange(12.0) - 6
    axisangle, translation = decoder(rand((2, 4, 3, 5), 0))
    assert axisangle.shape == translation.shape == (2, 2, 1, 3)
    torch.testing.assert_close(axisangle[1, 0, 0], torch.tensor([-0.06, -0.05, -0.04]))
    torch.testing.assert_close(translation[1, 1, 0], torch.tensor([0.03, 0.04, 0.05]))


@torch.no_grad()
def test_motion_there_and_back():
    """The same pair seen from either side gives motions that undo each other."""
    torch.manual_seed(0)
    net = PoseNet(build_encoder("resnet18", dilated=False, in_frames=2)).eval()
    a, b = rand((1, 3, 64, 64), 0), rand((1, 3, 64, 64), 1)
    forth, back = net.transform(a, b, 1), net.transform(b, a, -1)
    torch.testing.assert_close(forth @ back, torch.eye(4)[None], rtol=0, atol=1e-6)
    assert not torch.allclose(forth, net.transform(a, b, -1))


def test_channels_last_and_gradients_agree():
    torch.manual_seed(0)
    net = build_segmentation_net(4, LITE, channels=(4,) * 5, batch_norm=True, aspp=(2,), aspp_dropout=0.0)
    frame = rand((2, 3, 32, 64), 0)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        net.zero_grad()
        net(frame.contiguous(memory_format=layout)).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)


def test_half_precision_answers_are_float32():
    model = build_depth_model(LITE, channels=(4,) * 5, aspp=(), pose_encoder=LITE).eval()
    net = build_segmentation_net(3, LITE, channels=(4,) * 5, aspp=()).eval()
    frame = rand((1, 3, 32, 64), 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = model(frame, {-1: frame})
        logits = net(frame)
    assert {x.dtype for x in (*out["disp"].values(), out["transforms"][-1], logits)} == {torch.float32}


def test_depthwise_convolutions_stay_float32_on_the_cpu():
    """Same keys and numbers, also in a copy; under autocast only the others are of half precision."""
    import timm

    encoder = build_encoder(LITE, dilated=False).eval()
    plain = timm.create_model(LITE, features_only=True).eval()
    plain.load_state_dict(encoder.encoder.state_dict())
    twin, frame = copy.deepcopy(encoder), rand((1, 3, 32, 64), 0)
    with torch.no_grad():
        for one, other in zip(twin(frame), plain(frame * (255 / 128) - 127 / 128), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    kinds = {}
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, y, name=name: kinds.update({name: (m.groups, y.dtype)}))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        twin(frame)
    assert {dtype for groups, dtype in kinds.values() if groups > 1} == {torch.float32}
    assert {dtype for groups, dtype in kinds.values() if groups == 1} == {torch.bfloat16}


def test_decoder_widths_follow_any_encoder():
    decoder = DepthDecoder((3, 5, 7, 9, 11), (2, 4, 8, 16, 32), (2, 4, 6, 8, 10), aspp=())
    maps = [rand((1, c, 64 // s, 64 // s), 0) for c, s in zip((3, 5, 7, 9, 11), (2, 4, 8, 16, 32), strict=True)]
    out = DepthModel(torch.nn.Identity(), decoder).depth(maps, (64, 64))
    assert [out["features"][level].shape[1] for level in range(5)] == [2, 4, 6, 8, 10]
    sizes = [out["features"][level].shape[-1] for level in range(5)]
    assert all(a == 2 * b for a, b in pairwise(sizes)) and sizes[0] == 64


# ---- whatever params.yaml asks for


def test_params_choose_the_architecture():
    """On the meta device: FCN-8s has half a gigabyte of weights."""
    network = small_params()["network"]
    with torch.device("meta"):
        net = build_network(5, EncoderDecoder(**network))
        assert isinstance(net, SegmentationNet) and net.segmentation.head[-1].out_channels == 5
        net = build_network(5, FCN8s(architecture="fcn8s", weights="none", input="reference"))
    assert type(net).__name__ == "FCN8s" and net.num_classes == 5 and net.input == "reference"


def test_a_trained_network_needs_no_encoder_weights(tmp_path):
    missing = small_params()["network"] | {"weights": str(tmp_path / "gone.pth")}
    with pytest.raises(UserError, match=r"gone\.pth"):
        build_network(5, EncoderDecoder(**missing))
    assert isinstance(build_network(5, EncoderDecoder(**missing), trained=True), SegmentationNet)
