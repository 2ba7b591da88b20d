"""Weights in and out: published layouts, safe reading, errors that say what a file is."""

import json
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from helpers import fill_by_rule, rand
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.models import checkpoints, weights
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.models.encoders import build_encoder

LITE = "tf_efficientnet_lite0"
SMALL = {"channels": (4,) * 5, "aspp": ()}


def small_depth_model(seed=0):
    torch.manual_seed(seed)
    return build_depth_model(LITE, **SMALL, pose_encoder=LITE)


def small_net(seed=0):
    torch.manual_seed(seed)
    return build_segmentation_net(3, LITE, **SMALL)


def equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_parts_round_trip(tmp_path):
    model, other = small_depth_model(0), small_depth_model(1)
    model.to(memory_format=torch.channels_last)
    paths = checkpoints.save_parts(model.parts(), tmp_path / "depth")
    assert [path.name for path in paths] == [
        "encoder.safetensors",
        "depth.safetensors",
        "pose_encoder.safetensors",
        "pose.safetensors",
    ]
    assert not equal(model, other)
    checkpoints.load_parts(other.parts(), tmp_path / "depth")
    assert equal(model, other)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_published_depth_files(tmp_path, form):
    """Plain .pth state dicts, an fc layer in encoder.pth, in a folder or a zip with a folder inside."""
    model, net = small_depth_model(0), small_net(1)
    folder = tmp_path / "mono"
    folder.mkdir()
    for name, module in model.parts().items():
        extra = {"encoder.fc.weight": torch.ones(2, 2)} if name == "encoder" else {}
        torch.save(OrderedDict(module.state_dict(), **extra), folder / f"{name}.pth")
    source = folder
    if form == "zip":
        source = tmp_path / "mono.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"models/mono/{path.name}")
    checkpoints.load_parts(net.parts(), source)
    assert equal(net.encoder, model.encoder)
    assert equal(net.segmentation.unet_dec, model.depth)


def test_best_model_file_with_numpy_score_and_optimiser(tmp_path):
    net, other = small_net(0), small_net(1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(rand((2, 3, 32, 32), 0)).mean().backward()
    optimizer.step()
    state = {f"models.{key}": value for key, value in net.state_dict().items()}
    state["models.imnet_encoder.encoder.conv1.weight"] = torch.zeros(1)
    content = {
        "epoch": 3,
        "model_state": state,
        "optimizer_state": optimizer.state_dict(),
        "best_iou": np.float64(0.5),
    }
    torch.save(content, tmp_path / "best_model.pkl")
    parts = {"encoder": other.encoder, "segmentation": other.segmentation}
    checkpoints.load_parts(parts, tmp_path / "best_model.pkl")
    assert equal(net, other)
    with pytest.raises(UserError, match=r"no part 'pose'.*Three Ways model \(encoder, imnet_encoder, segm"):
        checkpoints.load_parts({"pose": net}, tmp_path / "best_model.pkl")


def test_key_list_of_the_reference_loads(tmp_path, data_dir):
    """A file with exactly the reference's keys, dec9 student's encoder, nested and with a module. prefix."""
    spec = json.loads((data_dir / "three_ways_selection_student.json").read_text())
    encoder = fill_by_rule(build_encoder("resnet50", dilated=True), "models.encoder.")
    own = {f"models.encoder.{key}": value for key, value in encoder.state_dict().items()}
    keys = [key for key, *_ in spec["keys"] if key.startswith("models.encoder.")]
    assert keys == list(own)
    torch.save({"model_state": {f"module.{key}": own[key] for key in keys}}, tmp_path / "student.pth")
    other = build_encoder("resnet50", dilated=True)
    checkpoints.load_parts({"encoder": other}, tmp_path / "student.pth")
    assert equal(encoder, other)


class Harmful:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"weight": torch.ones(1), "x": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: holds more than tensors and plain values"):
        checkpoints.read_state(tmp_path / "bad.pth")
    with open(tmp_path / "plain.pkl", "wb") as file:
        pickle.dump({"weight": Harmful()}, file, protocol=2)
    with pytest.raises(UserError, match=r"plain\.pkl"):
        checkpoints.read_state(tmp_path / "plain.pkl")
    assert capsys.readouterr().out == ""


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        checkpoints.read_state(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"absent\.safetensors: no such file"):
        checkpoints.read_state(tmp_path / "absent.safetensors")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
        with pytest.raises(UserError, match=name) as info:
            checkpoints.read_state(tmp_path / name)
        assert "\n" not in str(info.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        checkpoints.read_state(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no tensors by name"):
        checkpoints.read_state(tmp_path / "empty.pth")
    (tmp_path / "cut.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="not a complete zip"):
        checkpoints.load_parts({"depth": torch.nn.Identity()}, tmp_path / "cut.zip")
    with pytest.raises(UserError, match="no such file or folder"):
        checkpoints.load_parts({"depth": torch.nn.Identity()}, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no depth\.safetensors or depth\.pth; it holds cut\.pth"):
        checkpoints.load_parts({"depth": torch.nn.Identity()}, tmp_path)


def test_depth_file_must_match_exactly(tmp_path):
    model = small_depth_model()
    state = model.depth.state_dict()
    state.pop("decoder.2.block.0.conv.bias")
    state["decoder.99.weight"] = torch.ones(1)
    state["decoder.3.block.0.conv.weight"] = torch.ones(1, 2, 3, 3)
    save_file(state, tmp_path / "depth.safetensors")
    with pytest.raises(UserError) as info:
        checkpoints.load_parts({"depth": model.depth}, tmp_path)
    for text in (
        "depth.safetensors",
        "lacks decoder.2.block.0.conv.bias",
        "decoder.99.weight",
        "decoder.3.block.0.conv.weight (1, 2, 3, 3) instead of (4, 4, 3, 3)",
        "it seems to be a depth decoder",
    ):
        assert text in str(info.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_file(tmp_path, suffix):
    """torchvision's own names, its classifier ignored; an old file without counters of batches loads too."""
    source, encoder = build_encoder("resnet18", dilated=False), build_encoder("resnet18", dilated=False)
    state = {key.removeprefix("encoder."): v for key, v in source.state_dict().items()}
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    path = tmp_path / f"resnet18.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    weights.load_encoder_weights(encoder, str(path))
    assert equal(source, encoder)

    with pytest.raises(UserError) as info:
        weights.load_encoder_weights(build_encoder("resnet50", dilated=True), str(path))
    assert "it seems to be a ResNet-18, wanted is a ResNet-50" in str(info.value)
    assert "and " in str(info.value) and "more" in str(info.value)


@pytest.mark.parametrize("name", ["resnet18", LITE])
@torch.no_grad()
def test_weights_of_one_frame_serve_two(tmp_path, name):
    """Repeated and halved: two equal frames give what one gave; a file of two frames loads as it is."""
    one, two = build_encoder(name, dilated=False), build_encoder(name, dilated=False, in_frames=2)
    checkpoints.save_state(one, tmp_path / "encoder.safetensors")
    weights.load_encoder_weights(two, str(tmp_path / "encoder.safetensors"))
    first = next(iter(one.state_dict()))
    weight, single = two.state_dict()[first], one.state_dict()[first]
    assert weight.shape[1] == 6
    torch.testing.assert_close(weight, torch.cat([single, single], 1) / 2, rtol=0, atol=0)
    frame = rand((1, 3, 32, 64), 0)
    one.eval(), two.eval()
    torch.testing.assert_close(two(torch.cat([frame, frame], 1))[0], one(frame)[0], rtol=1e-4, atol=1e-5)

    checkpoints.save_state(two, tmp_path / "pairs.safetensors")
    again = build_encoder(name, dilated=False, in_frames=2)
    weights.load_encoder_weights(again, str(tmp_path / "pairs.safetensors"))
    assert equal(two, again)
    with pytest.raises(UserError, match="other shapes"):
        weights.load_encoder_weights(one, str(tmp_path / "pairs.safetensors"))


@torch.no_grad()
def test_package_weights():
    """296 tensors, one to one in order with equal shapes, also by what their names say."""
    state = checkpoints.read_state(weights.package_file())
    named = weights.lite0_from_package(state)
    assert len(state) == len(named) == 296
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for (theirs, a), (ours, b) in zip(state.items(), named.items(), strict=True):
        assert a is b
        assert theirs.rsplit(".", 1)[-1] == ours.rsplit(".", 1)[-1] in kinds
        assert ("depthwise" in theirs) == ("conv_dw" in ours)

    torch.manual_seed(0)
    encoder, random = (build_encoder(LITE, dilated=True).eval() for _ in range(2))
    weights.load_encoder_weights(encoder, "package")
    own = encoder.state_dict()
    assert all(torch.equal(own[f"encoder.{key}"], v) for key, v in named.items() if f"encoder.{key}" in own)
    assert len(own) == 288
    frame = F.interpolate(rand((1, 3, 8, 8), 0), size=(64, 64), mode="bilinear")
    maps, again = encoder(frame), encoder(frame)
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))
    # Trained filters answer to a smooth picture several times as strongly as random ones.
    for trained, untrained in zip(maps[:3], random(frame)[:3], strict=True):
        assert 20 > float(trained.std()) > 5 * float(untrained.std())

    pairs = build_encoder(LITE, dilated=False, in_frames=2)
    weights.load_encoder_weights(pairs, "package")
    stem = named["conv_stem.weight"]
    torch.testing.assert_close(pairs.state_dict()["encoder.conv_stem.weight"], torch.cat([stem, stem], 1) / 2)


def test_full_timm_file(tmp_path):
    named = weights.lite0_from_package(checkpoints.read_state(weights.package_file()))
    save_file({key: v.contiguous() for key, v in named.items()}, tmp_path / "lite0.safetensors")
    a, b = build_encoder(LITE, dilated=True), build_encoder(LITE, dilated=True)
    weights.load_encoder_weights(a, str(tmp_path / "lite0.safetensors"))
    weights.load_encoder_weights(b, "package")
    assert equal(a, b)


def test_none_keeps_random_weights_and_package_is_for_lite0():
    encoder = build_encoder("resnet18", dilated=False)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    weights.load_encoder_weights(encoder, "none")
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    with pytest.raises(UserError, match="it holds tf_efficientnet_lite0, not resnet18"):
        weights.load_encoder_weights(encoder, "package")
    with pytest.raises(UserError, match="no such file"):
        weights.load_encoder_weights(encoder, "imagenet.pth")


def test_saved_files_are_plain(tmp_path):
    net = small_net().to(memory_format=torch.channels_last)
    checkpoints.save_state(net, tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    assert all(value.is_contiguous() for value in state.values())
    other = small_net(1)
    checkpoints.load_strictly(other, state, "model.safetensors")
    assert equal(net, other)
