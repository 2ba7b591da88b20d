"""Networks that start from depth, and whole published models: every layout that they come in."""

import json
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers import fill_by_rule, fill_value, rand
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.models import checkpoints
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.models.multitask import build_multitask_net, load_multitask_net
from semivid.models.transfer import transfer_depth

LITE = "tf_efficientnet_lite0"
SMALL = {"channels": (4, 5, 6, 7, 8), "batch_norm": True, "aspp": (1, 2)}
PARTS = ("encoder", "depth", "pose_encoder", "pose")


@pytest.fixture(scope="module")
def depth():
    """A small depth model, every tensor of it (batch-norm statistics too) unlike a fresh one's."""
    model = build_depth_model(LITE, **SMALL, pose_encoder=LITE)
    for name, module in model.parts().items():
        fill_by_rule(module, f"models.{name}.")
    return model


def single(seed=0, **options):
    torch.manual_seed(seed)
    return build_segmentation_net(3, LITE, **(SMALL | options))


def multi(seed=0, **options):
    torch.manual_seed(seed)
    return build_multitask_net(3, LITE, **(SMALL | {"pose_encoder": LITE} | options))


def snapshot(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(one, other):
    a, b = (x if isinstance(x, dict) else x.state_dict() for x in (one, other))
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def published(model, folder, parts=PARTS):
    """The four files of a published depth model: plain state dicts, a classifier beside the encoder."""
    folder.mkdir(parents=True)
    for name in parts:
        state = OrderedDict(model.parts()[name].state_dict())
        if name == "encoder":
            state["encoder.fc.weight"] = torch.ones(2, 2)
        torch.save(state, folder / f"{name}.pth")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"models/{folder.name}/{file.name}")
    return path


def source_of(form, depth, tmp_path):
    if form == "our folder":
        checkpoints.save_parts(depth.parts(), tmp_path / "depth_finetune")
        return tmp_path / "depth_finetune"
    if form in ("published folder", "published zip"):
        folder = published(depth, tmp_path / "mono_dec6")
        return folder if form == "published folder" else zipped(folder, tmp_path / "mono_dec6.zip")
    state = {f"models.{p}.{k}": v for p, m in depth.parts().items() for k, v in m.state_dict().items()}
    state |= {f"models.imnet_encoder.{k}": torch.zeros_like(v) for k, v in depth.encoder.state_dict().items()}
    content = {"epoch": 7, "model_state": state, "optimizer_state": {"state": {}}, "best_iou": np.float64(0)}
    torch.save(content, tmp_path / "best_model.pkl")
    return tmp_path / ("best_model.pkl" if form == "whole file" else "")


FORMS = ["our folder", "published folder", "published zip", "whole file", "folder of the whole file"]


@pytest.mark.parametrize("form", FORMS)
def test_depth_fills_all_of_a_network_that_it_has(depth, tmp_path, form):
    source = source_of(form, depth, tmp_path)
    net = single()
    before = snapshot(net)
    assert transfer_depth(net, source) == ["encoder", "depth"]
    assert equal(net.encoder, depth.encoder) and equal(net.segmentation.unet_dec, depth.depth)
    after = net.state_dict()
    kept = [key for key in before if key.startswith(("segmentation.project.", "segmentation.head."))]
    assert kept and all(torch.equal(before[key], after[key]) for key in kept)

    net = multi()
    before = snapshot(net)
    assert transfer_depth(net, source) == list(PARTS)
    assert equal(net.encoder, depth.encoder) and equal(net.pose_net, depth.pose_net)
    decoder = net.mtl_decoder
    assert equal(decoder.depth_dec, depth.depth) and equal(decoder.seg_dec, depth.depth)
    after = net.state_dict()
    kept = [key for key in before if key.startswith(("mtl_decoder.sa_", "mtl_decoder.seg_i", "mtl_decoder.seg_f"))]
    assert len(kept) == 8 and all(torch.equal(before[key], after[key]) for key in kept)
    # Two copies: what one learns is not the other's.
    shared = {p.data_ptr() for p in decoder.depth_dec.parameters()} & {p.data_ptr() for p in decoder.parameters()}
    assert len(shared) == len(list(decoder.depth_dec.parameters()))
    with torch.no_grad():
        decoder.depth_dec.decoder[2].block[0].conv.weight.zero_()
    assert decoder.seg_dec.decoder[2].block[0].conv.weight.any() and depth.depth.decoder[2].block[0].conv.weight.any()


@torch.no_grad()
def test_what_is_transferred_computes_what_the_depth_model_did(depth, tmp_path):
    """Closed gates leave the depth decoder to itself: disparities and camera motion are the depth model's."""
    source = source_of("published zip", depth, tmp_path)
    net = multi(1)
    transfer_depth(net, source)
    net.mtl_decoder.sa_seg.conv.weight.zero_()
    frame, after = rand((1, 3, 64, 96), 0), rand((1, 3, 64, 96), 1)
    expected, found = depth.eval()(frame, {1: after}), net.eval().outputs(frame, {1: after})
    for scale in range(4):
        torch.testing.assert_close(found.disp[scale], expected["disp"][scale], rtol=0, atol=0)
    torch.testing.assert_close(found.transforms[1], expected["transforms"][1], rtol=0, atol=0)


@pytest.mark.parametrize("build", [single, multi])
@pytest.mark.parametrize("parts", [{"encoder"}, {"depth"}, {"pose"}])
def test_with_and_without(depth, tmp_path, build, parts):
    source = source_of("our folder", depth, tmp_path)
    net = build()
    before = snapshot(net)
    chosen = {"encoder": "encoder" in parts, "decoder": "depth" in parts, "pose": "pose" in parts}
    if build is single and parts == {"pose"}:
        with pytest.raises(UserError, match="depth_finetune: nothing to transfer"):
            transfer_depth(net, source, **chosen)
        return
    names = transfer_depth(net, source, **chosen)
    assert set(names) == (parts if parts != {"pose"} else {"pose_encoder", "pose"})
    prefixes = {
        "encoder": ("encoder.",),
        "depth": ("segmentation.unet_dec.", "mtl_decoder.depth_dec.", "mtl_decoder.seg_dec."),
        "pose": ("pose_net.",),
    }[next(iter(parts))]
    after = net.state_dict()
    for key in before:
        if not key.startswith(prefixes):
            assert torch.equal(before[key], after[key]), key
        elif after[key].ndim > 1:
            assert not torch.equal(before[key], after[key]), key


def test_a_network_without_pose_wants_none(depth, tmp_path):
    folder = published(depth, tmp_path / "mono", ("encoder", "depth"))
    assert transfer_depth(multi(pose_encoder=None), folder) == ["encoder", "depth"]
    with pytest.raises(UserError, match=r"mono: holds no pose_encoder\.safetensors or pose_encoder\.pth"):
        transfer_depth(multi(), folder)


def test_phase_1_has_no_encoder(depth, tmp_path):
    folder = published(depth, tmp_path / "mono_dec5", PARTS[1:])
    with pytest.raises(UserError, match=r"holds no encoder.*frozen encoder \(phase 1\).*take that of phase 2"):
        transfer_depth(single(), folder)
    assert transfer_depth(single(), folder, encoder=False) == ["depth"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"holds no encoder.*it holds no weights file at all$"):
        transfer_depth(single(), tmp_path / "empty")


def test_another_network(depth, tmp_path):
    source = source_of("our folder", depth, tmp_path)
    with pytest.raises(UserError, match=r"encoder\.safetensors: does not fit.*wanted is a ResNet-50"):
        transfer_depth(build_segmentation_net(3, "resnet50", **SMALL), source)
    with pytest.raises(UserError, match=r"depth\.safetensors: does not fit this network: has other shapes"):
        transfer_depth(single(channels=(5,) * 5), source)
    with pytest.raises(UserError, match=r"do not fit a Linear: set network\.architecture"):
        transfer_depth(torch.nn.Linear(1, 1), source)


def test_parts_beside_the_whole_file_come_first(depth, tmp_path):
    """Who splits best_model.pkl by hand leaves it there; the parts are then what is meant."""
    folder = published(depth, tmp_path / "mono")
    torch.save({"model_state": {"models.encoder.x": torch.zeros(1)}}, folder / "best_model.pkl")
    net = single()
    transfer_depth(net, folder)
    assert equal(net.encoder, depth.encoder)


@pytest.fixture(scope="module")
def multitask_state(data_dir):
    """Every tensor of the reference's key list, by its filling rule: the published DS+US model's layout."""
    spec = json.loads((data_dir / "three_ways_multitask.json").read_text())
    return OrderedDict((k, fill_value(k, torch.empty(shape, dtype=getattr(torch, t)))) for k, shape, t in spec["keys"])


@torch.no_grad()
def test_published_multitask_model(data_dir, tmp_path, multitask_state):
    """The folder that the reference's inference script takes: a whole model beside its cfg.yml."""
    folder = tmp_path / "cityscapes_sel_rev2_ds_us_pad_transfer_dcompgt0030_D372fixed_S7"
    folder.mkdir()
    torch.save({"model_state": multitask_state}, folder / "best_model_without_opt.pkl")
    (folder / "cfg.yml").write_text("model:\n  arch: joint_segmentation_depth\n")
    net = load_multitask_net(folder).eval()
    assert net.pose_net is None  # pose keys are there and ignored
    expected = np.load(data_dir / "three_ways_multitask.npz")
    logits = net(rand((1, 3, 64, 128), 0))
    np.testing.assert_allclose(logits[:, :, ::4, ::4].numpy(), expected["semantics"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["file", "folder", "zip", "our file"])
@pytest.mark.parametrize("pose", [False, True])
def test_whole_multitask_files(tmp_path, form, pose):
    net = multi()
    state = {f"models.{p}.{k}": v for p, m in net.parts().items() for k, v in m.state_dict().items()}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model_state": state}, folder / "best_model_without_opt.pkl")
    (folder / "cfg.yml").write_text("seed: 7\n")
    source = folder / "best_model_without_opt.pkl" if form == "file" else folder
    if form == "zip":
        source = zipped(folder, tmp_path / "run.zip")
    if form == "our file":
        source = tmp_path / "multitask-random-12-7.safetensors"
        checkpoints.save_state(net, source)
    options = SMALL | ({"pose_encoder": LITE} if pose else {})
    loaded = load_multitask_net(source, pose, encoder=LITE, **options)
    assert equal(loaded, net if pose else net.without_pose())
    if form == "file":
        with pytest.raises(
            UserError, match=r"without_opt\.pkl: does not fit.*seems to be a multi-task decoder of 3 cl"
        ):
            load_multitask_net(source, encoder=LITE, **(SMALL | {"channels": (4, 5, 7, 7, 8)}))


def test_whole_files_of_other_networks(tmp_path, depth):
    source = source_of("whole file", depth, tmp_path)
    with pytest.raises(UserError, match=r"holds no part 'mtl_decoder'.*Three Ways model \(depth, encoder, imnet_enc"):
        load_multitask_net(source)
    checkpoints.save_state(single(), tmp_path / "run.safetensors")
    with pytest.raises(UserError, match=r"holds no part 'mtl_decoder'.*a segmentation decoder of 3 classes\)"):
        load_multitask_net(tmp_path / "run.safetensors")
    net = multi()
    state = {k: v for k, v in net.without_pose().state_dict().items() if "seg_final" not in k}
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cut\.safetensors: its part mtl_decoder lacks seg_final_head\.0\.bias"):
        load_multitask_net(tmp_path / "cut.safetensors")
    save_file(net.without_pose().state_dict(), tmp_path / "no_pose.safetensors")
    with pytest.raises(UserError, match="holds no part 'pose_encoder'"):
        load_multitask_net(tmp_path / "no_pose.safetensors", pose=True)
