"""Mapillary Vistas on a small made-up release: photographs of many sizes, palette masks, config.json."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from semivid.data import mapillary_classes
from semivid.data.classes import read_class_file
from semivid.data.index import read_classes, read_index
from semivid.data.prepare import prepare_frames, prepare_masks
from semivid.data.readers import get_reader
from semivid.data.readers.mapillary import classes_file
from semivid.errors import UserError
from semivid.pipeline.params import Params
from small import small_params

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ROOT / "presets/classes/mapillary19.yaml"
SIZES = {"train": {"-0ab_C": (64, 48), "Zz9-_x": (90, 40), "aB3": (33, 44)}, "val": {"q_1": (50, 50)}}
FOLDERS = {"train": "training", "val": "validation"}
# raw id -> Cityscapes' official id (gtFine), of classes that mean the same in both
SAME = {13: 7, 15: 8, 17: 11, 6: 12, 3: 13, 45: 17, 48: 19, 50: 20, 30: 21, 29: 22, 27: 23, 19: 24, 20: 25, 55: 26,
        61: 27, 54: 28, 58: 31, 57: 32, 52: 33}  # fmt: skip


def pixels(shape, high, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, shape, generator=generator).numpy().astype(np.uint8)


def release(root, labels=("training", "validation")):
    """{frame: raw ids}; the palette would give other numbers if someone read colours instead of indices."""
    raw = {}
    for split, photographs in SIZES.items():
        for seed, (name, (width, height)) in enumerate(photographs.items()):
            image = root / FOLDERS[split] / f"images/{name}.jpg"
            mask = root / FOLDERS[split] / f"labels/{name}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels((height, width, 3), 256, seed)).save(image, quality=95)
            raw[name] = pixels((height, width), 66, 50 + seed)
            save_mask(mask, raw[name])
    write_config(root, 66)
    return raw


def save_mask(path, ids):
    picture = Image.fromarray(ids, "P")
    picture.putpalette(pixels((768,), 256, 9).tolist())
    picture.save(path)


def write_config(root, count, name="config.json"):
    labels = [{"name": f"object--{n}", "readable": f"Object {n} - Ä: (x)", "color": [n, 0, 7]} for n in range(count)]
    (root / name).write_text(json.dumps({"labels": labels, "version": "1.1", "mapping": "public"}))


def data(root, **more):
    return {
        "source": "mapillary",
        "frames": {s: str(root / f / "images") for s, f in FOLDERS.items()},
        "masks": {s: str(root / f / "labels") for s, f in FOLDERS.items()},
        "classes": str(CLASSES),
        **more,
    }


def prepare(block, out, size):
    out.mkdir()
    paths = {"size": size, "workers": 1}
    summary = prepare_frames(
        block, format="png", quality=98, out_images=out / "images", out_csv=out / "frames.csv",
        out_cameras=out / "cameras.json", **paths,
    )  # fmt: skip
    return summary, prepare_masks(
        block, csv_in=out / "frames.csv", out_labels=out / "labels", out_csv=out / "index.csv",
        out_classes=out / "classes.json", **paths,
    )  # fmt: skip


def test_frames_are_single_photographs(tmp_path):
    release(tmp_path)
    (tmp_path / "training/labels/aB3.png").unlink()
    reader = get_reader(data(tmp_path))
    frames = reader.frames("train")
    assert [(f.name, f.sequence, f.position, f.camera) for f in frames] == [
        (name, name, 0, None) for name in ("-0ab_C", "Zz9-_x", "aB3")
    ]
    masks = [reader.mask(f) for f in frames]
    assert masks[:2] == [tmp_path / f"training/labels/{n}.png" for n in ("-0ab_C", "Zz9-_x")] and masks[2] is None
    assert [f.name for f in reader.frames("val")] == ["q_1"]
    assert get_reader(data(tmp_path, masks={"train": None})).mask(frames[0]) is None


def test_prepared_at_one_size(tmp_path):
    """Every photograph has frames.size, whatever its shape; labels are the nearest raw ids, encoded pixel by pixel."""
    raw = release(tmp_path)
    frames, masks = prepare(data(tmp_path), tmp_path / "out", (32, 16))
    assert frames == {"frames": {"train": 3, "val": 1}, "sequences": 4, "cameras": 0}
    assert masks["labels"] == {"train": 3, "val": 1}
    names = read_classes(tmp_path / "out/classes.json").names
    of_id = {i: t for t, entry in enumerate(yaml.safe_load(CLASSES.read_text())) for i in entry["ids"]}
    index = read_index(tmp_path / "out/index.csv")
    seen = set()
    for frame in index.frames:
        with Image.open(frame.image) as image:
            assert image.size == (32, 16)
        ids = raw[frame.frame]
        height, width = ids.shape
        rows = [int((y + 0.5) * height / 16) for y in range(16)]
        columns = [int((x + 0.5) * width / 32) for x in range(32)]
        expected = [[of_id.get(int(ids[y, x]), 255) for x in columns] for y in rows]
        with Image.open(frame.label) as label:
            np.testing.assert_array_equal(np.asarray(label), expected)
        seen |= set(np.unique(expected).tolist())
        assert index.neighbour(frame, 1) is None and index.neighbour(frame, -1) is None
    assert len(names) == 19 and len(seen) > 15 and 255 in seen  # or nearly nothing was compared
    with Image.open(tmp_path / "training/images/Zz9-_x.jpg") as image:
        wide = np.asarray(image.convert("RGB").resize((32, 16), Image.Resampling.LANCZOS))
    with Image.open(index.by_name["Zz9-_x"].image) as image:
        np.testing.assert_array_equal(np.asarray(image), wide)


def test_classes_are_those_of_cityscapes():
    """Same names, order and colours as cityscapes19; the classes that both data sets have meet; the rest is void."""
    classes, code = read_class_file(CLASSES)
    cityscapes, official = read_class_file(ROOT / "presets/classes/cityscapes19.yaml")
    assert classes.names == cityscapes.names
    np.testing.assert_array_equal(classes.colours, cityscapes.colours)
    assert {raw: code.train[raw] for raw in SAME} == {raw: official.train[city] for raw, city in SAME.items()}
    assert sorted(official.train[city] for city in SAME.values()) == list(range(19))
    road, sidewalk = code.train[13], code.train[15]
    assert {code.train[raw] for raw in (7, 8, 23, 24, 41)} == {road}  # markings and lids
    assert {code.train[raw] for raw in (2, 9, 11)} == {sidewalk}  # curbs
    assert {code.train[raw] for raw in (20, 21, 22)} == {classes.names.index("rider")}
    # parking, rail track, bridge, tunnel, guard rail, caravan, trailer, sign's back, animals, ego vehicle, unlabelled
    assert not code.train.keys() & {10, 12, 16, 18, 4, 56, 60, 49, 0, 1, 64, 65}
    assert max(code.train) < 65


def test_ids_of_no_class_are_void_but_none_of_other_releases(tmp_path):
    release(tmp_path)
    mask = tmp_path / "training/labels/aB3.png"
    save_mask(mask, np.full((44, 33), 100, np.uint8))
    with pytest.raises(UserError) as error:
        prepare(data(tmp_path), tmp_path / "out", (32, 16))
    assert [line for line in str(error.value).splitlines() if "aB3" in line] == [
        f"{mask}: ids that the classes file does not list: 100 (512 pixels)"
    ]


@pytest.mark.parametrize("folder", ["instances", "panoptic"])
def test_other_annotations_are_refused(tmp_path, folder):
    release(tmp_path)
    (tmp_path / "training" / folder).mkdir()
    block = data(tmp_path, masks={"train": str(tmp_path / "training" / folder)})
    with pytest.raises(UserError, match=rf"^data.masks.train: .*/{folder} holds {folder}; give .*training/labels$"):
        get_reader(block)


def test_other_releases_are_refused(tmp_path):
    release(tmp_path)
    write_config(tmp_path, 124)
    with pytest.raises(UserError, match=r"^data.masks.train: .*config.json lists 124 classes, not the 66 of") as error:
        get_reader(data(tmp_path))
    assert len(str(error.value).splitlines()) == 2  # of both splits
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json is no config.json of Mapillary Vistas"):
        get_reader(data(tmp_path))
    (tmp_path / "config.json").unlink()
    assert len(get_reader(data(tmp_path)).frames("train")) == 3
    # the later download holds both versions of the labels
    for version, count in (("v1.2", 66), ("v2.0", 124)):
        (tmp_path / f"training/{version}").mkdir()
        (tmp_path / f"training/{version}/labels").mkdir()
        write_config(tmp_path, count, f"config_{version}.json")
    (tmp_path / "training/labels/aB3.png").rename(tmp_path / "training/v1.2/labels/aB3.png")
    reader = get_reader(data(tmp_path, masks={"train": str(tmp_path / "training/v1.2/labels")}))
    assert [reader.mask(f) is not None for f in reader.frames("train")] == [False, False, True]
    with pytest.raises(UserError, match=r"v2.0/labels holds the labels of v2.0; give those of v1.2$"):
        get_reader(data(tmp_path, masks={"train": str(tmp_path / "training/v2.0/labels")}))
    write_config(tmp_path, 124, "config_v1.2.json")
    with pytest.raises(UserError, match=r"config_v1.2.json lists 124"):
        get_reader(data(tmp_path, masks={"train": str(tmp_path / "training/v1.2/labels")}))


def test_all_65_classes(tmp_path):
    """Written from the release's own names and colours; every pixel but the unlabelled ones keeps its id."""
    raw = release(tmp_path)
    (tmp_path / "all.yaml").write_text(classes_file(tmp_path / "config.json"))
    prepare(data(tmp_path, classes=str(tmp_path / "all.yaml")), tmp_path / "out", (64, 48))
    classes = read_classes(tmp_path / "out/classes.json")
    assert classes.names == tuple(f"Object {n} - Ä: (x)" for n in range(65))
    assert classes.colours.tolist() == [[n, 0, 7] for n in range(65)]
    expected = np.where(raw["-0ab_C"] == 65, 255, raw["-0ab_C"])
    assert {0, 64, 255} <= set(np.unique(expected).tolist())
    with Image.open(tmp_path / "out/labels/train/-0ab_C.png") as label:
        np.testing.assert_array_equal(np.asarray(label), expected)
    write_config(tmp_path, 124)
    with pytest.raises(UserError, match=r"config.json lists 124 classes, not the 66 of version 1.2$"):
        classes_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"name": "a"}] * 66}))
    with pytest.raises(UserError, match=r"has a class without name or colour"):
        classes_file(tmp_path / "config.json")


def test_the_command_prints_the_classes_file(tmp_path, monkeypatch, capfdbinary):
    write_config(tmp_path, 66)
    monkeypatch.setattr(sys, "argv", ["mapillary_classes", str(tmp_path / "config.json")])
    mapillary_classes.main()
    sys.stdout.flush()
    (tmp_path / "all.yaml").write_bytes(capfdbinary.readouterr().out)
    classes, code = read_class_file(tmp_path / "all.yaml")
    assert classes.names[64] == "Object 64 - Ä: (x)" and len(classes.names) == 65
    assert code.train == {n: n for n in range(65)} | {65: 255}
    write_config(tmp_path, 124)
    with pytest.raises(SystemExit) as stop:
        mapillary_classes.main()
    told = capfdbinary.readouterr()
    assert stop.value.code == 2 and told.out == b""
    assert told.err.startswith(b"error: ") and told.err.endswith(b"lists 124 classes, not the 66 of version 1.2\n")


def test_the_folder_above(tmp_path):
    release(tmp_path)
    block = data(tmp_path, frames={"train": str(tmp_path / "training")})
    with pytest.raises(UserError, match=r"^data.frames.train: .*training holds no pictures; give .*training/images$"):
        get_reader(block).frames("train")


def test_params_know_the_source():
    params = small_params()
    params["data"]["source"] = "mapillary"
    assert Params.model_validate(params).data.source == "mapillary"
