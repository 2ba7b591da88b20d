"""The command that tells what a weights file holds and fits: every layout, hostile and broken files."""

import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.models import inspect_checkpoint as command
from semivid.models import weights
from semivid.models.checkpoints import save_parts, save_state
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.models.encoders import build_encoder
from semivid.models.fcn8s import FCN8s
from semivid.models.inspect_checkpoint import inspect_checkpoint
from semivid.models.multitask import build_multitask_net
from semivid.models.transfer import transfer_depth

LITE = "tf_efficientnet_lite0"
SMALL = {"channels": (4, 5, 6, 7, 8), "batch_norm": True, "aspp": (1, 2)}
TOLD = "channels [4, 5, 6, 7, 8], batch_norm true"


def report(source, tensors=False):
    lines = inspect_checkpoint(source, tensors)
    assert all(line.isprintable() for line in lines)
    return "\n".join(lines)


def flat(shape, dtype=torch.float32):
    """Zeros of any shape that take no room in a file."""
    return torch.zeros((), dtype=dtype).expand(shape)


def from_key_list(data_dir, name, path):
    """A file of exactly the tensors that the reference's key list names."""
    spec = json.loads((data_dir / f"three_ways_{name}.json").read_text())
    state = OrderedDict((key, flat(shape, getattr(torch, kind))) for key, shape, kind in spec["keys"])
    torch.save({"model_state": state, "epoch": 3, "best_iou": np.float64(0.5), "optimizer_state": {"a": 1}}, path)
    return spec


def totals(text):
    tensors, parameters = re.search(r"^  all +(\d+) +([\d,]+)", text, re.M).groups()
    return int(tensors), int(parameters.replace(",", ""))


PUBLISHED = {
    "multitask": (
        "multitask_network",
        "num_classes 19, channels [64, 128, 128, 256, 256], batch_norm false, distillation_layer 7, final_layer 9, "
        "encoder resnet101, pose_encoder resnet18, ASPP of 3 rates",
    ),
    "transfer_seg": (
        "encoder_decoder",
        "num_classes 19, channels [64, 128, 128, 256, 256], batch_norm false, layers [9], head_inter false, "
        "projection_channels 64, encoder resnet101, ASPP of 3 rates",
    ),
    "selection_student": (
        "encoder_decoder",
        "num_classes 19, channels [64, 64, 128, 128, 256], batch_norm true, layers [8], head_inter true, "
        "projection_channels 64, head_channels 64, encoder resnet50, ASPP of 3 rates",
    ),
    "depth": (
        "depth_network",
        "channels [64, 128, 128, 256, 256], batch_norm false, encoder resnet101, pose_encoder resnet18, "
        "ASPP of 3 rates",
    ),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_layouts(data_dir, tmp_path, name):
    """Counts against the reference's key lists, which were made by its own code."""
    spec = from_key_list(data_dir, name, tmp_path / "best_model.pkl")
    text = report(tmp_path / "best_model.pkl", tensors=True)
    assert totals(text) == (spec["n_tensors"], spec["n_parameters"])
    network, options = PUBLISHED[name]
    verdict = re.search(rf"^  fits .*\b{network}\b.*\n    with (.*)$", text, re.M)
    assert verdict and verdict[1] == options
    assert "does not fit" not in text and "infinite" not in text
    assert ("  classes: 19\n" in text) == (name != "depth")
    assert "  besides: epoch 3, best_iou 0.5, optimizer_state (dict of 1)\n" in text
    assert "leave no trace in tensors" in text
    parts = dict.fromkeys(key.split(".")[1] for key, *_ in spec["keys"])
    assert re.findall(r"^  (\w+) +an? ", text, re.M) == list(parts)
    # The student's own depth decoder fits as well.
    assert ("fits depth_network" in text) == (name in ("depth", "selection_student"))
    listed = [f"  {key.removeprefix('models.')}  {tuple(shape)}  {kind}" for key, shape, kind in spec["keys"]]
    lines = text.splitlines()
    first = lines.index(listed[0])
    assert lines[first : first + len(listed)] == listed


@pytest.fixture(scope="module")
def depth():
    torch.manual_seed(0)
    return build_depth_model(LITE, **SMALL, pose_encoder=LITE)


def test_what_it_says_about_our_runs_is_true(tmp_path):
    nets = {
        "multitask": build_multitask_net(3, LITE, **SMALL, pose_encoder=LITE, distillation_layer=6, final_layer=8),
        "encoder_decoder": build_segmentation_net(
            5, LITE, **SMALL, layers=(7, 8), projection_channels=6, head_inter=True, head_channels=9
        ),
    }
    told = {
        "multitask": f"num_classes 3, {TOLD}, distillation_layer 6, final_layer 8, encoder {LITE}, pose_encoder {LITE}",
        "encoder_decoder": f"num_classes 5, {TOLD}, layers [7, 8], head_inter true, projection_channels 6, "
        f"head_channels 9, encoder {LITE}",
    }
    for name, net in nets.items():
        save_state(net, tmp_path / f"{name}.safetensors")
        text = report(tmp_path / f"{name}.safetensors")
        block = "multitask_network" if name == "multitask" else f"network.architecture {name}"
        assert f"  fits {block}\n    with {told[name]}, ASPP of 2 rates\n" in text
        assert totals(text) == (len(net.state_dict()), sum(p.numel() for p in net.parameters()))
        assert text.count("fits") == 1
    plain = build_multitask_net(3, LITE, channels=(4,) * 5, aspp=(), pose_encoder=None)
    save_state(plain, tmp_path / "plain.safetensors")
    assert "distillation_layer 7, final_layer 9, encoder tf_efficientnet_lite0, no ASPP\n" in report(
        tmp_path / "plain.safetensors"
    )


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_depth_models(tmp_path, depth, form):
    """Four files in a folder or zip: one model. What is said to fit by transfer does."""
    source = tmp_path / "mono"
    source.mkdir()
    for name, module in depth.parts().items():
        torch.save(module.state_dict(), source / f"{name}.pth")
    (source / "README.txt").write_text("no weights")
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "mono.zip", "w") as archive:
            for file in source.iterdir():
                archive.write(file, f"models/mono/{file.name}")
        source = tmp_path / "mono.zip"
    text = report(source)
    assert text.startswith(f"{source}:\n")
    told = f"    with {TOLD}, encoder {LITE}, pose_encoder {LITE}, ASPP of 2 rates"
    assert f"  fits depth_network, and transfer to encoder_decoder or multitask\n{told}\n" in text
    assert totals(text) == (
        sum(len(m.state_dict()) for m in depth.parts().values()),
        sum(p.numel() for p in depth.parameters()),
    )
    assert transfer_depth(build_multitask_net(2, LITE, **SMALL, pose_encoder=LITE), source)


def test_parts_by_themselves(tmp_path, depth):
    save_parts(depth.parts(), tmp_path)
    for name, wanted in {
        "encoder": rf"fits weights \(and pose_weights\) of a network\n    with encoder {LITE}$",
        "pose_encoder": rf"Net of 2 frames (.|\n)*  fits pose_weights of a network\n    with pose_encoder {LITE}$",
        "pose": rf"fits the pose decoder of depth_network\n    with pose_encoder {LITE}$",
        "depth": "fits the decoder of depth_network, and transfer without encoder\n    with encoder "
        + re.escape(f"{LITE}, {TOLD}, ASPP of 2 rates"),
    }.items():
        text = report(tmp_path / f"{name}.safetensors")
        assert re.search(wanted, text, re.M) and re.search(rf"^  {name} ", text, re.M), text
    # Phase 1 has no encoder: the rest is told one by one.
    (tmp_path / "encoder.safetensors").unlink()
    assert report(tmp_path).count("  fits ") == 3
    assert "fits depth_network" not in report(tmp_path)


def test_encoders_under_their_makers_names(tmp_path):
    assert re.search(rf"^  fits weights .*\n    with encoder {LITE}$", report(weights.package_file()), re.M)
    state = {key.removeprefix("encoder."): v for key, v in build_encoder("resnet18", False).state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "r18.pth")
    assert re.search(r"a ResNet-18 (.|\n)*  fits weights .*\n    with encoder resnet18$", report(tmp_path / "r18.pth"))


def test_fcn8s(tmp_path):
    with torch.device("meta"):
        state = FCN8s(4, frames=2).state_dict()
    torch.save({"meta": state["classifier.6.bias"]}, tmp_path / "meta.pth")
    kinds = [torch.float16 if "score" in key else torch.float32 for key in state]
    state = {key: flat(v.shape, kind) for (key, v), kind in zip(state.items(), kinds, strict=True)}
    torch.save(state, tmp_path / "fcn8s.pkl")
    text = report(tmp_path / "fcn8s.pkl")
    assert "an FCN-8s of 4 classes and 2 frames" in text and "classes: 4" in text and "float16, float32" in text
    assert "fits network.architecture fcn8s\n    with num_classes 4, frames 2" in text
    with pytest.raises(UserError, match=r"meta\.pth: holds no tensors by name"):
        report(tmp_path / "meta.pth")


@pytest.mark.parametrize("name", ["vgg16", "raft_small", "raft_large", "vgg11"])
def test_files_of_torchvision(tmp_path, name):
    from torchvision import models

    with torch.device("meta"):
        net = getattr(models if "vgg" in name else models.optical_flow, name)()
    state = {key: flat(value.shape, value.dtype) for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    text = report(tmp_path / "net.pth")
    wanted = {
        "vgg16": "fits weights of network.architecture fcn8s",
        "vgg11": "fits none of this project's networks",
    }.get(name, f"fits weights of flow.raft\n    with network {name}")
    assert f"  {wanted}" in text and "does not fit" not in text
    torch.save(state | {next(iter(state)): flat((1, 3, 3, 3))}, tmp_path / "net.pth")
    if name != "vgg11":
        assert "does not fit" in report(tmp_path / "net.pth")


def test_what_does_not_fit_says_why(tmp_path, depth):
    net = build_multitask_net(3, LITE, **SMALL, pose_encoder=None)
    state = net.state_dict()
    cut = {key: value for key, value in state.items() if key != "mtl_decoder.sa_seg.attention.weight"}
    save_file(cut, tmp_path / "cut.safetensors")
    text = report(tmp_path / "cut.safetensors")
    assert "does not fit multitask_network: mtl_decoder: does not fit this network: lacks sa_seg" in text
    save_file(
        state | {"mtl_decoder.sa_seg.conv.weight": torch.full((6, 6, 3, 3), np.nan)}, tmp_path / "nan.safetensors"
    )
    text = report(tmp_path / "nan.safetensors")
    assert "  infinite or not a number: 1 tensors, the first mtl_decoder.sa_seg.conv.weight\n" in text
    assert "does not fit multitask_network: mtl_decoder: 1 of 210 tensors hold values that are inf" in text

    other = build_encoder("resnet18", dilated=False)
    save_parts({"depth": depth.depth, "encoder": other}, tmp_path / "mixed")
    text = report(tmp_path / "mixed")
    assert "does not fit depth_network" in text and "has other shapes" in text
    torch.save({"a.weight": torch.ones(2), "b": torch.ones(1)}, tmp_path / "other.pth")
    text = report(tmp_path / "other.pth")
    assert "an unknown network of 2 tensors (first: a.weight)" in text
    assert text.endswith("  fits none of this project's networks")


def test_several_models_in_one_place(tmp_path, depth):
    """Parts and a whole model side by side are two models."""
    save_parts({"depth": depth.depth, "encoder": depth.encoder}, tmp_path / "m")
    state = {f"models.encoder.{key}": value for key, value in depth.encoder.state_dict().items()}
    torch.save({"model_state": state, "epoch": 1}, tmp_path / "m" / "best_model.pkl")
    text = report(tmp_path / "m")
    assert f"{tmp_path / 'm'}:\n" in text and f"{tmp_path / 'm'}: best_model.pkl:\n" in text
    assert text.count("  fits ") == 2 and "besides: epoch 1" in text


class Harmful:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"model_state": {"w": torch.ones(1)}, "x": Harmful()}, tmp_path / "a.pth")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"w": Harmful()}, protocol=2))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(tmp_path / "a.pth", "depth.pth")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("../depth.pth", b"")
    for name, wanted in {
        "a.pth": "not loaded for safety",
        "b.pkl": r"b\.pkl",
        "c.zip": "depth.pth",
        "d.zip": "outside",
    }.items():
        with pytest.raises(UserError, match=wanted) as info:
            inspect_checkpoint(tmp_path / name)
        assert "\n" not in str(info.value)
    assert "ran" not in capsys.readouterr().out


def test_names_cannot_spoil_the_screen(tmp_path):
    torch.save(
        {"a\x1b[2J\nfits network.architecture": torch.ones(1), "note": "x\x1b[31m\n" + "y" * 99}, tmp_path / "x.pth"
    )
    text = report(tmp_path / "x.pth", tensors=True)
    assert "\x1b" not in text and "\\x1b" in text and "y" * 50 not in text
    assert text.count("\n") == len(inspect_checkpoint(tmp_path / "x.pth", tensors=True)) - 1


@pytest.mark.parametrize(
    "name,content,wanted",
    [
        ("page.pth", b"<html>not found</html>", "cannot be read as a weights file"),
        ("page.safetensors", b"<html>not found</html>", "cannot be read as a weights file"),
        ("empty.pkl", b"", "cannot be read as a weights file"),
        ("cut.zip", b"PK\x03\x04", "not a complete zip"),
        ("absent.pth", None, "no such file"),
        ("absent.zip", None, "no such file"),
    ],
)
def test_broken_files(tmp_path, monkeypatch, capsys, name, content, wanted):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["inspect_checkpoint", str(tmp_path / name)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith(f"error: {tmp_path / name}") and wanted in err and err.count("\n") == 1


def test_cut_and_other_files(tmp_path, depth):
    torch.save(depth.depth.state_dict(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"half\.pth: cannot be read"):
        inspect_checkpoint(tmp_path / "half.pth")
    # torch's own files are zips: by that name too they are files of tensors.
    (tmp_path / "named.zip").write_bytes(data)
    assert "a depth decoder" in report(tmp_path / "named.zip")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("README.txt", "nothing")
    for name in ("empty", "empty.zip"):
        with pytest.raises(UserError, match=rf"{name}: holds no weights file \(\.safetensors, \.pth"):
            inspect_checkpoint(tmp_path / name)
    torch.save({"s": torch.ones(2, 2).to_sparse(), "w": torch.ones(1)}, tmp_path / "sparse.pth")
    assert "besides: s (tensor of (2, 2))" in report(tmp_path / "sparse.pth")


def test_as_a_command(tmp_path):
    torch.save({"encoder.x": torch.ones(3, 2)}, tmp_path / "x.pth")
    source = Path(command.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "semivid.models.inspect_checkpoint", tmp_path / "x.pth", "--tensors"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "  network.encoder.x  (3, 2)  float32\n" in run.stdout
