"""Preparing frames and masks: parity of the picture operations, whole trees, broken files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semivid.data.index import read_cameras, read_classes, read_index
from semivid.data.prepare import prepare_frames, prepare_masks, resize_frame, resize_mask
from semivid.data.pyramid import pyramid
from semivid.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def fixture(data_dir):
    return json.loads((data_dir / "three_ways_preprocess.json").read_text())


def randint(high, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, shape, generator=generator).numpy().astype(np.uint8)


def test_lanczos_and_pyramid(fixture):
    source = Image.fromarray(randint(256, (32, 64, 3), 400))
    small = np.asarray(resize_frame(source, (32, 16)))
    assert int(small.sum()) == fixture["lanczos"]["sum"]
    assert small[0, :4].tolist() == fixture["lanczos"]["[0,:4]"]
    assert small[8, 16].tolist() == fixture["lanczos"]["[8,16]"]
    levels = [np.asarray(level) for level in pyramid(source, 4)]
    assert (levels[0] == np.asarray(source)).all()
    for scale, shape, total in fixture["pyramid"]["values"]:
        assert list(levels[scale].shape) == shape and int(levels[scale].sum()) == total


def test_lanczos_impulse(fixture):
    row = np.zeros((1, 16), np.uint8)
    row[0, 7] = 240
    assert np.asarray(resize_frame(Image.fromarray(row), (8, 1)))[0].tolist() == [
        *fixture["lanczos_impulse"]["resized to 1x8"]
    ]


def test_label_nearest(fixture):
    labels = randint(34, (32, 64), 401)
    small = np.asarray(resize_mask(Image.fromarray(labels), (32, 16)))
    assert int(small.sum()) == fixture["label_nearest"]["sum"]
    assert small[0, :8].tolist() == fixture["label_nearest"]["[0,:8]"]
    assert (small == labels[1::2, 1::2]).all()


def test_jpeg(fixture, tmp_path):
    """The file that prepare_frames writes differs from the resized picture as the reference's file does."""
    source = Image.fromarray(randint(256, (32, 64, 3), 400))
    (tmp_path / "raw").mkdir()
    source.save(tmp_path / "raw/a.png")
    data = {"source": "folder", "frames": {"train": str(tmp_path / "raw")}}
    frames(data, tmp_path / "out", size=(32, 16))
    with Image.open(tmp_path / "out/images/train/a.jpg") as written:
        assert written.format == "JPEG" and [c[1:3] for c in written.layer] == [(1, 1)] * 3
        difference = np.abs(np.asarray(written).astype(int) - np.asarray(resize_frame(source, (32, 16))))
    assert abs(difference.max() - fixture["jpeg"]["max abs difference"]) <= 1
    assert difference.mean() == pytest.approx(fixture["jpeg"]["mean abs difference"], abs=0.05)


def frames(data, out, size=(16, 8), format="jpg", workers=1, **more):
    out.mkdir(exist_ok=True)
    return prepare_frames(
        data,
        size=size,
        format=format,
        quality=98,
        out_images=out / "images",
        out_csv=out / "frames.csv",
        out_cameras=out / "cameras.json",
        workers=workers,
        **more,
    )


def masks(data, out, size=(16, 8), workers=1, **more):
    return prepare_masks(
        data,
        size=size,
        csv_in=out / "frames.csv",
        out_labels=out / "labels",
        out_csv=out / "index.csv",
        out_classes=out / "classes.json",
        workers=workers,
        **more,
    )


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def cityscapes(tmp_path):
    raw = tmp_path / "raw"
    for split, city in (("train", "aachen"), ("val", "ulm")):
        for n in (18, 19, 20):
            save(raw / f"leftImg8bit_sequence/{split}/{city}/{city}_000000_{n:06d}_leftImg8bit.png",
                 randint(256, (16, 32, 3), n + 100 * len(split)))  # fmt: skip
        save(raw / f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png", randint(34, (16, 32), 5))
        camera = raw / f"camera/{split}/{city}/{city}_000000_000019_camera.json"
        camera.parent.mkdir(parents=True)
        intrinsic = {"fx": 2262.52, "fy": 2265.3017905988554, "u0": 1096.98, "v0": 513.137}
        camera.write_text(json.dumps({"intrinsic": intrinsic, "extrinsic": {}}))
    return {
        "source": "cityscapes",
        "frames": {s: str(raw / "leftImg8bit_sequence" / s) for s in ("train", "val")},
        "masks": {s: str(raw / "gtFine" / s) for s in ("train", "val")},
        "camera": str(raw / "camera"),
        "classes": str(ROOT / "presets/classes/cityscapes19.yaml"),
    }


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_cityscapes_tree(cityscapes, tmp_path):
    out, calls = tmp_path / "out", []
    summary = frames(cityscapes, out, progress=lambda done, total: calls.append((done, total)))
    assert summary == {"frames": {"train": 3, "val": 3}, "sequences": 2, "cameras": 1}
    assert calls == [(i, 6) for i in range(1, 7)]
    report = masks(cityscapes, out)
    assert report["labels"] == {"train": 1, "val": 1} and report["unmatched_masks"] == []
    index = read_index(out / "index.csv")
    assert [f.frame for f in index.select("train", labelled=True)] == ["aachen_000000_000019"]
    frame = index.by_name["aachen_000000_000019"]
    assert index.neighbour(frame, 1).frame == "aachen_000000_000020"
    assert Image.open(frame.image).size == (16, 8)
    camera = read_cameras(out / "cameras.json")[frame.camera]
    assert (camera.fx, camera.cy, camera.source_fx) == pytest.approx((2262.52 / 128, 513.137 / 128, 2262.52))
    with Image.open(frame.label) as label:
        assert label.mode == "L"
        labels = np.asarray(label)
    raw = randint(34, (16, 32), 5)[1::2, 1::2]
    table = np.full(34, 255)
    table[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = range(19)
    assert (labels == table[raw]).all()
    assert report["void"] == pytest.approx((labels == 255).mean())
    assert sum(report["classes"].values()) == 2 * (labels != 255).sum()
    assert read_classes(out / "classes.json").names[:2] == ("road", "sidewalk")
    assert not [name for name in tree(out) if name.split("/")[-1].startswith(".")]


def test_workers_do_not_change_a_byte(cityscapes, tmp_path):
    for workers in (1, 2):
        frames(cityscapes, tmp_path / f"out{workers}", workers=workers)
        masks(cityscapes, tmp_path / f"out{workers}", workers=workers)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    frames(cityscapes, tmp_path / "out1")  # and again over what is there
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")


def test_temporary_folders(cityscapes, tmp_path):
    """Stages write into temporary folders and rename them: the index names the final ones."""
    out = tmp_path / "out"
    options = {"size": [16, 8], "workers": 1}
    prepare_frames(cityscapes, **options, format="jpg", quality=98, out_images=out / ".images.tmp",
                   out_csv=out / ".frames.csv.tmp", out_cameras=out / ".cameras.json.tmp")  # fmt: skip
    (out / ".images.tmp").rename(out / "images")
    (out / ".frames.csv.tmp").rename(out / "frames.csv")
    prepare_masks(cityscapes, **options, csv_in=out / "frames.csv", out_labels=out / ".labels.tmp",
                  out_csv=out / ".index.csv.tmp", out_classes=out / ".classes.json.tmp")  # fmt: skip
    (out / ".labels.tmp").rename(out / "labels")
    (out / ".index.csv.tmp").rename(out / "index.csv")
    index = read_index(out / "index.csv")
    assert all(f.image.is_file() for f in index.frames)
    assert len(index.select(labelled=True)) == 2
    assert all(f.label.is_file() for f in index.select(labelled=True))


def test_same_size_and_format_is_copied(tmp_path):
    save(tmp_path / "raw/a.jpg", randint(256, (8, 16, 3), 1), quality=50)
    save(tmp_path / "raw/b.jpg", randint(256, (8, 16), 1))  # grey: must become RGB
    data = {"source": "folder", "frames": {"train": str(tmp_path / "raw")}}
    frames(data, tmp_path / "out")
    got = tree(tmp_path / "out/images/train")
    assert got["a.jpg"] == (tmp_path / "raw/a.jpg").read_bytes()
    assert Image.open(io.BytesIO(got["b.jpg"])).mode == "RGB"
    frames(data, tmp_path / "png", format="png")
    with Image.open(tmp_path / "png/images/train/a.png") as png, Image.open(tmp_path / "raw/a.jpg") as jpg:
        assert (np.asarray(png) == np.asarray(jpg)).all()
    assert json.loads((tmp_path / "out/cameras.json").read_text()) == {}


def test_all_bad_frames_are_reported_at_once(tmp_path):
    raw = tmp_path / "raw"
    for n in range(4):
        save(raw / f"good{n}.png", randint(256, (16, 32, 3), n))
    (raw / "empty.png").touch()
    (raw / "text.jpg").write_text("hello")
    (raw / "cut.png").write_bytes((raw / "good0.png").read_bytes()[:600])
    (raw / "gone.png").symlink_to(raw / "nowhere.png")
    save(raw / "wide.png", randint(256, (16, 40, 3), 9))
    Image.new("I;16", (32, 16)).save(raw / "deep.png")
    with pytest.raises(UserError) as error:
        frames({"source": "folder", "frames": {"train": str(raw)}}, tmp_path / "out", workers=2)
    first, *lines = str(error.value).splitlines()
    assert first == "6 of 10 frames cannot be used; replace or remove these files:"
    wanted = {
        "empty.png": "an empty file",
        "text.jpg": "not a picture",
        "cut.png": "truncated",
        "gone.png": "No such file",
        "wide.png": "40x16, but its sequence is 32x16",
        "deep.png": "16 or more bits; save it with 8",
    }
    assert len(lines) == 6
    for name, reason in wanted.items():
        assert any(f"raw/{name}: " in line and reason in line for line in lines), name
    assert not (tmp_path / "out/frames.csv").exists()


def test_all_bad_masks_are_reported_at_once(cityscapes, tmp_path):
    out, folder = tmp_path / "out", Path(cityscapes["masks"]["train"]) / "aachen"
    frames(cityscapes, out)
    save(folder / "aachen_000000_000018_gtFine_labelIds.png", randint(34, (16, 16), 1))
    save(folder / "aachen_000000_000020_gtFine_labelIds.png", np.zeros((16, 32), np.uint8))
    save(folder / "aachen_000000_000019_gtFine_labelIds.png", randint(34, (16, 32, 3), 1))
    next(Path(cityscapes["masks"]["val"]).rglob("*.png")).write_bytes(b"x")
    with pytest.raises(UserError) as error:
        masks(cityscapes, out, workers=2)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("4 of 4 masks cannot be used") and len(lines) == 4
    for reason in (
        "16x16, but its frame is 32x16",
        "no pixel belongs to any class",
        "a colour picture, but the classes file lists ids",
        "not a picture",
    ):
        assert sum(reason in line for line in lines) == 1
    assert not (out / "index.csv").exists()


def test_masks_of_another_data_set(cityscapes, tmp_path):
    out = tmp_path / "out"
    frames(cityscapes, out)
    wrong = cityscapes | {"masks": {"train": cityscapes["masks"]["val"]}}
    with pytest.raises(UserError, match=r"no mask in .* belongs to a frame"):
        masks(wrong, out)
    next(Path(cityscapes["frames"]["train"]).rglob("*20_left*")).unlink()
    with pytest.raises(UserError, match="run the stage frames again"):
        masks(cityscapes, out)


def test_unlabelled_data(cityscapes, tmp_path):
    data = cityscapes | {"masks": None}
    frames(data, tmp_path / "out")
    report = masks(data, tmp_path / "out")
    assert report["labels"] == {} and report["void"] == 0
    assert read_index(tmp_path / "out/index.csv").select(labelled=True) == []


def test_camvid_original_colours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "splits").mkdir()
    for split, name in (("train", "0006R0_f00930"), ("val", "0016E5_07959")):
        save(tmp_path / f"raw/{name}.png", randint(256, (6, 8, 3), 1))
        (tmp_path / f"splits/camvid_{split}.txt").write_text(name + "\n")
        mask = np.zeros((6, 8, 3), np.uint8)
        mask[:, 2:] = [192, 128, 192]  # Truck_Bus
        mask[:, 4:] = 0  # Void
        mask[:, 6:] = [0, 0, 192]  # Sidewalk
        save(tmp_path / f"masks/{name}_L.png", mask)
    data = {
        "source": "camvid_original",
        "frames": {s: "raw" for s in ("train", "val")},
        "masks": {s: "masks" for s in ("train", "val")},
        "camera": str(ROOT / "presets/cameras/camvid.json"),
        "classes": str(ROOT / "presets/classes/camvid11_original.yaml"),
    }
    out = tmp_path / "out"
    frames(data, out, size=(4, 3))
    report = masks(data, out, size=(4, 3))
    assert report["labels"] == {"train": 1, "val": 1}
    label = np.asarray(Image.open(read_index(out / "index.csv").select("val")[0].label))
    assert label.tolist() == [[255, 8, 255, 4]] * 3
    assert read_cameras(out / "cameras.json")["camvid"].cx == 2


def test_own_video(tmp_path):
    """A user's video: colour masks for some frames, one of them misspelt, one guess of the field of view."""
    for n in range(5):
        save(tmp_path / f"video/a/{n}.png", randint(256, (8, 16, 3), n))
        save(tmp_path / f"video/b/{n}.png", randint(256, (16, 16, 3), n))
    red = np.zeros((8, 16, 3), np.uint8)
    red[..., 0] = 255
    for name in ("a/1", "a/4", "a/typo"):
        save(tmp_path / f"masks/{name}.png", red)
    (tmp_path / "classes.yaml").write_text("- {name: track, colour: [255, 0, 0], colours: [[255, 0, 0]]}\n")
    (tmp_path / "camera.json").write_text('{"fov_x": 90}')
    folder = {s: str(tmp_path / "video") for s in ("train", "val")}
    data = {
        "source": "folder", "frames": folder, "masks": {s: str(tmp_path / "masks") for s in folder},
        "holdout": 0.2, "camera": str(tmp_path / "camera.json"), "classes": str(tmp_path / "classes.yaml"),
    }  # fmt: skip
    out = tmp_path / "out"
    assert frames(data, out)["frames"] == {"train": 8, "val": 2}
    report = masks(data, out)
    assert report["labels"] == {"train": 1, "val": 1} and report["unmatched_masks"] == ["a/typo"]
    index, cameras = read_index(out / "index.csv"), read_cameras(out / "cameras.json")
    # one guess of the field of view, but frames of two shapes: two cameras
    a, b = (cameras[index.by_name[n].camera] for n in ("a_1", "b_1"))
    assert (a.fx, a.fy, b.fx, b.fy) == pytest.approx((8, 8, 8, 4))


def test_real_camvid(shared, tmp_path):
    data = shared / "data/camvid"
    splits = ("train", "val")
    params = {
        "source": "camvid",
        "frames": {s: str(data / s) for s in splits},
        "masks": {s: str(data / f"{s}annot") for s in splits},
        "camera": str(ROOT / "presets/cameras/camvid.json"),
        "classes": str(ROOT / "presets/classes/camvid11_segnet.yaml"),
    }
    size = (120, 90)
    assert frames(params, tmp_path, size=size, workers=2)["frames"] == {"train": 367, "val": 101}
    report = masks(params, tmp_path, size=size, workers=2)
    assert report["labels"] == {"train": 367, "val": 101}
    assert report["void"] == pytest.approx(0.0348, abs=0.001) and min(report["classes"].values()) > 10000
    for frame in read_index(tmp_path / "index.csv").select("val")[::20]:
        labels = np.asarray(Image.open(frame.label))
        assert set(np.unique(labels)) <= {*range(11), 255}
        with Image.open(data / f"valannot/{frame.frame}.png") as mask:
            raw = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        assert (labels == np.where(raw == 11, 255, raw)).all()
