"""The prepared index, the cameras and the classes files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semivid.data.cameras import Camera, read_camera_json, write_cameras
from semivid.data.classes import VOID, Classes, MaskCode, read_class_file, write_classes
from semivid.data.index import Frame, read_cameras, read_classes, read_index, write_index
from semivid.data.readers.camvid import CamVidOriginalReader
from semivid.data.readers.cityscapes import CityscapesReader
from semivid.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CITYSCAPES = Camera.of_source(2262.52, 2265.3017905988554, 1096.98, 513.137, 2048, 1024)


def frame(tmp_path, name, split="train", position=0, label=False):
    image = tmp_path / "images" / split / f"{name}.jpg"
    return Frame(name, split, "a", position, image, "cam", tmp_path / "labels" / f"{name}.png" if label else None)


def test_round_trip_and_order(tmp_path):
    frames = [
        frame(tmp_path, "b, 2", position=1, label=True),
        frame(tmp_path, "a", position=0),
        frame(tmp_path, "v", "val", position=2),
    ]
    write_index(tmp_path / "index.csv", frames, labels=True)
    index = read_index(tmp_path / "index.csv")
    assert [f.frame for f in index.frames] == ["a", "b, 2", "v"]
    assert set(index.frames) == set(frames)
    assert index.by_name["b, 2"].image.is_absolute()
    text = (tmp_path / "index.csv").read_text()
    assert str(tmp_path) not in text and "images/train/a.jpg" in text
    write_index(tmp_path / "frames.csv", frames, labels=False)
    assert all(f.label is None for f in read_index(tmp_path / "frames.csv").frames)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_select_and_neighbours(tmp_path):
    frames = [frame(tmp_path, n, position=p, label=p == 1) for n, p in (("a", 0), ("b", 1), ("d", 3))]
    write_index(tmp_path / "index.csv", [*frames, frame(tmp_path, "v", "val", 4)], labels=True)
    index = read_index(tmp_path / "index.csv")
    a, b, d = index.select("train")
    assert index.select("train", labelled=True) == [b]
    assert index.select(labelled=False) == [a, d, index.by_name["v"]]
    assert (index.neighbour(a, 1), index.neighbour(b, -1), index.neighbour(b, 2)) == (b, a, d)
    assert index.neighbour(b, 1) is None  # the cut
    assert index.neighbour(d, 1) is None  # the validation frame right behind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run the stage masks"),
        ("frame,split\n", "no column sequence"),
        ("frame,split,sequence,position,image,camera\na,train,s,x,i,c\n", "line 2"),
        ("frame,split,sequence,position,image,camera\na,train,s\n", "line 2"),
        ("frame,split,sequence,position,image,camera\na,train,s,0,i,\na,val,s,0,j,\n", "called a"),
    ],
)
def test_broken_index(tmp_path, text, message):
    if text is not None:
        (tmp_path / "index.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_index(tmp_path / "index.csv")


def test_no_heavy_imports():
    code = """if True:
        import sys, semivid.data.index, semivid.data.prepare
        sys.exit(bool({"torch", "pandas"} & set(sys.modules)))"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_intrinsics_fixture(data_dir):
    fixture = json.loads((data_dir / "three_ways_selection.json").read_text())["intrinsics"]
    prepared = CITYSCAPES.resized(1024, 512)
    for flip, key in ((False, "right for 1024x512, offset (100,0), no flip"), (True, "right, flip")):
        k = prepared.window(100, 0, 512, 512, flip=flip).matrix()
        np.testing.assert_allclose(k[:2], fixture[key], rtol=1e-9)
        np.testing.assert_array_equal(k[2], [0, 0, 1])
    for flip, key in ((False, "no flip"), (True, "flip")):
        k = prepared.window(100, 0, 512, 512, flip=flip, intrinsics="reference").matrix()
        expected = np.array(fixture[f"reference, crop offset (100,0), {key}"])
        np.testing.assert_allclose(k, expected[:3, :3], rtol=1e-6)
    with pytest.raises(UserError, match="correct or reference"):
        prepared.window(0, 0, 1, 1, intrinsics="rihgt")


def test_camera_projects_the_same_point():
    """A point seen at pixel (u, v) stays on its pixel's copy after resize, flip and crop."""
    point = np.array([0.4, -0.2, 3.0])
    u, v, _ = CITYSCAPES.matrix() @ point / point[2]
    k = CITYSCAPES.resized(512, 512).crop(30, 10).matrix()
    np.testing.assert_allclose((k @ point / point[2])[:2], [u / 4 - 30, v / 2 - 10])
    mirrored = CITYSCAPES.resized(512, 512).flip().crop(30, 10)
    k = mirrored.matrix()
    np.testing.assert_allclose((k @ (point * [-1, 1, 1]) / point[2])[:2], [512 - u / 4 - 30, v / 2 - 10])
    assert (mirrored.width, mirrored.height) == (482, 502)
    np.testing.assert_allclose(mirrored.matrix(2)[:2], k[:2] / 4)


def test_cameras_file(tmp_path):
    cameras = {"aachen": CITYSCAPES.resized(1024, 512), "own": Camera.of_source(100, 110, 50, 40, 100, 80)}
    write_cameras(tmp_path / "cameras.json", cameras)
    assert read_cameras(tmp_path / "cameras.json") == cameras
    content = json.loads((tmp_path / "cameras.json").read_text())["aachen"]
    assert content["fx"] == pytest.approx(1131.26) and content["source"]["fx"] == 2262.52
    with pytest.raises(UserError, match="run the stage frames"):
        read_cameras(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": {"fx": 1}}')
    with pytest.raises(UserError, match="run the stage frames again"):
        read_cameras(tmp_path / "bad.json")


def test_camera_json_forms(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"fov_x": 90}')
    camera = read_camera_json(path, (640, 480), None)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((320, 320, 320, 240))
    path.write_text('{"intrinsic": {"fx": 2000, "fy": 2000, "u0": 1000, "v0": 500}}')
    assert read_camera_json(path, (1024, 512), (2048, 1024)).fx == 1000
    assert read_camera_json(path, (1024, 512), None).fx == 2000
    with pytest.raises(UserError, match="another aspect ratio"):
        read_camera_json(path, (640, 480), (2048, 1024))
    good = '{"intrinsic": {"fx": 2000, "fy": 2000, "u0": 1, "v0": 1}, "width": 640, "height": 480}'
    bad = [
        good.replace("2000", "NaN"),
        good.replace("2000", "-1"),
        good.replace("480", "0"),
        good.replace("640", "1e999"),
    ]
    for text in ('{"intrinsic": {"fx": 1}}', "no json", '{"fov_x": 180}', "[1]", '{"fov_x": null}', *bad):
        path.write_text(text)
        with pytest.raises(UserError, match="is no camera file"):
            read_camera_json(path, (640, 480), None)
    with pytest.raises(UserError, match="cannot read"):
        read_camera_json(tmp_path / "none.json", (640, 480), None)


def test_camera_presets():
    camvid = read_camera_json(ROOT / "presets/cameras/camvid.json", (480, 360), None).resized(240, 180)
    assert camvid.fy / camvid.fx == pytest.approx(4 / 3, rel=1e-3)
    assert (camvid.cx, camvid.cy) == (120, 90)
    city = read_camera_json(ROOT / "presets/cameras/cityscapes.json", (2048, 1024), None)
    assert city == CITYSCAPES


def test_cityscapes_encoding_fixture(data_dir):
    """Section 3.9 of Three Ways with our void, also for 255 in the file (defect 22 of the reference)."""
    fixture = json.loads((data_dir / "three_ways_selection.json").read_text())["encode_segmap"]
    classes, code = read_class_file(ROOT / "presets/classes/cityscapes19.yaml")
    expected = [VOID if i == 250 else i for i in fixture["labelIds 0..33 ->"]]
    code = code.with_void(CityscapesReader.void_ids, CityscapesReader.void_colours)
    ids = np.array([[*range(34), 255]], np.uint8)
    got = code.encode(Image.fromarray(ids))[0]
    assert got[:34].tolist() == expected and got[34] == VOID
    with pytest.raises(ValueError, match=r"ids that the classes file does not list: 35 \(2 pixels\), 34 \(1 pixels\)$"):
        code.encode(Image.fromarray(np.array([[7, 35, 34, 35]], np.uint8)))
    assert len(classes) == 19 and classes.colours[10].tolist() == [70, 130, 180]


def test_camvid_classes_agree(data_dir):
    """Every named colour but Void has a class, and both CamVid files describe the same eleven."""
    colours = json.loads((data_dir / "pseudo_camvid_masks.json").read_text())["colours"]
    original, code = read_class_file(ROOT / "presets/classes/camvid11_original.yaml")
    segnet, ids = read_class_file(ROOT / "presets/classes/camvid11_segnet.yaml")
    code = code.with_void(CamVidOriginalReader.void_ids, CamVidOriginalReader.void_colours)
    picture = Image.fromarray(np.array([[*colours.values()]], np.uint8))
    got = dict(zip(colours, code.encode(picture)[0].tolist(), strict=True))
    assert [n for n, v in got.items() if v == VOID] == ["Void"]
    names = {n: original.names[v] for n, v in got.items() if v != VOID}
    assert names["Truck_Bus"] == "Car" and names["LaneMkgsDriv"] == "Road" and names["Child"] == "Pedestrian"
    assert names["RoadShoulder"] == "Pavement" and names["TrafficLight"] == "SignSymbol"
    assert original.names == segnet.names and (original.colours == segnet.colours).all()
    assert ids.train == {i: i for i in range(11)}


def test_values_of_masks_in_other_modes():
    """Ids and colours mean the same in whatever mode a program saved them; what has no meaning is refused."""
    _, code = read_class_file(ROOT / "presets/classes/camvid11_original.yaml")
    code = code.with_void((), [(0, 0, 0)])
    rgb = Image.fromarray(np.array([[[128, 128, 128], [64, 0, 128], [0, 0, 0]]], np.uint8))
    for picture in (rgb, rgb.convert("RGBA"), rgb.convert("P", palette=Image.Palette.ADAPTIVE)):
        assert code.encode(picture).tolist() == [[0, 8, VOID]]
    with pytest.raises(ValueError, match=r"colours .* not list: \[34, 34, 34\] \(1 pixels\)"):
        code.encode(rgb.convert("L"))
    with pytest.raises(ValueError, match="mode I;16"):
        code.encode(Image.fromarray(np.zeros((1, 3), np.uint16)))

    code = MaskCode("ids", {0: 0, 3: 1}).with_void([3, 255], ())  # 3 stays a class
    ids = np.array([[0, 3, 255]], np.uint8)
    grey = Image.fromarray(ids)
    palette = grey.copy()
    palette.putpalette([9, 9, 9] * 256)  # its colours do not matter
    deep = Image.fromarray(ids.astype(np.uint16))
    for picture in (grey, palette, deep, deep.convert("I"), grey.convert("LA"), grey.convert("RGB")):
        assert code.encode(picture).tolist() == [[0, 1, VOID]], picture.mode
    with pytest.raises(ValueError, match=r"not list: 26001 \(1 pixels\)"):
        code.encode(Image.fromarray(np.array([[3, 26001]], np.uint16)))
    with pytest.raises(ValueError, match="a colour picture"):
        code.encode(rgb)
    # what is transparent is void, whatever stands below
    seen = grey.convert("RGBA")
    seen.putalpha(Image.fromarray(np.array([[255, 0, 1]], np.uint8)))
    assert code.encode(seen).tolist() == [[0, VOID, VOID]]


def test_void_values_of_a_class_file(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text(f"{FIRST}\n- void: [9, 7]\n- {{name: b, colour: [1, 2, 3], ids: [2]}}\n- void: [8]\n")
    classes, code = read_class_file(path)
    assert classes.names == ("a", "b") and code.train == {1: 0, 2: 1, 9: VOID, 7: VOID, 8: VOID}
    path.write_text("- {name: a, colour: [1, 2, 3], colours: [[0, 0, 9]]}\n- void: [[1, 0, 0]]\n")
    assert read_class_file(path)[1].train == {9: 0, 1 << 16: VOID}


def test_class_files_are_yaml_1_2(tmp_path):
    """In YAML 1.1, the default of PyYAML, the class `no` would be called False."""
    (tmp_path / "classes.yaml").write_text("- {name: no, colour: [1, 2, 3], ids: [010]}\n")
    classes, code = read_class_file(tmp_path / "classes.yaml")
    assert classes.names == ("no",) and code.train == {10: 0}


def test_classes_file_and_paint(tmp_path):
    classes = Classes(("a", "b"), np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    write_classes(tmp_path / "classes.json", classes)
    again = read_classes(tmp_path / "classes.json")
    assert again.names == classes.names and (again.colours == classes.colours).all()
    assert json.loads((tmp_path / "classes.json").read_text())["void"] == 255
    assert again.paint(np.array([[1, VOID]], np.uint8)).tolist() == [[[4, 5, 6], [0, 0, 0]]]
    with pytest.raises(UserError, match="run the stage masks"):
        read_classes(tmp_path / "none.json")


FIRST = "- {name: a, colour: [1, 2, 3], ids: [1]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "must be a list"),
        ("[", "is not YAML"),
        ("- {name: a, colour: [1, 2, 3], ids: [1], weight: 2}", "unknown key 'weight'"),
        ("- {name: a, colour: [1, 2], ids: [1]}", "is no colour"),
        ("- {name: a, colour: [1, 2, 3], ids: [256]}", "from 0 to 255"),
        ("- {name: a, colour: [1, 2, 3]}", "needs name, colour"),
        (f"{FIRST}\n- {{name: b, colour: [1, 2, 3], ids: [1]}}", "belongs to a"),
        (f"{FIRST}\n- {{name: a, colour: [1, 2, 3], ids: [2]}}", "two classes"),
        (f"{FIRST}\n- {{name: b, colour: [1, 2, 3], colours: [[1, 2, 3]]}}", "needs"),
        ("- {name: a, color: [1, 2, 3], ids: [1]}", "did you mean colour"),
        ("- {name: a, 1: 2, x: 3, colour: [1, 2, 3], ids: [1]}", "unknown key '1'"),
        ("- {name: 3, colour: [1, 2, 3], ids: [1]}", "in quotes"),
        ("- {name: a, name: b, colour: [1, 2, 3], ids: [1]}", 'line 1, column 13: found duplicate key "name"'),
        ("- {name: a, colour: [1, 2, 3], ids: [true]}", "id True"),
        (f"{FIRST}\n- void: 0", "void: 0 is no list"),
        (f"{FIRST}\n- void: [1]", "1 already belongs to a"),
        (f"{FIRST}\n- void: [[0, 0, 0]]", "id .* is no integer"),
        ("- void: [0]", "lists no class"),
        ("- {name: caf\udce9, colour: [1, 2, 3], ids: [1]}", r"not UTF-8 text \(byte 12\)"),
    ],
    ids=lambda v: v[:60].encode("ascii", "replace").decode(),
)
def test_bad_class_files(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        read_class_file(path)
    assert "\n" not in str(error.value) and "classes.yaml" in str(error.value)
