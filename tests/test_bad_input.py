"""What users do wrong, end to end: the stage's command ends with code 2, one line per fault, and nothing lost.

A table of cases: each begins with a good data set and its outputs, breaks one thing, and runs a stage. What single
functions refuse, and with which words, is tested beside them (test_readers, test_prepare, test_index, test_params,
test_checkpoints, test_selection, test_training).
"""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from semivid.data.index import read_index
from semivid.data.prepare import Bad, _load
from semivid.errors import UserError
from semivid.models import checkpoints
from semivid.training.resume import load_resume
from small import small_params, write_prepared

ROOT = Path(__file__).resolve().parent.parent
SIZE = (64, 32)
PATIENCE = 300  # seconds for one stage on a machine that does other things
NOT_OUTPUTS = ("logs", ".work", "stderr.txt")

# The stage scripts as they are, each in a process of its own with its own exit code and standard error. Only the
# libraries are loaded once: importing torch takes longer than most of these stages.
SERVER = """
import json, os, runpy, sys, traceback
import cv2, dvclive, numpy, PIL.Image, pydantic, ruamel.yaml, safetensors.torch, timm, torch
import semivid.data.prepare, semivid.depth.run, semivid.pipeline.stage, semivid.training.loop
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        for number in (1, 2):
            os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        exec(job["before"])
        sys.argv, code = job["argv"], 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "SEMIVID_WORKERS": "2"},
    )
    yield process
    process.stdin.close()
    process.wait(PATIENCE)


def picture(seed, size=SIZE):
    """Noise, smooth enough for JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def ids(value=1, size=SIZE):
    """A mask of two halves: class 1, and `value`."""
    array = np.full(size[::-1], 1, np.uint8)
    array[:, : size[0] // 2] = value
    return Image.fromarray(array)


class Place:
    """A working folder with a small data set of the user's own: 4 frames in train, 3 in val, all with masks."""

    def __init__(self, folder: Path, server) -> None:
        self.folder, self._server = folder, server
        self.settings = small_params()
        self.settings["data"] |= {
            "name": "own",
            "source": "folder",
            "frames": {"train": "frames/train", "val": "frames/val"},
            "masks": {"train": "masks/train", "val": "masks/val"},
            "camera": "camera.json",
            "classes": "classes.yaml",
        }
        self.params()

    def make_data(self):
        for split, count in (("train", 4), ("val", 3)):
            for i in range(count):
                self.save(f"frames/{split}/{split[0]}/{i}.png", picture(10 * count + i))
                self.save(f"masks/{split}/{split[0]}/{i}.png", ids(2))
        self.write("camera.json", '{"fov_x": 60}')
        self.write(
            "classes.yaml",
            "- {name: a, colour: [9, 0, 0], ids: [1]}\n- {name: b, colour: [0, 9, 0], ids: [2]}\n- void: [0]\n",
        )
        assert self.run("frames")[0] == self.run("masks")[0] == 0

    def path(self, name) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name, image, **options):
        image.save(self.path(name), **options)

    def write(self, name, content):
        self.path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def params(self, **changes):
        """Set dotted keys (with __ for the dot) of params.yaml."""
        for key, value in changes.items():
            *parents, last = key.split("__")
            block = self.settings
            for part in parents:
                block = block[part]
            block[last] = value
        self.write("params.yaml", yaml.safe_dump(self.settings))

    def run(self, stage, *arguments, before=""):
        """(exit code, lines of standard error)."""
        log = self.folder / "stderr.txt"
        log.unlink(missing_ok=True)
        argv = [str(ROOT / f"stages/{stage}.py"), *map(str, arguments)]
        print(
            json.dumps({"folder": str(self.folder), "argv": argv, "before": before}),
            file=self._server.stdin,
            flush=True,
        )
        code = int(self._server.stdout.readline())
        return code, log.read_text(encoding="utf-8").splitlines()

    def tree(self):
        """Every file but logs and work files, with its content."""
        return {
            os.path.relpath(os.path.join(top, name), self.folder): Path(top, name).read_bytes()
            for top, folders, names in os.walk(os.fsencode(self.folder).decode("utf-8", "surrogateescape"))
            for name in names
            if os.path.exists(os.path.join(top, name))
            and Path(os.path.relpath(os.path.join(top, name), self.folder)).parts[0] not in NOT_OUTPUTS
        }

    def refused(self, stage, wanted, *arguments, before=""):
        """The stage must end with code 2 and one printable line for each of `wanted` (texts that it holds)."""
        old = self.tree()
        code, lines = self.run(stage, *arguments, before=before)
        errors = [line for line in lines if "error: " in line]
        assert code == 2, lines
        assert not [line for line in lines if not line.isprintable() or "Traceback" in line or "Warning" in line]
        for want in wanted:
            parts = (want,) if isinstance(want, str) else want
            assert sum(all(p in line for p in parts) for line in errors) == 1, (want, errors)
        assert len(errors) == len(wanted), errors
        assert self.tree() == old, "a refused stage has changed files"
        return errors


@pytest.fixture
def place(tmp_path, server):
    """Good data, prepared by the stages frames and masks."""
    place = Place(tmp_path, server)
    place.make_data()
    return place


# ---- pictures


def test_every_bad_frame_of_all_splits_is_one_line_of_one_report(place):
    for split in ("train", "val"):
        place.write(f"frames/{split}/{split[0]}/empty.png", b"")
    good = place.path("frames/train/t/0.png").read_bytes()
    place.write("frames/train/t/cut.png", good[: len(good) // 2])
    place.write("frames/train/t/flipped.png", good[:200] + bytes([good[200] ^ 255]) + good[201:])
    head = b"IHDR" + (60000).to_bytes(4) * 2 + good[24:29]
    place.write("frames/train/t/bomb.png", good[:12] + head + zlib.crc32(head).to_bytes(4) + good[33:])
    place.save("frames/train/t/half.jpg", picture(1))
    place.write("frames/train/t/half.jpg", place.path("frames/train/t/half.jpg").read_bytes()[:-300])
    place.write("frames/val/v/page.jpg", "<html>not found</html>")
    place.save("frames/train/t/wide.png", picture(2, (80, 32)))
    place.save("frames/train/t/deep.png", Image.fromarray(np.zeros(SIZE[::-1], np.uint16)))
    place.path("frames/val/v/gone.png").symlink_to("nowhere.png")
    place.save("frames/val/v/new\nline.png", picture(3))
    place.save(b"frames/val/v/caf\xe9.png".decode("utf-8", "surrogateescape"), picture(4))
    place.write("camera.json", '{"fov": 60}')
    lines = place.refused(
        "frames",
        [
            "10 of 17 frames cannot be used; replace or remove these files:",
            "frames/train/t/empty.png: an empty file",
            "frames/val/v/empty.png: an empty file",
            "frames/train/t/cut.png: ",
            "frames/train/t/flipped.png: ",
            ("frames/train/t/bomb.png: ", "3600000000 pixels"),
            "frames/train/t/half.jpg: image file is truncated",
            "frames/val/v/page.jpg: not a picture",
            "frames/train/t/wide.png: 80x32, but its sequence is 64x32",
            "frames/train/t/deep.png: one channel of 16 or more bits; save it with 8 bits per channel",
            "frames/val/v/gone.png: No such file",
            ("frames/val/v/new\\nline.png: its name holds a line break", "; rename it"),
            ("frames/val/v/caf\\udce9.png: its name holds", "broken UTF-8; rename it"),
            ("camera.json is no camera file", "fov_x"),
        ],
    )
    assert all(line.startswith("[frames] error: ") for line in lines)


def test_odd_frames_that_work(place):
    """Whatever a viewer shows as a picture is taken as it is shown: upright, opaque, RGB."""
    red_left = Image.new("RGB", SIZE, (0, 0, 255))
    red_left.paste((255, 0, 0), (0, 0, SIZE[0] // 2, SIZE[1]))
    turned = red_left.transpose(Image.Transpose.ROTATE_90)  # as a camera held on its side stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    half = red_left.convert("RGBA")
    half.putalpha(128)
    folder = "frames/train/odd ä 日本"
    place.save(f"{folder}/palette.png", red_left.convert("P", palette=Image.Palette.ADAPTIVE))
    place.save(f"{folder}/palette with alpha.png", half.quantize())
    place.save(f"{folder}/alpha.png", half)
    place.save(f"{folder}/cmyk.jpg", red_left.convert("CMYK"), quality=98)
    place.save(f"{folder}/turned, 'of' \"a\" phone.jpg", turned, quality=98, exif=exif)
    same = red_left.transpose(Image.Transpose.ROTATE_180)  # has the prepared size, but must not be copied as it is
    exif[0x0112] = 3
    place.save(f"{folder}/upside-down.jpg", same, quality=98, exif=exif)
    place.save(f"{folder}/wrong-suffix.png", red_left, format="JPEG", quality=98)
    grey = {"grey": red_left.convert("L"), "grey-alpha": half.convert("LA"), "black-white": red_left.convert("1")}
    for name, image in grey.items():
        place.save(f"{folder}/{name}.png", image)
    for name in ("turned, 'of' \"a\" phone", "alpha"):
        place.save(f"masks/train/odd ä 日本/{name}.png", ids(2))
    for format in ("png", "jpg"):
        place.params(frames__format=format)
        code, lines = place.run("frames")
        assert code == 0 and not [line for line in lines if "error" in line or "Warning" in line], lines
        index = read_index(place.path("data/prepared/frames.csv"))
        assert len(index) == 7 + 10 and "odd ä 日本_turned, 'of' \"a\" phone" in index.by_name
        for frame in index.frames:
            with Image.open(frame.image) as prepared:
                assert (prepared.mode, prepared.size, 0x0112 in prepared.getexif()) == ("RGB", SIZE, False)
                left, right = (np.array(prepared)[16, x].astype(int) for x in (8, 56))
            name = frame.frame.rpartition("_")[2]
            if frame.sequence == "odd ä 日本" and name not in grey:
                assert abs(left - [255, 0, 0]).max() < 12 and abs(right - [0, 0, 255]).max() < 12, (name, left, right)
    assert place.run("masks")[0] == 0
    labelled = {f.frame for f in read_index(place.path("data/prepared/index.csv")).select("train", True)}
    assert "odd ä 日本_turned, 'of' \"a\" phone" in labelled


def test_every_bad_mask_is_one_line_of_one_report(place):
    for i in range(4, 12):
        place.save(f"frames/train/t/{i}.png", picture(90 + i))
    assert place.run("frames")[0] == 0
    masks = "masks/train/t"
    place.write(f"{masks}/4.png", b"")
    good = place.path(f"{masks}/0.png").read_bytes()
    place.write(f"{masks}/5.png", good[:60])
    place.save(f"{masks}/6.png", ids(size=(32, 32)))
    place.save(f"{masks}/7.png", ids(9))
    place.save(f"{masks}/8.png", picture(1))
    place.save(f"{masks}/9.jpg", ids(2))
    place.save(f"{masks}/10.png", Image.fromarray(np.full(SIZE[::-1], 26001, np.uint16)))
    place.save(f"{masks}/11.png", ids(0).point(lambda v: 0))
    place.save("masks/val/v/0.png", ids().convert("CMYK"), format="TIFF")
    place.refused(
        "masks",
        [
            ("9 of 15 masks cannot be used", "classes.yaml", "- void: [...]"),
            "t/4.png: an empty file",
            "t/5.png: ",
            "t/6.png: 32x32, but its frame is 64x32",
            "t/7.png: ids that the classes file does not list: 9 (1024 pixels)",
            "t/8.png: a colour picture, but the classes file lists ids",
            "t/9.jpg: a JPEG picture, whose compression changes values; save it as PNG",
            "t/10.png: ids that the classes file does not list: 26001 (2048 pixels)",
            "t/11.png: no pixel belongs to any class",
            "v/0.png: mode CMYK, but the classes file lists ids",
        ],
    )


def test_odd_masks_that_work(place):
    mask = ids(2)
    palette = mask.copy()
    palette.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))  # shown in colours, holds ids
    deep = Image.fromarray(np.asarray(mask).astype(np.uint16))
    odd = {"palette": palette, "deep": deep, "rgb": mask.convert("RGB"), "alpha": mask.convert("LA")}
    odd["large"] = mask.resize((128, 64), Image.Resampling.NEAREST)
    clear = mask.convert("RGBA")
    alpha = np.full(SIZE[::-1], 255, np.uint8)
    alpha[:, -16:] = 0
    clear.putalpha(Image.fromarray(alpha))
    odd["clear"] = clear
    for i, (name, image) in enumerate(odd.items()):
        place.save(f"frames/train/t/{name}.png", picture(70 + i))
        place.save(f"masks/train/t/{name}.png", image)
    assert place.run("frames")[0] == 0
    code, lines = place.run("masks")
    assert code == 0, lines
    index = read_index(place.path("data/prepared/index.csv"))
    wanted = np.asarray(mask) - 1
    for name in odd:
        with Image.open(index.by_name[f"t_{name}"].label) as label:
            got = np.asarray(label)
        expected = np.where(alpha, wanted, 255) if name == "clear" else wanted
        assert np.array_equal(got, expected), name


def test_no_broken_file_gets_past_the_reader(tmp_path):
    """Pillow raises errors of many kinds for broken files; each must become a reason."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rng, bad = random.Random(0), 0
    warnings.simplefilter("ignore")  # as the stages do
    for suffix, options in (("png", {}), ("jpg", {"exif": exif}), ("png", {"pnginfo": None, "exif": exif})):
        picture(1).save(tmp_path / f"good.{suffix}", **options)
        content = (tmp_path / f"good.{suffix}").read_bytes()
        for _ in range(150):
            broken = bytearray(content)
            for _ in range(rng.choice([1, 4, 30])):
                broken[rng.randrange(len(broken) if rng.random() < 0.5 else 120)] = rng.randrange(256)
            path = tmp_path / f"broken.{suffix}"
            path.write_bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
            result = _load(path)
            if isinstance(result, Bad):
                bad += 1
                assert result.reason
    assert bad > 200


# ---- folders and splits: (what to break, stage, lines)


def _rename_masks(place):
    for path in (place.folder / "masks/val/v").iterdir():
        path.rename(path.with_name(f"x{path.name}"))


def _copy_to_val(place):
    shutil.copy(place.path("frames/train/t/2.png"), place.path("frames/val/v/other name.png"))


def _clear(folder):
    return lambda place: [p.unlink() for p in (place.folder / folder).rglob("*") if p.is_file()]


def _set(**changes):
    return lambda place: place.params(**changes)


def _write(name, content):
    return lambda place: place.write(name, content)


def _with_unlabelled(place):
    for split in ("train", "val"):
        _clear(f"masks/{split}")(place)
    assert place.run("masks")[0] == 0


DATA_CASES = {
    "no data root": (
        _set(data__frames={"train": "gone/train", "val": "gone/val"}, data__camera="gone/camera.json"),
        "frames",
        [
            "data.frames.train: no folder gone/train; correct the path",
            "data.frames.val: no folder gone/val; correct the path",
            ("data.camera: no file or folder gone/camera.json", "correct the path"),
        ],
    ),
    "no mask folder": (
        _set(data__masks={"train": "masks/train", "val": "gone"}),
        "masks",
        ["data.masks.val: no folder gone; correct the path"],
    ),
    "empty split": (
        _clear("frames/val"),
        "frames",
        [("data.frames.val: no frames (.jpg, .jpeg, .png) in frames/val", "correct the path")],
    ),
    "held-out part without a frame": (
        _set(data__frames={"train": "frames/train", "val": "frames/train"}, data__holdout=0.01),
        "frames",
        [("data.holdout: 0.01", "no frame for val", "change it")],
    ),
    "val inside train": (
        _set(data__frames={"train": "frames", "val": "frames/val"}),
        "frames",
        [("data.frames.val: frames/val lies in the folder of train", "beside each other")],
    ),
    "a frame of train copied to val": (
        _copy_to_val,
        "frames",
        [
            "1 of 8 frames cannot be used; replace or remove these files:",
            "frames/val/v/other name.png: the same picture as frames/train/t/2.png of train",
        ],
    ),
    "one video, two names for a frame": (
        lambda place: place.save("frames/train/t/2.jpg", picture(5)),
        "frames",
        ["data.frames.train: 2 frames are called t_2 (frames/train/t/2.jpg, frames/train/t/2.png); rename or remove"],
    ),
    "files of another layout": (
        _set(data__source="cityscapes"),
        "frames",
        [
            ("data.frames.train: none of the 4 pictures in frames/train is called {city}", "data.source"),
            ("data.frames.val: none of the 3 pictures", "data.source"),
        ],
    ),
    "camera of another picture size": (
        _write("camera.json", '{"intrinsic": {"fx": 9, "fy": 9, "u0": 9, "v0": 9}, "width": 50, "height": 50}'),
        "frames",
        [("camera.json is for 50x50, but the frames are 64x32", "give the width and height")],
    ),
    "masks without a frame": (
        _rename_masks,
        "masks",
        [("data.masks.val: no mask in masks/val belongs to a frame of val (such as v_0)", "correct the path")],
    ),
    "frames changed behind the index": (
        lambda place: place.save("frames/val/v/9.png", picture(6)),
        "masks",
        ["data/prepared/frames.csv does not belong to the raw data"],
    ),
    "no classes file": (
        _set(data__classes="gone.yaml"),
        "masks",
        [("data.classes: cannot read gone.yaml", "presets/classes")],
    ),
    "a class given twice": (
        _write("classes.yaml", "- {name: a, colour: [9, 0, 0], ids: [1], ids: [2]}\n"),
        "masks",
        [("classes.yaml is not YAML: line 1, column 42: found duplicate key", "correct it")],
    ),
    "no masks where a selection needs them": (
        _with_unlabelled,
        "select_names --criterion random --seed 7",
        [("no training frame has a mask", "check `data.masks`")],
    ),
    "no published list for this data": (
        lambda place: place.path("splits/published/x").touch(),
        "select_names --criterion published_ds --seed 7",
        ["no published list own_ds_seed42.txt in splits/published"],
    ),
    "a list with bytes that are no text": (
        lambda place: [
            place.params(data__source="camvid_original", data__frames={"train": "frames/train", "val": "frames/val"}),
            place.write("splits/camvid_train.txt", b"\xff\xfe"),
            place.write("splits/camvid_val.txt", "0\n"),
        ],
        "frames",
        ["splits/camvid_train.txt: not a text file in UTF-8"],
    ),
    "a list that names an unknown frame, and one of both splits": (
        lambda place: [
            place.params(data__source="camvid_original", data__frames={"train": "all", "val": "all"}),
            *[place.save(f"all/s_{i}.png", picture(40 + i)) for i in range(4)],
            place.write("splits/camvid_train.txt", "s_0\ns_1\ns_8\n"),
            place.write("splits/camvid_val.txt", "s_1\ns_2\n"),
        ],
        "frames",
        [
            "splits/camvid_train.txt: s_8 is not in all",
            "the frame s_1 is in two splits: train (all/s_1.png), val (all/s_1.png); keep it in one of them",
        ],
    ),
}


@pytest.mark.parametrize("case", DATA_CASES)
def test_folders_splits_and_lists(place, case):
    change, command, wanted = DATA_CASES[case]
    change(place)
    stage, *arguments = command.split()
    place.refused(stage, wanted, *arguments)


def test_data_without_any_mask_can_be_prepared(place):
    """For "which frames shall I label next"; an empty folder says that there are none."""
    _with_unlabelled(place)
    assert read_index(place.path("data/prepared/index.csv")).select(labelled=True) == []


def test_a_plain_process_says_the_same(place):
    """The server above leaves nothing out: the command in a shell of its own, with the same words."""
    place.params(data__camera="gone.json")
    (line,) = place.refused("frames", ["data.camera: no file or folder gone.json"])
    done = subprocess.run(
        [sys.executable, str(ROOT / "stages/frames.py")],
        cwd=place.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, line + "\n", "")


# ---- params.yaml: (change of the text or of keys, lines)


def _replace(old, new, count=1):
    def change(place):
        text = yaml.safe_dump(small_params())
        assert old in text
        place.write("params.yaml", text.replace(old, new, count))

    return change


def _append(text):
    return lambda place: place.write("params.yaml", yaml.safe_dump(small_params()).encode() + text)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
PARAMS_CASES = {
    "no file": (lambda place: place.path("params.yaml").unlink(), ["params.yaml: no such file; run from the repos"]),
    "misspelt key": (_replace("evaluate_every:", "evalute_every:"), [
        "unknown key `train.evalute_every`; did you mean `evaluate_every`?", "key `train.evaluate_every` is missing"
    ]),
    "misspelt value": (_replace("optimizer: adamw", "optimizer: adam_w"), [
        ("`methods.classmix.optimizer`", "'sgd', 'adam' or 'adamw'", "did you mean `adamw`?")
    ]),
    "misspelt method": (_set(table3__method="supervized"), ["`table3.method`: no method 'supervized'"]),
    "number as a text": (_replace("    lr: 0.001", '    lr: "1e-3"'), [
        (".lr`: Input should be a valid number", "found '1e-3'", "without quotes")
    ]),
    "yes and no": (_replace("batch_norm: true", "batch_norm: on"), ["must be true or false (found 'on')"]),
    "true for a number": (_set(train__iterations=True), ["`train.iterations`: Input should be a valid integer"]),
    "a date for a name": (_replace("name: street", "name: 2024-01-01"), [("`data.name`: must be a text", "quotes")]),
    "key without quotes": (_replace("'25': 43", "25: 43"), [('`table3.list_seeds.25`', 'write "25" in quotes')]),
    "a list for a block": (_set(evaluate=[1]), ["`evaluate`: must be a block of keys (found [1]); indent"]),
    "empty path": (_set(data__camera=""), ["`data.camera`: must be a text of one line, not empty (found '')"]),
    "path with a line break": (_set(data__camera="a\nb"), [r"`data.camera`: must be a text of one line"]),
    "out of range": (_set(train__flip=1.5, train__threads=0, render__seed=2**32, frames__size=[99999, 32]), [
        "`train.flip`", "`train.threads`", "`render.seed`", "`frames.size.0`"
    ]),
    "endless numbers": (_replace("evaluate_every: 2", f"evaluate_every: 1{'0' * 5000}"), [
        "params.yaml: "
    ]),
    "duplicate key": (_append(b"train: {}\n"), [("not valid YAML: line ", 'duplicate key "train"')]),
    "duplicate merge key": (_append(b"a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n"), ["not valid YAML"]),
    "merge of no block": (_append(b"a: &a [1]\nc:\n  <<: *a\n"), ["not valid YAML"]),
    "unknown anchor": (_append(b"a: *nowhere\n"), [("not valid YAML", "undefined alias")]),
    "an anchor's own block": (_append(b"base: &base {b: 1}\n"), ["unknown key `base`"]),
    "bomb of aliases": (_append(BOMB.encode()), [f"unknown key `a{i}`" for i in range(30)]),
    "bomb in a value": (_replace("head_channels: 48", "head_channels:\n    - &b0 [1, 1]\n" + "".join(
        f"    - &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 30))), ["`network.head_channels`"]),
    "a list within itself": (_replace("head_channels: 48", "head_channels: &c [*c]"), ["`network.head_channels`"]),
    "tab": (_replace("  evaluate_every", "\tevaluate_every"), [("not valid YAML: line ", "tab")]),
    "two documents": (_append(b"---\na: 1\n"), [("not valid YAML: line ", "expected a single document")]),
    "not UTF-8": (_append(b"# caf\xe9\n"), [("params.yaml: not UTF-8 text (byte ", "save it as UTF-8")]),
    "empty file": (_write("params.yaml", ""), ["params.yaml: empty or not a mapping; presets/street.yaml shows"]),
    "list of keys": (_write("params.yaml", "- train\n- data\n"), ["params.yaml: empty or not a mapping"]),
    "code": (_append(b"a: !!python/object/apply:os.system ['touch ran']\n"), ["not valid YAML"]),
    "strange key": (_append(b'"a\\nb": 1\n~: 2\n'), ["unknown key `a\\nb`", "`None`: every key must be a text"]),
    "more labels than the selections choose": (_set(table3__labels=[2, 99]), [
        "`select.entropy.steps` end at 4 frames; `table3.labels` asks for 99", "`select.us.steps`",
        "`select.ds_us.steps`", "`select.ds.labels` is 4; `table3.labels` asks for 99",
    ]),
    "crop beyond the frame": (_set(train__crop=[64, 40]), ["`train.crop` [64, 40] is larger than `frames.size`"]),
    "crop too small for the encoder": (_set(train__crop=[64, 16]), ["`train.crop` [64, 16] is too small"]),
    "weights of another encoder": (_set(network__encoder="resnet50", network__weights="package"), [
        ("`network`: weights: the package holds tf_efficientnet_lite0, not resnet50", "give a file, or none")
    ]),
    "an encoder that cannot be dilated": (_set(network__encoder="resnet18"), ["resnet18 cannot be dilated; set"]),
    "a head without the decoder": (_set(network__layers=[4]), ["`network`: layers [4]"]),
    "one frame and an ASPP": (_set(network__aspp_rates=[1], train__batch_size=1), [
        ("`train.batch_size` 1 cannot train an ASPP", "aspp_rates")
    ]),
    "positions that no snippet has": (_set(render__annotated=[9]), [("`render`: annotated", "0..3")]),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMS_CASES)
def test_params(tmp_path, server, case):
    change, wanted = PARAMS_CASES[case]
    place = Place(tmp_path, server)
    place.settings = small_params()
    place.write("data/prepared/frames.csv", "an earlier output")
    change(place)
    for line in place.refused("frames", wanted):
        assert line.startswith("error: ") and "params.yaml" in line and len(line) < 400
    assert not place.path("ran").exists()


# ---- training: lists, neighbours, weights, losses

TRAIN = ("--method", "supervised", "--selection", "random", "--labels", "2", "--seed", "7")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the preparing stages leave, and an earlier model of the training stage."""
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder, train=(4, 3), val=(2,), unlabelled=2)
    (folder / "splits/selected").mkdir(parents=True)
    (folder / "splits/selected/random-7.txt").write_text("train0_01\ntrain0_02\n")
    (folder / "models").mkdir()
    (folder / "models/supervised-random-2-7.safetensors").write_bytes(b"an earlier model")
    (folder / "runs/supervised-random-2-7").mkdir(parents=True)
    (folder / "runs/supervised-random-2-7/loss.tsv").write_text("an earlier curve")
    return folder


@pytest.fixture
def trained(prepared, tmp_path, server):
    folder = tmp_path / "training"
    shutil.copytree(prepared, folder)
    return Place(folder, server)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("train0_01\nval0_00\nelsewhere\n", ("2 of 3 frames are not among the training frames", "val0_00, elsewhere")),
        ("train0_01\ntrain1_02\n", ("1 of the first 2 frames have no mask (train1_02)", "annotate them")),
        ("train0_01\ntrain0_01\n", ("1 frames are named twice (train0_01)", "keep each once")),
        ("train0_01\n", ("lists 1 frames, but 2 labels are asked for",)),
        ("\n", ("names no frame",)),
        (b"\xff\xfe\x00", ("is not a text file",)),
        (None, ("no list of selected frames at", "run the stage that writes it")),
    ],
    ids=["unknown and validation", "no mask", "twice", "too few", "empty", "no text", "missing"],
)
def test_lists_of_frames(trained, content, wanted):
    if content is None:
        trained.path("splits/selected/random-7.txt").unlink()
    else:
        trained.write("splits/selected/random-7.txt", content)
    trained.refused("train", [("splits/selected/random-7.txt", *wanted)], *TRAIN)


def test_an_annotated_part_of_a_longer_list_is_enough(trained):
    """Who annotates the first frames of a list must not be asked for the rest."""
    trained.write("splits/selected/random-7.txt", "train0_01\ntrain0_02\ntrain1_02\n")
    code, lines = trained.run("train", *TRAIN)
    assert code == 0, lines


def test_more_labels_than_frames(trained):
    names = [f"train0_{i:02d}" for i in range(3)]
    save_file({"features": torch.rand(3, 2, 2, 4)}, trained.path("data/features.safetensors"),
              metadata={"frames": json.dumps(names)})  # fmt: skip
    seed = ("--seed", "7")
    trained.refused("select_features", ["`select.ds.labels` is 4, but there are 3 candidates"], "--criterion", "ds",
                    *seed)  # fmt: skip
    trained.refused("select_student", ["end at 4, but there are 3 candidates; lower them"], "--criterion", "us", *seed)


def test_no_frame_has_both_neighbours(tmp_path, server):
    write_prepared(tmp_path, train=(2, 2), val=(2,))
    Place(tmp_path, server).refused(
        "depth_pretrain", [("no frame of split 'train' has both neighbours in time", "give video frames")]
    )


def test_no_mask_to_evaluate_on(tmp_path, server):
    index = write_prepared(tmp_path, train=(2, 2), val=(2,))
    text = (tmp_path / "data/prepared/index.csv").read_text()
    for frame in index.select("val"):
        text = text.replace(f"labels/val/{frame.frame}.png", "")
    (tmp_path / "data/prepared/index.csv").write_text(text)
    Place(tmp_path, server).refused("evaluate", [("no frame of split 'val' has a mask", "`data.masks`")], *TRAIN)


class Harmful:
    """Unpickled, it makes the file that `marker` names."""

    marker = ""

    def __reduce__(self):
        return (open, (self.marker, "w"))


def _weights(kind, folder: Path) -> Path:
    from semivid.models.encoders import build_encoder

    path = folder / f"{kind}.{'pth' if kind in ('code', 'cut', 'page') else 'safetensors'}"
    if kind == "absent":
        return path
    if kind == "code":
        Harmful.marker = str(folder / "ran")
        torch.save({"weight": torch.ones(1), "x": Harmful()}, path)
        torch.load(path, weights_only=False)["x"].close()
        assert (folder / "ran").exists(), "the trap is no trap"
        (folder / "ran").unlink()
    elif kind == "page":
        path.write_text("<html>not found</html>")
    elif kind == "zero":
        path.touch()
    else:
        encoder = build_encoder("resnet18" if kind == "other" else "tf_efficientnet_lite0", dilated=False)
        state = encoder.state_dict()
        if kind == "nan":
            state["encoder.conv_stem.weight"][0, 0, 0, 0] = float("nan")
        if kind == "cut":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:9999])
        else:
            save_file(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("absent", ("absent.safetensors: no such file", "give the path")),
        ("zero", ("zero.safetensors: cannot be read as a weights file", "again")),
        ("page", ("page.pth: cannot be read as a weights file", "again")),
        ("cut", ("cut.pth: cannot be read as a weights file", "again")),
        ("other", ("other.safetensors: does not fit this network", "ResNet-18, wanted is an EfficientNet")),
        ("nan", ("nan.safetensors: 1 of 288 tensors hold values that are infinite or not a number", "conv_stem")),
        ("code", ("code.pth: holds more than tensors and plain values and is not loaded for safety", "safetensors")),
    ],
)
def test_weights_files(trained, kind, wanted):
    trained.params(network__weights=str(_weights(kind, trained.folder)))
    trained.refused("train", [wanted], *TRAIN)
    assert not trained.path("ran").exists(), "code in a weights file ran"


@pytest.mark.parametrize("entry", ["../depth.safetensors", "/tmp/depth.safetensors", "a/../../b", "..\\b", "C:\\b"])
def test_archives_that_lead_outside(tmp_path, entry):
    module = torch.nn.Linear(1, 1)
    checkpoints.save_state(module, tmp_path / "depth.safetensors")
    source = tmp_path / "models.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.write(tmp_path / "depth.safetensors", "models/depth.safetensors")
    checkpoints.load_parts({"depth": module}, source)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(entry, b"x")
    (tmp_path / "depth.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"models\.zip: names files outside of itself .*; do not use it$"):
        checkpoints.load_parts({"depth": module}, source)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_archive(tmp_path):
    module = torch.nn.Linear(8, 8)
    checkpoints.save_state(module, tmp_path / "depth.safetensors")
    source = tmp_path / "models.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "depth.safetensors", "depth.safetensors")
    content = bytearray(source.read_bytes())
    content[80] ^= 255
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"models\.zip: depth\.safetensors cannot be unpacked .*download it again"):
        checkpoints.load_parts({"depth": module}, source)


SAVE_EVERY_STEP = "import semivid.training.loop as loop; loop.CHECKPOINT_SECONDS = -1.0"
OFTEN = {"optimizer": "sgd", "clip": 0.0, "schedule": "constant"}


def diverging(rate):
    return small_params()["methods"]["supervised"] | OFTEN | {"lr": rate, "encoder_lr": rate}


def test_a_loss_that_is_no_number(trained):
    """Step 1 leaves large but finite weights; from them the loss of step 2 is no number."""
    trained.params(methods__supervised=diverging(1e18), train__iterations=5)
    wanted = ("lower the learning rate", "the last good state is kept in .work/train@supervised-random-2-7/resume.saf")
    trained.refused("train", [wanted], *TRAIN, before=SAVE_EVERY_STEP)
    state = load_resume(trained.path(".work/train@supervised-random-2-7/resume.safetensors"))
    assert state["step"] == 1
    momenta = [v["momentum_buffer"] for o in state["optimizers"] for v in o["state"].values()]
    assert momenta and all(t.isfinite().all() for t in [*state["networks"].values(), *momenta])


@pytest.mark.parametrize("iterations", [1, 3], ids=["in the last step", "before a checkpoint"])
def test_weights_that_are_no_numbers_behind_a_finite_loss(trained, iterations):
    """The step of a finite loss can be infinitely long: the state itself must be looked at before it is kept."""
    trained.params(methods__supervised=diverging(1e39), train__iterations=iterations)
    wanted = ("holds values that are infinite or not a number at step 1", "no state had been saved yet")
    trained.refused("train", [wanted], *TRAIN, before=SAVE_EVERY_STEP)
    assert not trained.path(".work/train@supervised-random-2-7/resume.safetensors").exists()
