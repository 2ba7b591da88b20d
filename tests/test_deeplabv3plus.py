"""DeepLabV3+: the references' names and outputs, published and ImageNet files as weights, what their fixtures miss."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers import fill_value, rand
from semivid.errors import UserError
from semivid.models.deeplabv3plus import MEAN, STD, TRUNKS, DeepLabV3Plus, build
from semivid.models.inspect_checkpoint import inspect_checkpoint

LISTS = {
    "wide_resnet38": "nvidia_deepwv3plus",
    "seresnext50": "nvidia_deepsrnx50v3plusd_m1",
    "seresnext101": "nvidia_deepsrnx101v3plusd_m1",
    "resnet50": "nvidia_deepr50v3plusd_m1",
}
S4GAN = "s4gan_deeplabv3plus_wrn38"
HEADS = ("aspp.", "bot_", "final.")


def spec_of(data_dir, name):
    return json.loads((data_dir / f"{name}.json").read_text())


def empty(trunk, num_classes=19, **options):
    """A network without memory for its numbers: shapes only."""
    with torch.device("meta"):
        return DeepLabV3Plus(num_classes, trunk, **options)


def filled(trunk, prefix="", **options):
    """Filled by the rule, in evaluation mode; `prefix` stands before the names of the trunk."""
    net = empty(trunk, **options)
    names = {key: key if key.startswith(HEADS) else prefix + key for key in net.state_dict()}
    state = {key: fill_value(names[key], value) for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval()


@pytest.fixture(scope="module")
def resnet():
    return filled("resnet50")


def as_seen(normalised):
    """RGB that the network's own normalisation turns into `normalised`, which the fixtures' networks take."""
    return normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def watch(net, *names):
    """What these modules answer from now on, by name."""
    seen = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    return seen


def close(actual, expected, tolerance=1e-3):
    """The fixtures' own terms: relative to the largest value."""
    expected = np.asarray(expected, dtype=np.float32)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# The network


@pytest.mark.parametrize("trunk", list(LISTS))
def test_names_shapes_and_size(data_dir, trunk):
    spec, net = spec_of(data_dir, LISTS[trunk]), empty(trunk)
    keys = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in net.state_dict().items()
    ]
    assert keys == spec["keys"]
    assert sum(p.numel() for p in net.parameters()) == spec["n_params"]


def check_fixture(data_dir, trunk, net):
    fixture, seen = np.load(data_dir / f"{LISTS[trunk]}.npz"), watch(net, "aspp", "bot_aspp", "bot_fine")
    logits = net(as_seen(rand((1, 3, 64, 128), 0)))
    close(seen["aspp"][:, ::8], fixture["aspp_c8"])
    close(seen["bot_aspp"], fixture["bot_aspp"])
    close(seen["bot_fine"][:, :, ::2, ::2], fixture["bot_fine_s2"])
    close(logits[:, :, ::2, ::2], fixture["logits_s2"])
    two = logits.topk(2, 1).values
    sure = (two[:, 0] - two[:, 1]) > 2e-3 * logits.abs().max()
    assert sure.float().mean() > 0.9
    assert torch.equal(logits.argmax(1)[sure], torch.from_numpy(fixture["argmax"]).long()[sure])


def check_probe(data_dir, trunk, net):
    probe = spec_of(data_dir, LISTS[trunk])["fixture"]["large_input_probe"]
    logits = net(as_seen(rand(probe["input"][1], probe["input"][2])))
    assert len(probe["full_size_logits_at_y_x"]) == 3
    for place, expected in probe["full_size_logits_at_y_x"].items():
        y, x = map(int, place.split(","))
        close(logits[0, :, y, x], expected)
    assert float(logits.abs().mean()) == pytest.approx(probe["mean_abs_logit"], rel=1e-3)
    assert float(logits.abs().max()) == pytest.approx(probe["max_abs_logit"], rel=1e-3)


@torch.no_grad()
def test_resnet50_equals_the_reference(data_dir, resnet):
    check_fixture(data_dir, "resnet50", resnet)
    check_probe(data_dir, "resnet50", resnet)


@torch.no_grad()
def test_seresnext50_equals_the_reference(data_dir):
    net = filled("seresnext50")
    check_fixture(data_dir, "seresnext50", net)
    check_probe(data_dir, "seresnext50", net)


@torch.no_grad()
def test_wide_resnet38_equals_the_reference(data_dir):
    check_fixture(data_dir, "wide_resnet38", filled("wide_resnet38"))


@pytest.mark.slow
@torch.no_grad()
def test_wide_resnet38_equals_the_reference_on_a_large_input(data_dir):
    check_probe(data_dir, "wide_resnet38", filled("wide_resnet38"))


@pytest.mark.slow
@torch.no_grad()
def test_that_of_semisup_semseg_equals_its_reference(data_dir):
    """Its own output is what `final` answers, at stride 2."""
    spec, fixture = spec_of(data_dir, S4GAN), np.load(data_dir / f"{S4GAN}.npz")
    net = filled("wide_resnet38", "backbone.", align_corners=False)
    seen = watch(net, "mod2", "mod5", "mod7", "aspp", "final")
    logits = net(as_seen(rand((1, 3, 64, 128), 0)))
    assert {name: list(seen[name].shape) for name in ("mod2", "mod5", "mod7", "aspp")} == {
        name: spec["fixture"]["shapes"][name] for name in ("mod2", "mod5", "mod7", "aspp")
    }
    close(seen["mod2"][:, ::8, ::4, ::4], fixture["s2"], 1e-4)
    close(seen["mod5"][:, ::16, ::2, ::2], fixture["mod5"], 1e-4)
    close(seen["mod7"][:, ::64, ::2, ::2], fixture["mod7"], 1e-4)
    close(seen["aspp"][:, ::16, ::2, ::2], fixture["aspp"], 1e-4)
    close(seen["final"][:, :, ::2, ::2], fixture["logits"], 1e-4)
    close(logits[:, :, ::16, ::16], fixture["upsampled"], 1e-4)


def test_dilation_by_output_stride():
    """Every 3x3 of a dilated layer, the first block's too, and no stride, the shortcut's neither (section 6)."""
    for trunk in ("resnet101", "seresnext50"):
        for stride, wanted in ((8, (2, 4)), (16, (None, 2))):
            net = empty(trunk, output_stride=stride)
            for layer, dilation in ((net.layer3, wanted[0]), (net.layer4, wanted[1])):
                assert {block.conv2.dilation[0] for block in layer} == {dilation or 1}
                assert layer[0].conv2.stride[0] == layer[0].downsample[0].stride[0] == (1 if dilation else 2)
            # The rates of stride 8 stay.
            assert [branch[0].dilation[0] for branch in net.aspp.features] == [1, 12, 24, 36]
            seen = watch(net, "layer4")
            net.eval()(torch.empty(1, 3, 64, 128, device="meta"))
            assert seen["layer4"].shape == (1, 2048, 64 // stride, 128 // stride)
    assert [len(getattr(empty("resnet101"), f"layer{n}")) for n in (1, 2, 3, 4)] == [3, 4, 23, 3]


@pytest.mark.parametrize(("trunk", "skip", "stride"), [("resnet50", "m2", 8), ("seresnext50", "m2", 8)])
def test_other_skip(trunk, skip, stride):
    net = empty(trunk, skip=skip).eval()
    seen = watch(net, "bot_fine")
    assert net(torch.empty(1, 3, 64, 128, device="meta")).shape == (1, 19, 64, 128)
    assert net.bot_fine.weight.shape == (48, 512, 1, 1) and seen["bot_fine"].shape[-2:] == (64 // stride, 128 // stride)


@pytest.mark.parametrize("trunk", ["wide_resnet38", "seresnext50", "resnet50"])
def test_any_size(trunk):
    net = empty(trunk, 5).eval()
    for size in ((3, 3), (3, 200), (33, 50), (360, 480), (375, 1242), (1024, 2048)):
        assert net(torch.empty(1, 3, *size, device="meta")).shape == (1, 5, *size)


def test_too_small_an_input():
    with pytest.raises(UserError, match="input of 40x2 pixels is too small for a DeepLabV3"):
        empty("seresnext50")(torch.empty(2, 3, 2, 40, device="meta"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trunk": "resnet34"}, "unknown trunk 'resnet34': take one of wide_resnet38, .*resnet101"),
        ({"trunk": "resnet50", "skip": "m3"}, "unknown skip 'm3': take m1 or m2"),
        ({"trunk": "resnet50", "output_stride": 32}, "output_stride 32: a DeepLabV3. has 8 or 16"),
        ({"trunk": "wide_resnet38", "output_stride": 16}, "output_stride 8 and skip m1, not 16 and m1"),
        ({"trunk": "wide_resnet38", "skip": "m2"}, "output_stride 8 and skip m1, not 8 and m2"),
    ],
)
def test_options_that_are_not_to_be_had(options, match):
    with pytest.raises(UserError, match=match):
        empty(**options)


@torch.no_grad()
def test_normalises_inside(resnet):
    from torchvision.transforms.functional import normalize

    seen = []
    hook = resnet.layer0.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    picture = rand((2, 3, 5, 7), 1)
    kept = picture.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        resnet(picture.contiguous(memory_format=layout))
        assert seen[-1].is_contiguous(memory_format=layout)
        torch.testing.assert_close(seen[-1], normalize(kept, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    hook.remove()
    assert torch.equal(picture, kept)


@torch.no_grad()
def test_channels_last_stays_so_to_the_end(resnet):
    """A map of another layout on the way would be copied in every convolution behind it."""
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _m, args, _o, name=name: seen.update({name: args[0]}))
        for name, layer in resnet.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    picture = rand((2, 3, 33, 50), 2)
    exact = resnet(picture)
    resnet.to(memory_format=torch.channels_last)
    other = resnet(picture.contiguous(memory_format=torch.channels_last))
    resnet.to(memory_format=torch.contiguous_format)
    for hook in hooks:
        hook.remove()
    assert "bot_aspp" in seen and "final.6" in seen
    assert [k for k, x in seen.items() if not x.is_contiguous(memory_format=torch.channels_last)] == []
    torch.testing.assert_close(other, exact, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision(resnet):
    picture = rand((1, 3, 33, 50), 3).contiguous(memory_format=torch.channels_last)
    exact = resnet(picture)
    with torch.autocast("cpu", torch.bfloat16):
        rough = resnet(picture)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("trunk", ["wide_resnet38", "seresnext50", "resnet50"])
def test_training_reaches_every_tensor(trunk):
    """Each parameter is in one of two groups and gets a gradient (on shapes alone)."""
    net = empty(trunk, 3)
    encoder, rest = net.parameter_groups(0.25, 0.5)
    assert (encoder["lr"], rest["lr"]) == (0.25, 0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in (encoder, rest)]
    assert groups[0] == [name for name in names.values() if not name.startswith(HEADS)]
    assert groups[1] == [name for name in names.values() if name.startswith(HEADS)]
    net(torch.empty(2, 3, 16, 16, device="meta")).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("trunk", ["resnet50", "seresnext50"])
def test_a_step_under_autocast(trunk):
    """No tensor that a gradient needs is overwritten; each gradient is a number."""
    torch.manual_seed(0)
    net = build(3, trunk).to(memory_format=torch.channels_last)
    frames = rand((2, 3, 25, 32), 4).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        net(frames).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert [name for name, p in net.named_parameters() if not p.grad.any() and p.ndim == 4] == []


@torch.no_grad()
def test_dropout_of_wide_resnet38():
    """Whole maps, before the last convolution of mod6 and mod7 only; torch's own Dropout stays what it is."""
    net = empty("wide_resnet38")
    dropouts = {name: module for name, module in net.named_modules() if "Dropout" in type(module).__name__}
    assert {name: (type(m), m.p) for name, m in dropouts.items()} == {
        "mod6.block1.convs.dropout": (torch.nn.Dropout2d, 0.3),
        "mod7.block1.convs.dropout": (torch.nn.Dropout2d, 0.5),
    }
    assert [name for name, _ in net.mod7.block1.convs.named_children()][-3:] == ["bn3", "dropout", "conv3"]
    assert torch.nn.Dropout is not torch.nn.Dropout2d
    assert not [m for trunk in TRUNKS[1:] for m in empty(trunk).modules() if "Dropout" in type(m).__name__]


def test_start_of_the_heads(monkeypatch):
    """Kaiming's normal distribution over the inputs; beside a WideResNet-38 in the last layers only (section 6)."""
    torch.manual_seed(0)
    net = build(19, "resnet50")
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name.startswith(HEADS):
            inputs = module.weight[0].numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.05), name
    assert float(net.final[1].weight.detach().min()) == 1 and not net.final[1].bias.any()
    started = []
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda weight: started.append(weight))
    wide = empty("wide_resnet38")
    assert {id(weight) for weight in started} == {id(wide.final[n].weight) for n in (0, 3, 6)}


def test_batch_of_one_cannot_be_trained(resnet):
    with pytest.raises(UserError, match="batch size 1 cannot train a DeepLabV3"):
        empty("resnet50")(torch.empty(1, 3, 16, 16, device="meta"))
    shared = empty("resnet50")
    shared.aspp.least_batch = 1  # as several processes set it, whose layers share their batch
    shared.eval().aspp.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        shared(torch.empty(1, 3, 16, 16, device="meta"))


# Weights


def tiny(shape, dtype=torch.float32, seed=0):
    """A tensor of that shape that needs almost no room in a file: random along its last long axis, else repeated."""
    if not shape:
        return torch.zeros((), dtype=dtype)
    axis = max(range(len(shape)), key=lambda i: shape[i])
    line = (rand((shape[axis],), seed) - 0.5).to(dtype)
    return line.view([-1 if i == axis else 1 for i in range(len(shape))]).expand(*shape)


def tiny_state(keys):
    return OrderedDict((key, tiny(shape, getattr(torch, kind), n)) for n, (key, shape, kind) in enumerate(keys))


def keys_of(module):
    return [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in module.state_dict().items()]


def published(path, state):
    """A snapshot as the reference's training writes it."""
    state = OrderedDict((f"module.{key}", value) for key, value in state.items())
    torch.save({"state_dict": state, "optimizer": {}, "epoch": 174, "mean_iu": 0.81, "command": "train.py"}, path)
    return path


def refused(path, match, trunk, num_classes=19, **options):
    with torch.device("meta"), pytest.raises(UserError, match=match) as info:
        build(num_classes, trunk, str(path), **options)
    assert "\n" not in str(info.value) and str(info.value).startswith(f"{path}: ")


@pytest.fixture(scope="module")
def files(data_dir, tmp_path_factory):
    """One published file per trunk and the one of semisup-semseg, by name."""
    folder = tmp_path_factory.mktemp("published")
    names = LISTS | {"s4gan": S4GAN}
    return {
        name: published(folder / f"{name}.pth", tiny_state(spec_of(data_dir, file)["keys"]))
        for name, file in names.items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_file(data_dir, tmp_path, prefix):
    """Every tensor arrives, whether the file is a bare dict or not; old ones lack the counters."""
    state = tiny_state(spec_of(data_dir, LISTS["resnet50"])["keys"])
    if prefix:
        published(tmp_path / "best.pth", state)
    else:
        torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "best.pth")
    own = build(19, "resnet50", str(tmp_path / "best.pth")).state_dict()
    assert list(own) == list(state) and all(torch.equal(own[key], state[key]) for key in state)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize("trunk", list(LISTS))
def test_published_files_of_all_trunks(files, trunk):
    """Of shapes alone: nothing is lacking or too many, also by the report."""
    with torch.device("meta"):
        build(19, trunk, str(files[trunk]))
    text = "\n".join(inspect_checkpoint(files[trunk]))
    assert f"a DeepLabV3+ with trunk {trunk} of 19 classes" in text and "  classes: 19\n" in text
    told = f"    with trunk {trunk}, num_classes 19, skip m1, align_corners true"
    assert f"  fits network.architecture deeplabv3plus\n{told}\n" in text
    assert text.count("fits") == 1 and "published: 8; 12, 24 and 36" in text and "epoch 174" in text


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_published_file_of_semisup_semseg(files):
    with torch.device("meta"):
        assert build(19, "wide_resnet38", str(files["s4gan"]), align_corners=False).align_corners is False
    refused(files["s4gan"], "trained with align_corners false; set it so", "wide_resnet38")
    refused(files["resnet50"], "trained with align_corners true; set it so", "resnet50", align_corners=False)
    text = "\n".join(inspect_checkpoint(files["s4gan"]))
    assert "fits network.architecture deeplabv3plus\n    with trunk wide_resnet38, num_classes 19" in text
    assert "align_corners false" in text and "does not fit" not in text


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_own_file(tmp_path):
    """What training exports fits whatever it was trained with."""
    state = {key: torch.zeros(v.shape, dtype=torch.uint8) for key, v in empty("resnet50").state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")  # bytes, to be quarter the size
    for flag in (True, False):
        with torch.device("meta"):
            build(19, "resnet50", str(tmp_path / "model.safetensors"), align_corners=flag)


def test_other_classes(data_dir, tmp_path):
    """65 classes of Mapillary for a network of 19: refused, or all but the last layer (specification, section 12)."""
    path = tmp_path / "mapillary.pth"
    state = tiny_state(spec_of(data_dir, LISTS["resnet50"])["keys"]) | {"final.6.weight": tiny((65, 256, 1, 1))}
    published(path, state)
    refused(path, "of 65 classes, this network has 19; set new_classifier to true", "resnet50")
    own = build(19, "resnet50", str(path), new_classifier=True).state_dict()
    assert [key for key in state if own[key].shape != state[key].shape or not torch.equal(own[key], state[key])] == [
        "final.6.weight"
    ]
    assert float(own["final.6.weight"].std()) == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    # Also where the number is the same.
    published(path, state | {"final.6.weight": tiny((19, 256, 1, 1))})
    own = build(19, "resnet50", str(path), new_classifier=True).state_dict()
    assert float(own["final.6.weight"].std()) == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert torch.equal(own["final.3.weight"], state["final.3.weight"])


def imagenet(data_dir, trunk):
    """Names and shapes of the ImageNet file of a trunk."""
    if trunk == "wide_resnet38":
        spec = spec_of(data_dir, S4GAN)
        keys = [[key.removeprefix("backbone."), *rest] for key, *rest in spec["keys"] if key.startswith("backbone.")]
        kinds = [
            [*row, "int64" if row[0].endswith("tracked") else "float32"]
            for row in spec["pretrained_file"]["extra_keys"]
        ]
        assert len(keys) + len(kinds) == spec["pretrained_file"]["n_tensors"]
        return [*keys, *kinds]
    with torch.device("meta"):
        if trunk.startswith("resnet"):
            import torchvision

            return keys_of(getattr(torchvision.models, trunk)())
        import timm

        return keys_of(timm.create_model(f"legacy_{trunk}_32x4d"))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_imagenet_files(data_dir, tmp_path, trunk):
    """The report loads them as training does, into a network of shapes alone."""
    path = published(tmp_path / "imagenet.pth.tar", tiny_state(imagenet(data_dir, trunk)))
    text = "\n".join(inspect_checkpoint(path))
    assert f"  fits weights of network.architecture deeplabv3plus\n    with trunk {trunk}" in text
    assert "does not fit" not in text
    # One convolution less is no trunk.
    lacking = [
        row
        for row in imagenet(data_dir, trunk)
        if row[0] not in ("layer2.1.conv2.weight", "mod3.block2.convs.conv2.weight")
    ]
    published(path, tiny_state(lacking))
    refused(path, r"does not fit this network: lacks (layer2\.1\.conv2|mod3\.block2\.convs\.conv2)\.weight", trunk)


def test_imagenet_values_arrive_where_torchvision_has_them(data_dir, tmp_path):
    state = tiny_state(imagenet(data_dir, "resnet50"))
    torch.save(state, tmp_path / "resnet50.pth")
    torch.manual_seed(0)
    own = build(5, "resnet50", str(tmp_path / "resnet50.pth")).state_dict()
    names = {key: key.replace("conv1", "layer0.0").replace("bn1", "layer0.1") for key in state if "layer" not in key}
    kept = [key for key in state if not key.startswith("fc.")]
    assert all(torch.equal(own[names.get(key, key)], state[key]) for key in kept)
    assert len(kept) == len([key for key in own if not key.startswith(HEADS)])
    assert float(own["bot_aspp.weight"].std()) == pytest.approx((2 / 1280) ** 0.5, rel=0.05)


@pytest.mark.parametrize("trunk", ["wide_resnet38", "seresnext50", "resnet101"])
def test_files_of_another_trunk_are_refused(data_dir, tmp_path, files, trunk):
    for other, path in files.items():
        other = "wide_resnet38" if other == "s4gan" else other
        if other != trunk:
            match = (
                f"holds a DeepLabV3. with trunk {other} of 19 classes, but this network's trunk is {trunk}; set trunk"
            )
            refused(path, match, trunk, align_corners=path.stem != "s4gan")
    other = TRUNKS[(TRUNKS.index(trunk) + 1) % len(TRUNKS)]
    path = published(tmp_path / "imagenet.pth", tiny_state(imagenet(data_dir, other)))
    refused(path, f"but this network's trunk is {trunk}; set trunk to {other} or take another file", trunk)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_files_of_other_networks_are_refused(data_dir, tmp_path):
    import torchvision

    path = tmp_path / "weights.pth"
    for name, match in {"resnet18": "a ResNet-18", "resnext50_32x4d": "other shapes", "vgg16": "a VGG-16"}.items():
        with torch.device("meta"):
            keys = keys_of(getattr(torchvision.models, name)())
        torch.save(tiny_state(keys), path)
        refused(path, f"does not fit this network: .*{match}", "resnet50")
    other_skip = [row for row in keys_of(empty("resnet50", skip="m2"))]
    torch.save(tiny_state(other_skip), path)
    refused(path, r"has other shapes: bot_fine\.weight \(48, 512, 1, 1\) instead of \(48, 256, 1, 1\)", "resnet50")
    assert "skip m2" in "\n".join(inspect_checkpoint(path))
    state = tiny_state(spec_of(data_dir, LISTS["resnet50"])["keys"])
    torch.save(state | {"final.4.bias": torch.full((256,), np.nan)}, path)
    refused(path, r"1 of 363 tensors hold values that are infinite or not a number \(final\.4\.bias\)", "resnet50")
    path.write_bytes(b"<html>")
    refused(path, "cannot be read as a weights file", "resnet50")
    refused(tmp_path / "absent.pth", "no such file", "resnet50")
