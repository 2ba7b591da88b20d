"""Inference on pictures and video: results against a plain forward pass per picture, the film, refused input."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from helpers import fill_by_rule
from semivid import infer
from semivid.data.index import read_classes
from semivid.depth.disparity import read_disparity
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.evaluation.film import Film, Pictures, Video, on_canvas, read_picture
from semivid.evaluation.segmenter import labels_at, open_network
from semivid.models.build import build_network
from semivid.models.checkpoints import save_parts, save_state
from semivid.pipeline.params import Params
from small import small_params

RUN = "supervised-random-2-7"
SIZE = (64, 32)  # of the small params' training frames
NAMES = ("class 0", "class 1", "Straße")
COLOURS = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200]], np.uint8)


def picture(width, height, seed, shade=0):
    """Smooth random colours, so that predictions form regions; `shade` moves the mean."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth // 2 + shade, 0, 255).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def params_of(block) -> Params:
    return Params.model_validate(block)


@pytest.fixture(scope="module")
def network():
    """The small params' network, filled by the fixtures' rule: its predictions vary within a picture."""
    return fill_by_rule(build_network(3, params_of(small_params()).network)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def depth_model():
    model = build_depth_model(**params_of(small_params()).depth_network.backbone(), pose_encoder=None)
    return fill_by_rule(model).eval().requires_grad_(False)


@pytest.fixture
def place(tmp_path, monkeypatch, network):
    """A working folder with params.yaml, classes.json and one run; the current directory."""
    folder = tmp_path / "ein Ort"
    (folder / "models").mkdir(parents=True)
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params()))
    classes = {"names": NAMES, "colours": COLOURS.tolist(), "void": 255}
    (folder / "data/prepared/classes.json").write_text(json.dumps(classes))
    save_state(network, folder / f"models/{RUN}.safetensors")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(infer.signal, "signal", lambda *_: None)
    yield folder
    logging.getLogger("semivid").handlers = []


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command; returns (exit code, stdout, lines of stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["infer", *map(str, arguments)])
        capsys.readouterr()
        try:
            infer.main()
            code = 0
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return call


def plain_logits(network, array, size=SIZE):
    """What the network says of one picture, at the picture's size: all by hand, one picture at a time."""
    small = array if array.shape[1::-1] == size else np.asarray(Image.fromarray(array).resize(size, Image.LANCZOS))
    logits = network(torch.from_numpy(small.astype(np.float32) / 255).permute(2, 0, 1)[None])
    return F.interpolate(logits, size=array.shape[:2], mode="bilinear", align_corners=False)[0]


def assert_labels(found, logits):
    """`found` is the arg-max, but for pixels whose two best logits differ by rounding errors."""
    expected = logits.argmax(0).numpy()
    assert found.dtype == np.uint8 and found.shape == expected.shape
    two = logits.topk(2, 0).values
    assert ((found == expected) | ((two[0] - two[1]) < 1e-4).numpy()).all()
    assert (found == expected).mean() > 0.99


def read(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


def film_frames(path):
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame[..., ::-1])
    return fps, frames


def write_video(path, pictures, fps=5.0):
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for array in pictures:
        writer.write(np.ascontiguousarray(array[..., ::-1]))
    writer.release()


def test_folder_of_pictures(place, cli, network):
    """Sizes of all kinds, spaces and letters of other languages; batches and the last, smaller one."""
    sizes = {"bild 2": (64, 32), "bild 10": (100, 70), "bild 1": (30, 21), "Größe_日本": (64, 32), "a.b": (33, 61)}
    arrays = {name: picture(*size, seed) for seed, (name, size) in enumerate(sizes.items())}
    for name, array in arrays.items():
        save(place / f"meine Bilder/{name}.png", array)
    (place / "meine Bilder/notes.txt").write_text("no picture")
    (place / "meine Bilder/.hidden.png").write_text("no picture")
    code, said, errors = cli(RUN, "meine Bilder", "--out", "das Ergebnis", "--batch-size", 2)
    assert code == 0 and said.startswith("5 pictures, ") and not [e for e in errors if "error" in e]
    out = place / "das Ergebnis"
    assert sorted(p.name for p in out.iterdir()) == [
        "colours", "inference.json", "labels", "overlays", "overlays.mp4"
    ]  # fmt: skip
    seen = set()
    for name, array in arrays.items():
        labels = read(out / f"labels/{name}.png")
        assert_labels(labels, plain_logits(network, array))
        seen |= set(np.unique(labels).tolist())
        np.testing.assert_array_equal(read(out / f"colours/{name}.png")[..., ::-1], COLOURS[labels])
        mixed = 0.45 * array + 0.55 * COLOURS[labels]
        assert np.abs(read(out / f"overlays/{name}.jpg")[..., ::-1] - mixed).mean() < 6  # JPEG
    assert seen == {0, 1, 2}
    assert sorted(p.stem for p in (out / "overlays").iterdir()) == sorted(sizes)
    record = json.loads((out / "inference.json").read_text())
    assert record["pictures"] == 5 and record["size"] == [64, 32] and record["classes"] == list(NAMES)
    assert record["weights"] == f"models/{RUN}.safetensors" and record["flip"] is False and record["depth"] is None
    assert record["fps"] == 10.0
    assert not list(place.glob(".*.tmp"))


def test_flip_averaging(place, cli, network):
    """--flip and evaluate.flip: mean of the logits of the picture and of its mirror image, mirrored back."""
    array = picture(64, 32, 3)
    save(place / "in/a.png", array)
    mirrored = plain_logits(network, np.ascontiguousarray(array[:, ::-1])).flip(-1)
    expected = (plain_logits(network, array) + mirrored) / 2
    assert (expected.argmax(0) != plain_logits(network, array).argmax(0)).any()
    assert cli(RUN, "in", "--flip", "--out", "o")[0] == 0
    assert_labels(read(place / "o/labels/a.png"), expected)
    block = small_params()
    block["evaluate"]["flip"] = True
    (place / "params.yaml").write_text(yaml.safe_dump(block))
    assert cli(RUN, "in", "--out", "p")[0] == 0
    np.testing.assert_array_equal(read(place / "p/labels/a.png"), read(place / "o/labels/a.png"))
    assert cli(RUN, "in", "--no-flip", "--out", "q")[0] == 0
    assert_labels(read(place / "q/labels/a.png"), plain_logits(network, array))


def test_film_of_pictures(place, cli):
    """As many frames as pictures, in the order of people, at --fps; readable again."""
    for n in (1, 2, 10, 9):
        save(place / f"in/f{n}.jpg", picture(64, 32, 0, shade=12 * n))
    assert cli(RUN, "in", "--out", "o", "--fps", 12.5, "--batch-size", 3)[0] == 0
    fps, frames = film_frames(place / "o/overlays.mp4")
    assert fps == pytest.approx(12.5) and len(frames) == 4 and frames[0].shape == (32, 64, 3)
    for n, frame in zip((1, 2, 9, 10), frames, strict=True):
        own = np.abs(read(place / f"o/overlays/f{n}.jpg")[..., ::-1].astype(int) - frame).mean()
        others = [
            np.abs(read(place / f"o/overlays/f{m}.jpg")[..., ::-1].astype(int) - frame).mean()
            for m in {1, 2, 9, 10} - {n}
        ]
        assert own < 8 and own < min(others)


def test_video(place, cli, network):
    """Frames are numbered from 0; the film has the video's frame rate and number of frames; an odd last row goes."""
    write_video(place / "drive – Mün.mp4", [picture(80, 50, 0, shade=20 * n) for n in range(5)], fps=7.0)
    assert cli(RUN, "drive – Mün.mp4", "--batch-size", 2)[0] == 0
    out = place / f"visualisation/inference/{RUN}/drive – Mün"
    fps, decoded = film_frames(place / "drive – Mün.mp4")
    assert fps == 7.0 and len(decoded) == 5
    assert sorted(p.name for p in (out / "labels").iterdir()) == [f"{n:06d}.png" for n in range(5)]
    for n, frame in enumerate(decoded):
        assert_labels(read(out / f"labels/{n:06d}.png"), plain_logits(network, np.ascontiguousarray(frame)))
    fps, frames = film_frames(out / "overlays.mp4")
    assert fps == 7.0 and len(frames) == 5 and frames[0].shape == (50, 80, 3)
    assert cli(RUN, "drive – Mün.mp4", "--fps", 3, "--write", "film", "--out", "o")[0] == 0
    assert sorted(p.name for p in (place / "o").iterdir()) == ["inference.json", "overlays.mp4"]
    fps, frames = film_frames(place / "o/overlays.mp4")
    assert fps == 3.0 and len(frames) == 5


def test_depth(place, cli, depth_model):
    """The depth model of the pipeline if there is one, else that of --depth; none at all if told so."""
    arrays = {"a": picture(64, 32, 1), "b": picture(90, 41, 2)}
    for name, array in arrays.items():
        save(place / f"in/{name}.png", array)
    save_parts(depth_model.parts(), place / "models/depth_finetune")
    assert cli(RUN, "in", "--out", "o")[0] == 0
    for name, array in arrays.items():
        small = torch.from_numpy(np.asarray(Image.fromarray(array).resize(SIZE, Image.LANCZOS)) / np.float32(255))
        near = depth_model(small.permute(2, 0, 1)[None], scales=(0,))["disp"][0]
        near = F.interpolate(near, size=array.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        expected = (near - near.min()) / (near.max() - near.min())
        found = read_disparity(place / f"o/disparity/{name}.png")
        assert found.std() > 0.05
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
        colours = read(place / f"o/depth/{name}.png")[..., ::-1].astype(int)
        assert colours.shape == array.shape
        order = np.argsort(found.ravel())
        brightness = colours.sum(-1).ravel()[order]
        assert (np.diff(brightness) >= -6).all() and brightness[-1] - brightness[0] > 400  # near is bright
    (place / "models/depth_finetune").rename(place / "other depth")
    assert cli(RUN, "in", "--out", "p", "--depth", "other depth", "--write", "depth")[0] == 0
    assert (place / "p/disparity/a.png").read_bytes() == (place / "o/disparity/a.png").read_bytes()
    assert sorted(p.name for p in (place / "p").iterdir()) == ["depth", "disparity", "inference.json"]
    assert cli(RUN, "in", "--out", "q")[0] == 0 and not (place / "q/depth").exists()
    (place / "other depth").rename(place / "models/depth_finetune")
    assert cli(RUN, "in", "--out", "r", "--depth", "none")[0] == 0 and not (place / "r/depth").exists()
    assert json.loads((place / "r/inference.json").read_text())["depth"] is None


def test_nothing_is_lost(place, cli):
    save(place / "in/a.png", picture(64, 32, 0))
    save(place / "in2/b.png", picture(64, 32, 1))
    (place / "mine/labels").mkdir(parents=True)
    (place / "mine/labels/precious.png").write_text("drawn by hand")
    for arguments in ((), ("--overwrite",)):  # a folder of labels that inference did not write
        code, _, errors = cli(RUN, "in", "--out", "mine", *arguments)
        assert code == 2 and errors[-1] == (
            "error: mine: holds labels, which inference did not write; give another --out"
        )
    assert (place / "mine/labels/precious.png").read_text() == "drawn by hand"
    code, _, errors = cli(RUN, "in", "--out", "params.yaml")
    assert code == 2 and errors[-1] == "error: params.yaml: a file; give a folder with --out"
    assert cli(RUN, "in", "--out", ".", "--overwrite")[0] == 2 and (place / "params.yaml").exists()
    assert cli(RUN, "in", "--out", "o")[0] == 0
    code, _, errors = cli(RUN, "in2", "--out", "o")
    assert code == 2 and errors[-1].startswith("error: o: holds results already; give --overwrite")
    assert (place / "o/labels/a.png").exists()
    code, _, errors = cli(RUN, "o/colours", "--out", "o", "--overwrite")
    assert code == 2 and "lies in the folder of the results" in errors[-1]
    code, _, errors = cli(RUN, "in2", "--out", "o", "--overwrite")
    assert code == 0 and errors[0] == "replacing the results in o"
    assert [p.name for p in (place / "o/labels").iterdir()] == ["b.png"]


def test_a_failure_leaves_the_earlier_results(place, cli, monkeypatch):
    for n in range(3):
        save(place / f"in/{n}.png", picture(64, 32, n))
    assert cli(RUN, "in", "--out", "o")[0] == 0
    before = {p: p.read_bytes() for p in (place / "o").rglob("*") if p.is_file()}

    def broken(self, frame):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(Film, "write", broken)
    code, _, errors = cli(RUN, "in", "--out", "o", "--overwrite")
    assert code == 2 and errors[-1].startswith("error: somewhere: No space left on device")
    assert {p: p.read_bytes() for p in (place / "o").rglob("*") if p.is_file()} == before
    assert not list(place.glob(".*.tmp"))


def test_unreadable_pictures(place, cli, network):
    """Each is told; the others are done all the same, and the exit code says that something was left out."""
    array = picture(64, 32, 0)
    save(place / "in/good.png", array)
    content = (place / "in/good.png").read_bytes()
    (place / "in/cut.png").write_bytes(content[: len(content) // 2])
    (place / "in/text.jpg").write_text("no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(place / "in/deep.png")
    code, said, errors = cli(RUN, "in", "--out", "o")
    assert code == 2 and said.startswith("1 pictures, ")
    assert [e.split(":")[1].strip() for e in errors if e.startswith("error")] == [
        "in/cut.png", "in/deep.png", "in/text.jpg"
    ]  # fmt: skip
    assert_labels(read(place / "o/labels/good.png"), plain_logits(network, array))
    assert len(json.loads((place / "o/inference.json").read_text())["left_out"]) == 3
    (place / "in/good.png").unlink()
    code, _, errors = cli(RUN, "in", "--out", "p")
    assert code == 2 and len(errors) == 3 and not (place / "p").exists()


def test_refusals(place, cli):
    """One line each, before any work."""
    save(place / "in/a.png", picture(64, 32, 0))
    save(place / "twice/a.png", picture(64, 32, 0))
    save(place / "twice/a.jpg", picture(64, 32, 0))
    save(place / "above/below/a.png", picture(64, 32, 0))
    (place / "empty").mkdir()
    (place / "broken.mp4").write_bytes(b"\0\0\0 ftypisom" + b"x" * 500)
    (place / "two").mkdir()
    for name in ("a.pth", "b.pth"):
        (place / "two" / name).touch()
    no_film = "cannot be read as a picture or a video; convert it (ffmpeg -i IN out.mp4), or give a folder of pictures"
    lines = {
        ("sup-3-7", "in"): f"models/sup-3-7.safetensors: no such run, and sup-3-7 is no weights file; there are {RUN}",
        ("two", "in"): "two: a folder with 2 weights files; give the path of one file",
        (RUN, "nowhere"): "nowhere: no such file or folder; give a folder of pictures, a picture or a video",
        (RUN, "empty"): "empty: holds no pictures (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff); correct the path",
        (RUN, "above"): "above: holds no pictures itself, but above/below does; give that folder",
        (RUN, "twice"): "twice/a.png and a.jpg would have results of one name; rename one, or give folders of "
        "their own",
        (RUN, "broken.mp4"): f"broken.mp4: {no_film}",
        (RUN, "params.yaml"): f"params.yaml: {no_film}",
        (RUN, "in", "--depth", "no"): "no: no such file or folder; give a folder or zip of encoder, depth, ...",
        (RUN, "in", "--classes", "x.json"): "x.json: no such file; give a classes.json, or a file of presets/classes",
        (RUN, "in", "--write", "labels", "depth"): "--write depth: there is no models/depth_finetune; give --depth, or "
        "leave depth out",
        (RUN, "in/a.png", "--write", "film"): "--write film: a single picture makes none; leave film out",
        (RUN, "in", "--params", "p.yaml"): "p.yaml: no such file; run from the repository root or `make preset "
        "NAME=street`",
    }
    for arguments, line in lines.items():
        code, said, errors = cli(*arguments)
        assert (code, said, errors) == (2, "", [f"error: {line}"]), arguments
    assert not (place / "visualisation").exists()
    for bad in (("--fps", "0"), ("--fps", "nan"), ("--batch-size", "1.5"), ("--write", "everything")):
        assert cli(RUN, "in", *bad)[0] == 2


def test_single_picture(place, cli, network):
    array = picture(40, 40, 5)
    save(place / "ein Bild.bmp", array)
    assert cli(RUN, "ein Bild.bmp", "--out", "o")[0] == 0
    assert sorted(p.name for p in (place / "o").iterdir()) == ["colours", "inference.json", "labels", "overlays"]
    assert_labels(read(place / "o/labels/ein Bild.png"), plain_logits(network, array))


def test_number_of_classes(place, cli):
    """A network of other classes than classes.json's is told so, in one line; its own list makes it work."""
    save(place / "in/a.png", picture(64, 32, 0))
    other = fill_by_rule(build_network(5, params_of(small_params()).network))
    save_state(other, place / "models/supervised-random-4-7.safetensors")
    code, _, errors = cli("supervised-random-4-7", "in", "--out", "o")
    assert code == 2 and errors == [
        "error: models/supervised-random-4-7.safetensors: a network of 5 classes, but 3 are listed (class 0, class 1, "
        "Straße, ...); give its own list with --classes (a classes.json, or a file of presets/classes)"
    ]
    listed = [{"name": f"n{i}", "colour": [i, 2 * i, 3 * i], "ids": [i]} for i in range(5)]
    (place / "five.yaml").write_text(yaml.safe_dump(listed))
    assert cli("supervised-random-4-7", "in", "--out", "o", "--classes", "five.yaml")[0] == 0
    labels, colours = read(place / "o/labels/a.png"), read(place / "o/colours/a.png")[..., ::-1]
    np.testing.assert_array_equal(colours, labels[..., None] * np.array([1, 2, 3]))
    block = small_params()
    block["network"]["channels"] = [4, 4, 8, 8, 16]  # a difference that no number of classes explains
    (place / "wide.yaml").write_text(yaml.safe_dump(block))
    code, _, errors = cli(RUN, "in", "--out", "p", "--params", "wide.yaml")
    assert code == 2 and len(errors) == 1 and "does not fit this network" in errors[0]


def test_imported_checkpoint(place, cli, network, tmp_path):
    """The reference's file of a whole model: the network's own parts are taken, others are left alone."""
    array = picture(64, 32, 4)
    save(place / "in/a.png", array)
    state = {f"models.{key}": value for key, value in network.state_dict().items()}
    state |= {"models.pose.net.0.weight": torch.zeros(2), "models.depth.decoder.0.weight": torch.zeros(3)}
    folder = place / "published model"
    folder.mkdir()
    torch.save({"model_state": state, "epoch": 3}, folder / "best_model_without_opt.pkl")
    assert cli(folder, "in", "--out", "o")[0] == 0
    assert_labels(read(place / "o/labels/a.png"), plain_logits(network, array))
    save_state(network, place / "own.safetensors")
    assert cli("own.safetensors", "in", "--out", "p")[0] == 0
    assert (place / "p/labels/a.png").read_bytes() == (place / "o/labels/a.png").read_bytes()
    rest = {key: value for key, value in state.items() if not key.startswith("models.segmentation")}
    torch.save({"model_state": rest}, place / "half.pkl")
    code, _, errors = cli("half.pkl", "in", "--out", "q")
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith("error: half.pkl: holds no part 'segmentation' (keys models.segmentation.*)")
    (place / "noise.pth").write_bytes(b"noise")
    code, _, errors = cli("noise.pth", "in", "--out", "q")
    assert code == 2 and len(errors) == 1 and "cannot be read as a weights file" in errors[0]


def test_published_fcn8s_needs_its_input(place):
    block = small_params()
    block["network"] = {"architecture": "fcn8s", "weights": "none", "input": "imagenet"}
    torch.save({"conv_block1.0.weight": torch.zeros(64, 3, 3, 3)}, place / "fcn.pkl")
    with pytest.raises(UserError, match=r"fcn.pkl: a published FCN-8s .* set network.input to reference"):
        open_network(place / "fcn.pkl", params_of(block), read_classes(Path("data/prepared/classes.json")))


def test_labels_at():
    """Class by class is the same as all logits at once, ties included."""
    for size in ((40, 90), (9, 5), (13, 21)):
        logits = torch.randn(7, 13, 21, generator=torch.Generator().manual_seed(1))
        expected = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
        np.testing.assert_array_equal(labels_at(logits, size), expected.numpy())
    # nearest labels would be another thing
    nearest = F.interpolate(logits.argmax(0)[None, None].float(), (40, 90))[0, 0]
    assert (labels_at(logits, (40, 90)) != nearest.numpy()).mean() > 0.05
    assert (labels_at(torch.zeros(3, 2, 2), (4, 4)) == 0).all()


def test_read_picture(tmp_path):
    array = picture(20, 10, 0)
    for name, mode in (("rgba.png", "RGBA"), ("grey.png", "L"), ("palette.png", "P"), ("cmyk.jpg", "CMYK")):
        Image.fromarray(array).convert(mode).save(tmp_path / name)
        found = read_picture(tmp_path / name)
        assert found.shape == (10, 20, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(read_picture(tmp_path / "rgba.png"), array)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), np.rot90(array, -1))


def test_film_sizes(tmp_path):
    """Odd sides lose their last row and column; pictures of another shape stand in black."""
    path = tmp_path / "f.mp4"
    with Film(path, 29.97) as film:
        film.write(np.full((33, 47, 3), 200, np.uint8))
        film.write(np.full((64, 46, 3), 200, np.uint8))
        film.write(np.full((5, 200, 3), 200, np.uint8))
    fps, frames = film_frames(path)
    assert fps == pytest.approx(29.97, abs=1e-3) and [f.shape for f in frames] == [(32, 46, 3)] * 3
    assert frames[0].min() > 180
    assert frames[1][:, 23].min() > 150 and frames[1][:, :8].max() < 40 and frames[1][:, -8:].max() < 40
    assert frames[2][:12].max() < 40 and frames[2][-12:].max() < 40
    odd = picture(47, 33, 0)
    np.testing.assert_array_equal(on_canvas(odd, (46, 32)), odd[:32, :46])
    fitted = on_canvas(np.full((64, 46, 3), 9, np.uint8), (46, 32))
    assert (fitted.sum(-1) > 0).sum() == 32 * 23 and (fitted[:, 11:34] == 9).all()


def test_film_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write a film of 8x4 pixels at 5 frames/s; leave `film` out$"):
        Film(tmp_path / "no folder/f.mp4", 5.0).write(np.zeros((4, 8, 3), np.uint8))


def test_sources(tmp_path, caplog):
    for name in ("b10.png", "b9.PNG", "B.jpeg", "a.webp"):
        save(tmp_path / "in" / name, picture(8, 6, 0))
    assert [name for name, _ in Pictures(tmp_path / "in")] == ["B", "a", "b9", "b10"]
    write_video(tmp_path / "v.mp4", [picture(16, 16, n) for n in range(4)])
    video = Video(tmp_path / "v.mp4")
    video.total = 6  # as the head of a file that was cut off says
    with caplog.at_level(logging.WARNING, logger="semivid"):
        assert [name for name, _ in video] == ["000000", "000001", "000002", "000003"]
    assert "v.mp4: 4 of about 6 frames could be decoded" in caplog.text and not video.faults


def test_multitask_network(place, cli, monkeypatch, depth_model):
    """Labels and depth from one published multi-task file; the pipeline's depth model steps back."""
    multitask = pytest.importorskip("semivid.models.multitask", reason="no multi-task network in this checkout")
    body = dict(encoder="tf_efficientnet_lite0", channels=[4, 4, 8, 8, 8], batch_norm=True, aspp=[])
    net = fill_by_rule(multitask.build_multitask_net(3, **body, pose_encoder=None)).eval().requires_grad_(False)
    state = {f"models.{key}": value for key, value in net.state_dict().items()}
    torch.save({"model_state": state | {"models.pose.net.0.weight": torch.zeros(2)}}, place / "mtl.pkl")
    from semivid.evaluation import segmenter

    built = multitask.build_multitask_net(3, **body, pose_encoder="tf_efficientnet_lite0")
    monkeypatch.setattr(segmenter, "build_network", lambda *_, **__: built)
    save_parts(depth_model.parts(), place / "models/depth_finetune")
    array = picture(70, 40, 0)
    save(place / "in/a.png", array)
    code, _, errors = cli("mtl.pkl", "in", "--out", "o")
    assert code == 0, errors
    assert_labels(read(place / "o/labels/a.png"), plain_logits(net, array))
    small = torch.from_numpy(np.asarray(Image.fromarray(array).resize(SIZE, Image.LANCZOS)) / np.float32(255))
    near = net.outputs(small.permute(2, 0, 1)[None], scales=(0,)).disp[0]
    near = F.interpolate(near, size=(40, 70), mode="bilinear", align_corners=False)[0, 0]
    expected = ((near - near.min()) / (near.max() - near.min())).numpy()
    np.testing.assert_allclose(read_disparity(place / "o/disparity/a.png"), expected, atol=1e-3)
    assert json.loads((place / "o/inference.json").read_text())["depth"] == "the network's own"
    assert cli("mtl.pkl", "in", "--out", "p", "--depth", "models/depth_finetune")[0] == 0
    assert json.loads((place / "p/inference.json").read_text())["depth"] == "models/depth_finetune"
    assert (place / "p/disparity/a.png").read_bytes() != (place / "o/disparity/a.png").read_bytes()


def test_bad_input_is_told_at_once(place):
    """A process of its own: nothing but our line on stderr (FFmpeg has lines of its own), and torch not imported."""
    (place / "broken.mp4").write_bytes(b"\0\0\0 ftypisom" + b"x" * 500)
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['infer', {RUN!r}, 'broken.mp4']\n"
        "try: runpy.run_module('semivid.infer', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(infer.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "False\n", done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: broken.mp4: cannot be read")
