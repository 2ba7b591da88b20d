"""The street renderer: layout, determinism, and its truth against independent arithmetic."""

import json

import cv2
import numpy as np
import pytest

from semivid.data.street.render import Renderer
from semivid.data.street.scene import draw_lots, make_scene
from semivid.data.street.textures import build_bank
from semivid.data.street.truth import read_depth, read_flow, read_poses
from semivid.data.street.write import render_dataset
from semivid.errors import UserError

MOVING = (24, 25, 26, 27, 28, 31, 32, 33)
SETTING = {"seed": 3, "size": (192, 96), "fps": 7.0, "frames_per_snippet": 4}


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Six train and two val snippets, rendered by one process."""
    out = tmp_path_factory.mktemp("street") / "raw"
    seen = []
    render_dataset(out, snippets={"train": 6, "val": 2}, progress=lambda *at: seen.append(at), **SETTING)
    assert seen == [(k, 8) for k in range(1, 9)]
    return out


@pytest.fixture(scope="module")
def bank():
    return build_bank(3)


def scene_of(bank, number, size=(192, 96), frames=2):
    rng = np.random.default_rng(np.random.SeedSequence([3, 1, number]))
    return make_scene(rng, draw_lots(3, 1, number), bank, size=size, frames=frames, fps=7.0)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def annotated(street):
    """(frame path stem parts) of annotated frames that have a successor: split/city, snippet, frame."""
    for path in sorted((street / "gtFine").rglob("*_gtFine_labelIds.png")):
        city, snippet, frame, *_ = path.name.split("_")
        if int(frame) + 1 < SETTING["frames_per_snippet"]:
            yield path, path.parent.relative_to(street / "gtFine"), city, snippet, int(frame)


def test_workers_and_count_change_no_byte(street, tmp_path):
    render_dataset(tmp_path / "raw", snippets={"train": 2, "val": 2}, workers=2, **SETTING)
    one, two = files(street), files(tmp_path / "raw")
    assert len(two) > 40
    assert all(one[name] == data for name, data in two.items())


def test_layout(street):
    count = {
        f: len(list((street / f).rglob("*.*"))) for f in ("leftImg8bit_sequence", "leftImg8bit", "gtFine", "camera")
    }
    assert count == {"leftImg8bit_sequence": 32, "leftImg8bit": 16, "gtFine": 16, "camera": 32}
    assert len(list((street / "truth/depth").rglob("*_depth.png"))) == 32
    assert len(list((street / "truth/flow").rglob("*_flow.png"))) == 24
    assert len(list((street / "truth/poses").rglob("*.json"))) == 8
    for path in (street / "leftImg8bit_sequence").rglob("*.png"):
        split, city = path.relative_to(street / "leftImg8bit_sequence").parts[:2]
        stem = path.name.removesuffix("_leftImg8bit.png")
        assert stem.startswith(f"{city}_") and split in ("train", "val") and len(stem.split("_")) == 3
        camera = json.loads((street / "camera" / split / city / f"{stem}_camera.json").read_text())
        assert (camera["intrinsic"]["width"], camera["intrinsic"]["height"]) == (192, 96)
        assert set(camera) == {"intrinsic", "extrinsic"}
        assert cv2.imread(str(path)).shape == (96, 192, 3)
        still = street / "leftImg8bit" / split / city / path.name
        assert still.exists() == (int(stem.split("_")[2]) in (1, 3))


def test_labels_are_official_ids(street):
    for path, *_ in annotated(street):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert label.dtype == np.uint8 and label.shape == (96, 192)
        assert set(np.unique(label)) <= set(range(34))
        assert {7, 23} & set(np.unique(label))


def test_flow_is_depth_and_pose_on_static_pixels(street):
    checked = 0
    for path, below, city, snippet, frame in annotated(street):
        stem = f"{city}_{snippet}_{frame:06d}"
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        depth = read_depth(street / "truth/depth" / below / f"{stem}_depth.png").astype(float)
        flow, valid = read_flow(street / "truth/flow" / below / f"{stem}_flow.png")
        names, poses = read_poses(street / "truth/poses" / below.parts[0] / f"{city}_{snippet}.json")
        assert names[frame] == stem and poses.shape == (4, 4, 4)
        k = json.loads((street / "camera" / below / f"{stem}_camera.json").read_text())["intrinsic"]
        y, x = np.nonzero(valid & (depth > 0) & ~np.isin(label, MOVING))
        z = depth[y, x]
        points = np.stack([(x - k["u0"]) / k["fx"] * z, (y - k["v0"]) / k["fy"] * z, z, np.ones_like(z)])
        after = np.linalg.inv(poses[frame + 1]) @ poses[frame] @ points
        motion = np.stack([after[0] / after[2] * k["fx"] + k["u0"] - x, after[1] / after[2] * k["fy"] + k["v0"] - y], 1)
        error = np.abs(motion - flow[y, x])
        # depth is stored to 1/256 m and flow to 1/64 pixel
        assert error.max() < 0.08 and np.median(error) < 0.01
        checked += len(x)
    assert checked > 50_000


def test_warping_by_the_flow_explains_the_picture(bank):
    gains = []
    for number in range(8):
        scene = scene_of(bank, number, (256, 128))
        if scene.speed == 0:
            continue
        scene.light["noise"] = 0.0
        renderer = Renderer(scene, bank)
        pictures, buffers = [], []
        for frame in range(2):
            buffers.append(renderer.visible(frame))
            pictures.append(renderer.image(buffers[-1], frame, np.random.default_rng(0)).astype(np.float32))
        flow, valid = renderer.flow(buffers[0], 0, buffers[1])
        y, x = np.mgrid[:128, :256].astype(np.float32)
        warped = cv2.remap(pictures[1], x + flow[..., 0].astype(np.float32), y + flow[..., 1].astype(np.float32), 1)
        moved = valid & (np.hypot(*np.moveaxis(flow, 2, 0)) > 1)
        before = np.abs(pictures[1] - pictures[0]).mean(2)[moved].mean()
        after = np.abs(warped - pictures[0]).mean(2)[moved].mean()
        gains.append(before / after)
        assert after < 9
        assert np.abs(flow[valid]).max() < 0.3 * 256
    assert len(gains) >= 5 and np.median(gains) > 1.6


def test_rare_classes_are_rare_but_there(bank):
    frames, shares = 150, []
    for number in range(frames):
        renderer = Renderer(scene_of(bank, number, (160, 80), 1), bank)
        label = renderer.labels(renderer.visible(0))
        shares.append(np.bincount(label.ravel(), minlength=34) > 4)
    share = np.mean(shares, axis=0)
    for common in (7, 8, 11, 17, 21, 23, 26):
        assert share[common] > 0.6
    for rare in (12, 13, 19, 25, 27, 28, 31, 32, 33):
        assert 0 < share[rare] < 0.25, rare


def test_visibility_against_slow_rays(bank):
    scene = scene_of(bank, 5)
    q, pixels = scene.quads, np.random.default_rng(0).integers((0, 0), (192, 96), (60, 2))
    renderer = Renderer(scene, bank)
    seen = renderer.visible(1)
    for px, py in pixels:
        ray = scene.camera_pose[1][:3, :3] @ np.linalg.inv(scene.matrix) @ (px, py, 1.0)
        eye = scene.camera_pose[1][:3, 3]
        hits = {}
        for k in range(1, len(q["tile"])):
            pose = scene.object_pose[1][q["object"][k]]
            u, v = pose[:3, :3] @ q["u"][k], pose[:3, :3] @ q["v"][k]
            corner = pose[:3, :3] @ q["origin"][k] + pose[:3, 3]
            normal = np.cross(u, v)
            away = normal @ ray
            if abs(away) < 1e-9 or away * q["cull"][k] < 0:
                continue
            z = normal @ (corner - eye) / away  # the ray has depth 1, so this is the depth
            a, b = (eye + z * ray - corner) @ u, (eye + z * ray - corner) @ v
            if z > 0.15 and 0 <= a <= q["extent"][k][0] and 0 <= b <= q["extent"][k][1]:
                hits[k] = z
        if ray[1] > 0 and -eye[1] / ray[1] < 240:
            hits[0] = -eye[1] / ray[1]
        number = seen.quad[py, px]
        solid = [z for k, z in hits.items() if q["tile"][k] not in bank.alpha]
        if number < 0:
            assert not solid and seen.inverse[py, px] == 0
            continue
        assert hits[number] == pytest.approx(1 / seen.inverse[py, px], rel=1e-6)
        assert hits[number] <= min(solid, default=np.inf) * 1.001


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"size": (8, 8)}, {"fps": 0}, {"annotated": [9]}, {"snippets": {}}, {"workers": 0}],
)
def test_wrong_arguments_are_told_in_one_line(tmp_path, wrong):
    good = {"seed": 0, "snippets": {"train": 1}, "fps": 7.0}
    with pytest.raises(UserError) as told:
        render_dataset(tmp_path, **(good | wrong))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_neither_overwrites_nor_reads_nonsense(street, tmp_path):
    with pytest.raises(UserError, match="already holds"):
        render_dataset(street, snippets={"train": 1}, **SETTING)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match="no pose file"):
        read_poses(tmp_path / "a.json")
    with pytest.raises(UserError, match="missing"):
        read_depth(tmp_path / "none.png")
    with pytest.raises(UserError, match="3 channel"):
        read_flow(next((street / "truth/depth").rglob("*.png")))
