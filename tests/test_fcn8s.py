"""FCN-8s: the reference's output, names and sizes, torchvision's VGG16 and published files as weights."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from helpers import fill_value, rand
from semivid.errors import UserError
from semivid.models.fcn8s import INPUTS, MEAN, STD, FCN8s, _bilinear_upsampling, build_fcn8s, from_vgg16


@pytest.fixture(scope="module")
def spec(data_dir):
    return json.loads((data_dir / "fcn8s_keys.json").read_text())


@pytest.fixture(scope="module")
def net():
    """Filled by the rule, in evaluation mode; its input is the reference's."""
    network = empty(19, input="reference")
    state = {key: fill_value(key, value) for key, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


@pytest.fixture
def quick_start(monkeypatch):
    """No random start of layers that a file fills: they hold 133 of the 134 million numbers."""
    start = torch.nn.Conv2d.reset_parameters
    monkeypatch.setattr(
        torch.nn.Conv2d, "reset_parameters", lambda self: start(self) if self.weight.numel() < 1e5 else None
    )


def empty(num_classes=19, **options):
    """A network without memory for its 134 million numbers: shapes only."""
    with torch.device("meta"):
        return FCN8s(num_classes, **options)


def tiny(tensor, seed=0):
    """A tensor of that shape that needs almost no memory or disk: random along its last long axis, else repeated."""
    shape = tensor.shape
    if not shape:
        return torch.zeros(())
    axis = max(range(len(shape)), key=lambda i: shape[i])
    line = rand((shape[axis],), seed) - 0.5
    return line.view([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def tiny_state(module):
    return OrderedDict((key, tiny(value, n)) for n, (key, value) in enumerate(module.state_dict().items()))


def vgg(name="vgg16"):
    with torch.device("meta"):
        return getattr(torchvision.models, name)()


# The network


def test_names_shapes_and_size(spec):
    state = empty().state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == [row[:2] for row in spec["keys"]]
    assert len(state) == spec["n_tensors"] == 39
    assert sum(p.numel() for p in empty().parameters()) == spec["n_parameters"] == 134_456_985
    assert not list(empty().buffers())


@torch.no_grad()
def test_output_of_the_reference(spec, data_dir, net):
    fixture, seen = np.load(data_dir / "fcn8s.npz"), {}
    hooks = [
        getattr(net, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in spec["intermediate_shapes_for_the_fixture"]
    ]
    blue_first = rand((1, 3, 64, 128), 0)
    out = net(blue_first.flip(1))
    for hook in hooks:
        hook.remove()
    assert {name: list(value.shape) for name, value in seen.items()} == spec["intermediate_shapes_for_the_fixture"]
    torch.testing.assert_close(out[:, :, ::2, ::2], torch.tensor(fixture["out0"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen["classifier"], torch.tensor(fixture["score"]), rtol=0, atol=1e-5)
    assert (out.argmax(1).numpy() != fixture["argmax_full"]).mean() < 0.001
    for name, std in spec["intermediate_std_for_the_fixture"].items():
        if name in seen:
            assert seen[name].std().item() == pytest.approx(std, rel=1e-3)


def test_sizes_of_the_layers():
    """At 512x1024 (specification, section 6); the rounding up of the pools shows in conv_block3 and 5."""
    network, sizes = empty(), {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: tuple(out.shape[-2:])}))
    out = network(torch.empty(2, 3, 512, 1024, device="meta"))
    assert out.shape == (2, 19, 512, 1024)
    assert [sizes[f"conv_block{n}"] for n in range(1, 6)] == [(355, 611), (178, 306), (89, 153), (45, 77), (23, 39)]
    assert [sizes[n] for n in ("classifier", "upscore2", "upscore4", "upscore8")] == [
        (17, 33),
        (36, 68),
        (74, 138),
        (600, 1112),
    ]


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (37, 100), (192, 320), (360, 480), (375, 1242), (1024, 2048)])
def test_any_size(size):
    assert empty(5)(torch.empty(1, 3, *size, device="meta")).shape == (1, 5, *size)


@pytest.mark.parametrize(("name", "size", "stride"), [("upscore2", 4, 2), ("upscore4", 4, 2), ("upscore8", 16, 8)])
def test_upsampling_starts_as_bilinear_interpolation(name, size, stride):
    torch.manual_seed(0)
    # The classifier's 120 million numbers are not needed here.
    with torch.device("meta"):
        kernel_size = getattr(FCN8s(3), name).kernel_size
    layer = _bilinear_upsampling(3, size, stride)
    assert kernel_size == layer.kernel_size == (size, size) and layer.stride == (stride, stride) and layer.bias is None
    x = rand((1, 3, 6, 7), 2)
    margin = (size - stride) // 2
    ours = layer(x)[..., margin:-margin, margin:-margin]
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    torch.testing.assert_close(ours[inside], expected[inside], rtol=1e-5, atol=1e-6)
    first = layer.weight[0, 0, 0] / layer.weight[0, 0, 0].max()
    if size == 4:
        torch.testing.assert_close(layer.weight[1, 1, 1], 0.75 * torch.tensor([0.25, 0.75, 0.75, 0.25]))
    else:
        torch.testing.assert_close(first, torch.cat([torch.arange(1, 16, 2), torch.arange(15, 0, -2)]) / 15)


@torch.no_grad()
def test_inputs(net):
    """`imagenet` is RGB with torchvision's mean and deviation, `reference` BGR as it is; also for two frames."""
    transform = torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == (MEAN, STD)
    picture = rand((2, 6, 5, 4), 3)
    for frames in (1, 2):
        x = picture[:, : 3 * frames]
        normal = empty(2, frames=frames)._first_layer_sees(x)
        expected = [torchvision.transforms.functional.normalize(part, MEAN, STD) for part in x.split(3, 1)]
        torch.testing.assert_close(normal, torch.cat(expected, 1))
        swapped = empty(2, frames=frames, input="reference")._first_layer_sees(x)
        assert torch.equal(swapped, x[:, [2, 1, 0, 5, 4, 3][: 3 * frames]])
    last = picture[:, :3].contiguous(memory_format=torch.channels_last)
    assert empty(2)._first_layer_sees(last).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="unknown input 'bgr'; take imagenet or reference"):
        empty(2, input="bgr")


@torch.no_grad()
def test_half_precision(net):
    picture = rand((1, 3, 8, 8), 4)
    exact = net(picture)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(picture.contiguous(memory_format=torch.channels_last))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.03


def test_training_reaches_every_tensor():
    """All 39 get a gradient and are in one of two groups; whole maps are dropped (on shapes alone)."""
    network = empty(3)
    groups = network.parameter_groups(0.25, 0.5)
    assert [group["lr"] for group in groups] == [0.25, 0.5]
    names = {id(p): name for name, p in network.named_parameters()}
    sides = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sides[0] == [name for name in names.values() if name.startswith("conv_block")] and len(sides[0]) == 26
    assert sides[1] == [name for name in names.values() if not name.startswith("conv_block")] and len(sides[1]) == 13
    network(torch.empty(1, 3, 16, 16, device="meta")).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    dropouts = [m for m in network.modules() if "Dropout" in type(m).__name__]
    assert [(type(m), m.p) for m in dropouts] == 2 * [(torch.nn.Dropout2d, 0.5)]


# Weights


@torch.no_grad()
def test_torchvision_vgg16_computes_the_same():
    """With the padding of a VGG16 the blocks and the classifier are torchvision's, on random weights."""
    theirs, ours = vgg().to_empty(device="cpu").eval(), empty().eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        bound = (6 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.uniform_(-bound, bound)
    ours.load_state_dict(from_vgg16(theirs.state_dict(), 19), strict=False, assign=True)
    ours.conv_block1[0].padding = (1, 1)
    picture = rand((1, 3, 224, 224), 6)
    x = ours._first_layer_sees(picture)
    for block in ours.vgg():
        x = block(x)
    features = theirs.features(torchvision.transforms.functional.normalize(picture, MEAN, STD))
    torch.testing.assert_close(x, features, rtol=1e-4, atol=1e-4)
    scores = theirs.classifier(features.flatten(1))[:, :19]
    assert scores.std() > 0.1
    torch.testing.assert_close(ours.classifier(x).flatten(1), scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2])
def test_torchvision_file(tmp_path, quick_start, frames):
    """Every tensor of the file arrives, the pools' scores keep their random and the upsampling its bilinear start."""
    state = tiny_state(vgg())
    assert len(state) == 32
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    torch.manual_seed(1)
    network = build_fcn8s(11, str(tmp_path / "vgg16-397923af.pth"), frames=frames)
    own = network.state_dict()
    first = state["features.0.weight"]
    assert torch.equal(own["conv_block1.0.weight"], torch.cat([first] * frames, 1))  # not divided (section 2)
    numbers = iter([k for k in state if k.startswith("features.")][1:])
    for key in [k for k in own if k.startswith("conv_block")][1:]:
        assert torch.equal(own[key], state[next(numbers)])
    assert next(numbers, None) is None
    assert torch.equal(own["classifier.0.weight"].flatten(1), state["classifier.0.weight"])
    assert torch.equal(own["classifier.3.weight"].flatten(1), state["classifier.3.weight"])
    assert torch.equal(own["classifier.6.weight"].flatten(1), state["classifier.6.weight"][:11])
    assert torch.equal(own["classifier.6.bias"], state["classifier.6.bias"][:11])
    assert own["score_pool4.weight"].std() > 0.01
    assert own["upscore2.weight"].sum() == pytest.approx(11 * 4)


def published(path, state, **replaced):
    """A file as train.py of the reference writes it: torch 0.4.1's format, NumPy 1's names."""
    momentum = {n: {"momentum_buffer": torch.zeros(1)} for n in range(2)}
    content = {
        "epoch": 299_000,
        "model_state": OrderedDict((f"module.{key}", value) for key, value in state.items()),
        "optimizer_state": {
            "state": {140_000_000_000_000 + n: buffer for n, buffer in momentum.items()},
            "param_groups": [{"lr": 1e-10, "momentum": 0.99, "weight_decay": 0.0005, "params": [140_000_000_000_000]}],
        },
        "scheduler_state": {"base_lrs": [1e-10], "last_epoch": 299_000},
        "best_iou": np.float64(0.53),
    }
    torch.save(content | replaced, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@torch.no_grad()
def test_published_file(tmp_path, quick_start, spec):
    state = OrderedDict(
        (key, tiny(torch.empty(shape, device="meta"), n)) for n, (key, shape, _) in enumerate(spec["keys"])
    )
    path = tmp_path / "fcn8s+fcl_100.pkl"
    published(path, state)
    assert b"numpy.core.multiarray" in path.read_bytes() and path.stat().st_size < 1e6
    network = build_fcn8s(19, str(path), input="reference")
    own = network.state_dict()
    assert list(own) == list(state) and all(torch.equal(own[key], state[key]) for key in state)
    # Normalised input would give other classes without any error.
    with torch.device("meta"), pytest.raises(UserError, match=r"fcl_100\.pkl: holds a published FCN-8s.*input to ref"):
        build_fcn8s(19, str(path))


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_own_file(tmp_path):
    """What training exports is no published file: it fits any input."""
    path = tmp_path / "model.safetensors"
    state = {key: torch.zeros(value.shape, dtype=torch.uint8) for key, value in empty().state_dict().items()}
    save_file(state, path)  # bytes, to be quarter the size; no network without memory is filled
    for kind in INPUTS:
        with torch.device("meta"):
            assert build_fcn8s(19, str(path), input=kind).input == kind
    path.unlink()


def refused(path, match, num_classes=19, **options):
    with torch.device("meta"), pytest.raises(UserError, match=match) as info:
        build_fcn8s(num_classes, str(path), **options)
    assert "\n" not in str(info.value) and str(path) in str(info.value)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vgg16_bn", "it seems to be a VGG-16 with batch normalisation, wanted is an FCN-8s of 19 classes"),
        ("vgg19", "it seems to be a VGG-19, wanted"),
        ("alexnet", "a network of 5 convolutions"),
        ("resnet18", "it seems to be a ResNet-18, wanted is an FCN-8s of 19 classes"),
    ],
)
def test_other_architectures_are_refused(tmp_path, name, match):
    torch.save(tiny_state(vgg(name)), tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", match)


def test_other_fcns_are_refused(tmp_path):
    path = tmp_path / "fcn8s_10.pkl"
    state = tiny_state(empty(11))
    published(path, state)
    refused(
        path,
        r"other shapes: classifier\.6\.weight \(11, .* an FCN-8s of 11 classes, wanted .* of 19 classes",
        input="reference",
    )
    published(path, tiny_state(empty(19, frames=3)))
    refused(path, "seems to be an FCN-8s of 19 classes and 3 frames, wanted", input="reference")
    coarse = OrderedDict(
        (k, v) for k, v in tiny_state(empty(19)).items() if not k.startswith(("score_pool3", "upscore"))
    )
    published(path, coarse)
    refused(path, r"lacks score_pool3\.weight, .* an FCN-16s of 19 classes", input="reference")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "fcn8s_1.pkl"
    state = tiny_state(empty(19))
    for value in (float("nan"), float("inf")):
        published(path, state | {"score_pool4.bias": torch.full((19,), value)})
        refused(path, r"1 of 39 tensors hold values .* not a number \(score_pool4\.bias\)", input="reference")
    published(path, state)
    whole = path.read_bytes()
    for part in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:part])
        refused(path, "download", input="reference")
    refused(tmp_path / "absent.pkl", "no such file")
    published(path, {}, model_state=3)
    refused(path, "no tensors by name")


class Harmful:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_code_in_a_published_file_does_not_run(tmp_path, capsys):
    published(tmp_path / "fcn8s_50.pkl", tiny_state(empty(19)), scheduler_state=Harmful())
    refused(tmp_path / "fcn8s_50.pkl", "more than tensors and plain values", input="reference")
    assert capsys.readouterr().out == ""
