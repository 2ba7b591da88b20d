"""Readers of raw data sets, each on a tiny tree of its layout."""

from pathlib import Path

import pytest
from PIL import Image

from semivid.data.readers import get_reader
from semivid.data.readers.base import natural, positions
from semivid.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def touch(folder, *names):
    """Pictures whose content does not matter here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if path.suffix == ".png" else "RGB", (8, 4)).save(path)


def test_positions():
    assert positions([]) == [] and positions([7]) == [0]
    assert positions([390, 420, 451, 480, 2430, 2460]) == [0, 1, 2, 3, 68, 69]
    assert positions([7959, 7961, 7963]) == [0, 1, 2]
    assert positions([19, 20, 21, 319, 320], step=1) == [0, 1, 2, 300, 301]
    # time stamps with jitter: all gaps differ
    assert positions([0, 98, 200, 301, 904]) == [0, 1, 2, 3, 9]
    assert sorted(["f10", "f9", "F", "9"], key=natural) == ["9", "F", "f9", "f10"]


@pytest.fixture
def cityscapes(tmp_path):
    train = tmp_path / "leftImg8bit_sequence/train"
    touch(train / "aachen", *(f"aachen_000000_{n:06d}_leftImg8bit.png" for n in (18, 19, 20)))
    touch(train / "bad-town", *(f"bad-town_000001_{n:06d}_leftImg8bit.png" for n in (19, 300, 301)))
    touch(tmp_path / "leftImg8bit_sequence/val/ulm", "ulm_000000_000019_leftImg8bit.png")
    touch(tmp_path / "gtFine/train/aachen", "aachen_000000_000019_gtFine_labelIds.png")
    (tmp_path / "camera").mkdir()
    for name in ("aachen_000000_000019", "bad-town_000001_000019", "ulm_000000_000019"):
        (tmp_path / f"camera/{name}_camera.json").write_text('{"fov_x": 90}')
    return {
        "source": "cityscapes",
        "frames": {s: str(tmp_path / "leftImg8bit_sequence" / s) for s in ("train", "val")},
        "masks": {"train": str(tmp_path / "gtFine/train"), "val": None},
        "camera": str(tmp_path / "camera"),
    }


def test_cityscapes(cityscapes):
    reader = get_reader(cityscapes)
    assert reader.splits == ["train", "val"]
    frames = reader.frames("train")
    assert [(f.name, f.sequence, f.position) for f in frames] == [
        ("aachen_000000_000018", "aachen_000000", 0),
        ("aachen_000000_000019", "aachen_000000", 1),
        ("aachen_000000_000020", "aachen_000000", 2),
        ("bad-town_000001_000019", "bad-town_000001", 0),
        ("bad-town_000001_000300", "bad-town_000001", 281),
        ("bad-town_000001_000301", "bad-town_000001", 282),
    ]
    masks = [reader.mask(f) for f in frames]
    assert [m.name if m else None for m in masks[:2]] == [None, "aachen_000000_000019_gtFine_labelIds.png"]
    assert not any(masks[2:]) and reader.mask(reader.frames("val")[0]) is None
    # frames without a camera file of their own take that of their sequence
    assert {f.camera.name for f in frames} == {
        "aachen_000000_000019_camera.json", "bad-town_000001_000019_camera.json"
    }  # fmt: skip


def test_cityscapes_same_source_as_street(cityscapes):
    street = get_reader(cityscapes | {"source": "street"})
    assert street.frames("train") == get_reader(cityscapes).frames("train")


def test_cityscapes_strange_names_and_cameras(cityscapes, tmp_path):
    touch(tmp_path / "leftImg8bit_sequence/val/ulm", "a.png", "b.png")
    with pytest.raises(UserError) as error:
        get_reader(cityscapes).frames("val")
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == ["a.png", "b.png"]
    assert all("not called {city}_{snippet}_{frame}_leftImg8bit.png" in line for line in lines)
    # if no file is called so, the source is wrong and one line tells
    next((tmp_path / "leftImg8bit_sequence/val/ulm").glob("ulm*")).unlink()
    with pytest.raises(UserError, match=r"^data.frames.val: none of the 2 pictures in .*ulm/a.png\).*data.source$"):
        get_reader(cityscapes).frames("val")
    for path in (tmp_path / "camera").glob("aachen*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no json .* for 3 frames of train, such as aachen_000000_000018"):
        get_reader(cityscapes).frames("train")
    assert get_reader(cityscapes | {"camera": None}).frames("train")[0].camera is None


def test_camvid_segnet(tmp_path):
    touch(tmp_path / "train", "0016E5_00390.jpg", "0016E5_00420.jpg", "0016E5_02370.jpg", "0006R0_f00930.jpg")
    touch(tmp_path / "trainannot", "0016E5_00390.png")
    data = {
        "source": "camvid",
        "frames": {"train": str(tmp_path / "train")},
        "masks": {"train": str(tmp_path / "trainannot")},
    }
    reader = get_reader(data)
    frames = reader.frames("train")
    assert [(f.name, f.sequence, f.position, f.camera) for f in frames] == [
        ("0006R0_f00930", "0006R0", 0, None),
        ("0016E5_00390", "0016E5", 0, None),
        ("0016E5_00420", "0016E5", 1, None),
        ("0016E5_02370", "0016E5", 66, None),
    ]
    assert [reader.mask(f) is not None for f in frames] == [False, True, False, False]


def test_camvid_original(tmp_path, monkeypatch):
    lists = {s: (ROOT / f"splits/camvid_{s}.txt").read_text().split() for s in ("train", "val")}
    assert [len(lists[s]) for s in ("train", "val")] == [367, 101]
    test = [f"Seq05VD_f{n:05d}" for n in range(0, 5130, 30)] + [f"0001TP_{n:06d}" for n in range(8550, 10381, 30)]
    frames, masks = tmp_path / "701_StillsRaw_full", tmp_path / "LabeledApproved_full"
    frames.mkdir()
    masks.mkdir()
    for name in (*lists["train"], *lists["val"], *test):
        (frames / f"{name}.png").touch()
        (masks / f"{name}_L.png").touch()
    monkeypatch.chdir(ROOT)
    folders = {s: str(frames) for s in ("train", "val", "test")}
    reader = get_reader({"source": "camvid_original", "frames": folders, "masks": {s: str(masks) for s in folders}})
    found = {s: reader.frames(s) for s in reader.splits}
    assert {s: len(f) for s, f in found.items()} == {"test": 233, "train": 367, "val": 101}
    assert sorted(f.name for f in found["test"]) == sorted(test)
    assert reader.mask(found["val"][0]).name == f"{found['val'][0].name}_L.png"
    (frames / "0016E5_07959.png").unlink()
    with pytest.raises(UserError, match=r"camvid_val.txt: 0016E5_07959 is not in "):
        reader.frames("val")


def folder_data(tmp_path, **more):
    return {"source": "folder", "frames": {"train": str(tmp_path / "video")}, **more}


def test_folder(tmp_path):
    touch(tmp_path / "video", "top.JPG", "ride/f9.jpg", "ride/f10.png", "ride/f11.jpeg", "ride/f99.jpg")
    touch(tmp_path / "video", "day 2/late/x.jpg", "day 2/late/y.jpg")
    touch(tmp_path / "masks", "ride/f9.png", "ride/typo.png")
    (tmp_path / "video/notes.txt").touch()
    (tmp_path / "video/._f9.jpg").touch()
    reader = get_reader(folder_data(tmp_path, masks={"train": str(tmp_path / "masks")}))
    frames = reader.frames("train")
    assert [(f.name, f.sequence, f.position) for f in frames] == [
        ("day 2_late_x", "day 2/late", 0),
        ("day 2_late_y", "day 2/late", 1),
        ("ride_f10", "ride", 1),
        ("ride_f11", "ride", 2),
        ("ride_f9", "ride", 0),
        ("ride_f99", "ride", 90),
        ("top", ".", 0),
    ]
    assert [f.name for f in frames if reader.mask(f)] == ["ride_f9"]
    assert reader.unmatched_masks("train") == ["ride/typo"]


def test_folder_holdout(tmp_path):
    touch(tmp_path / "video", *(f"a/{n}.jpg" for n in range(10)), *(f"b/{n}.jpg" for n in range(5)), "c/0.jpg")
    data = folder_data(tmp_path, holdout=0.2)
    data["frames"]["val"] = data["frames"]["train"]
    reader = get_reader(data)
    names = {s: [f.name for f in reader.frames(s)] for s in ("train", "val")}
    assert names["val"] == ["a_8", "a_9", "b_4"] and len(names["train"]) == 13
    with pytest.raises(UserError, match=r"data.holdout"):
        get_reader(data | {"holdout": None})
    with pytest.raises(UserError, match=r"data.holdout: 0.01 .* no frame for val .* 10\)"):
        get_reader(data | {"holdout": 0.01}).frames("val")


def test_folder_names_shared_by_splits(tmp_path):
    touch(tmp_path, "video/1.jpg", "video/2.jpg", "other/1.jpg")
    data = folder_data(tmp_path)
    data["frames"]["val"] = str(tmp_path / "other")
    reader = get_reader(data)
    assert [f.name for s in reader.splits for f in reader.frames(s)] == ["train_1", "train_2", "val_1"]


def test_folder_same_name_twice(tmp_path):
    touch(tmp_path / "video", "a/b/1.jpg", "a_b/1.jpg", "2.jpg", "2.png")
    with pytest.raises(UserError) as error:
        get_reader(folder_data(tmp_path)).frames("train")
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all("2 frames are called" in line for line in lines)
    assert "video/2.jpg" in lines[0] and "video/2.png" in lines[0] and "called a_b_1 (" in lines[1]


def test_camvid_same_number_twice(tmp_path):
    """The position of a frame in its video would else depend on the order of files."""
    touch(tmp_path, "a_1.png", "a_01.png", "a_2.png")
    with pytest.raises(UserError, match=r"a_01, a_1 have the same frame number, 1"):
        get_reader({"source": "camvid", "frames": {"train": str(tmp_path)}}).frames("train")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("new\nline", "a line break"),
        ("unit\x1fseparator", "a control character"),
        ("line\u2028separator", "a line break"),
        ("broken \udce9 byte", "broken UTF-8"),
        (" first", "begins or ends with a space"),
        ("last ", "begins or ends with a space"),
        ("x" * 201, "longer than 200 bytes"),
    ],
    ids=ascii,
)
def test_names_that_lists_of_frames_cannot_hold(tmp_path, name, reason):
    touch(tmp_path / "video", "good.jpg", 'räum 1,2 "新".jpg', f"{name}.jpg")
    reader = get_reader(folder_data(tmp_path))
    with pytest.raises(UserError, match=reason) as error:
        reader.frames("train")
    assert "\n" not in str(error.value) and str(error.value).isprintable()
    assert [f.name for f in reader.scan("train", [])] == ["good", 'räum 1,2 "新"']


def test_accents_may_be_written_in_two_ways(tmp_path):
    touch(tmp_path, "video/caf\u00e9.jpg", "masks/cafe\u0301.png")
    reader = get_reader(folder_data(tmp_path, masks={"train": str(tmp_path / "masks")}))
    assert reader.mask(reader.frames("train")[0]) and reader.unmatched_masks("train") == []


@pytest.mark.parametrize("source", ["folder", "camvid", "cityscapes"])
def test_splits_within_each_other(tmp_path, source):
    touch(tmp_path, "video/a_1.jpg", "video/val/a_2.jpg")
    frames = {"train": str(tmp_path / "video"), "val": str(tmp_path / "video/val")}
    with pytest.raises(UserError, match=r"^data.frames.val: .*video/val lies in the folder of train, [^\n]*$"):
        get_reader({"source": source, "frames": frames})
    same = {"source": source, "frames": frames | {"val": frames["train"]}, "holdout": 0.5}
    if source == "folder":
        get_reader(same)
    else:
        with pytest.raises(UserError, match=r"^data.frames.train: [^\n]*$"):
            get_reader(same)


def test_refusals(tmp_path):
    touch(tmp_path / "video", "1.jpg")
    data = folder_data(tmp_path)
    with pytest.raises(UserError, match="did you mean cityscapes"):
        get_reader(data | {"source": "cityscape"})
    with pytest.raises(UserError, match=r"data.frames.train: no folder"):
        get_reader(data | {"frames": {"train": str(tmp_path / "no")}})
    with pytest.raises(UserError, match=r"data.masks.train: no folder"):
        get_reader(data | {"masks": {"train": str(tmp_path / "no")}})
    with pytest.raises(UserError, match=r"data.camera: no file"):
        get_reader(data | {"camera": str(tmp_path / "no")})
    with pytest.raises(UserError, match=r"data.frames names no folder"):
        get_reader(data | {"frames": {"train": None}})
    with pytest.raises(UserError, match=r"data.masks.train: .* lies in a folder of frames"):
        get_reader(data | {"masks": data["frames"]})
    with pytest.raises(UserError) as error:  # all that is missing at once
        get_reader({"source": "folder", "frames": {"train": "no", "val": "nor"}, "masks": {"val": "x"}, "camera": "y"})
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
        "data.frames.train", "data.frames.val", "data.masks.val", "data.camera"
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no frames \(.jpg, .jpeg, .png\) in .*empty"):
        get_reader(data | {"frames": {"train": str(tmp_path / "empty")}}).frames("train")


def test_published_lists():
    """Every published name is a training frame; number and first ids are those of the paper's lists."""
    known = {
        "cityscapes": (ROOT / "splits/cityscapes_train.txt").read_text().split(),
        "camvid": (ROOT / "splits/camvid_train.txt").read_text().split(),
    }
    assert len(known["cityscapes"]) == 2975 and known["cityscapes"] == sorted(known["cityscapes"])
    files = sorted((ROOT / "splits/published").glob("*.txt"))
    assert len(files) == 15
    for path in files:
        names, dataset = path.read_text().split(), path.name.split("_")[0]
        assert len(set(names)) == len(names) == (744 if dataset == "cityscapes" else 100)
        assert set(names) <= set(known[dataset])
    first = (ROOT / "splits/published/camvid_ds_us_seed42.txt").read_text().split()[:3]
    assert [known["camvid"].index(n) for n in first] == [193, 135, 214]


def test_real_camvid(shared):
    data = shared / "data/camvid"
    reader = get_reader(
        {"source": "camvid", "frames": {s: str(data / s) for s in ("train", "val")},
         "masks": {s: str(data / f"{s}annot") for s in ("train", "val")}}
    )  # fmt: skip
    for split in ("train", "val"):
        names = (ROOT / f"splits/camvid_{split}.txt").read_text().split()
        frames = reader.frames(split)
        assert [f.name for f in frames] == names
        assert all(reader.mask(f) for f in frames)
    # the validation frames are one piece of 15 Hz video
    assert [f.position for f in reader.frames("val")] == list(range(101))
