"""Flow: files against other decoders, checks against plain loops and the renderer's truth, pictures, estimators."""

import itertools
import sys
import types
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from semivid.data.index import Frame
from semivid.data.street.truth import read_flow as read_truth
from semivid.data.street.write import render_dataset
from semivid.errors import UserError
from semivid.flow import checks, colours, estimators, files
from semivid.flow.estimators import build_estimator

FRAME = Frame("town_000001_000002", "train", "town_000001", 2, Path("x.jpg"), "", None)


def random_flow(height=11, width=17, largest=30.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-largest, largest, (height, width, 2)).astype(np.float32)


def picture(height, width, seed=0):
    """Smooth texture with detail at several scales, uint8 RGB."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for size, weight in ((4, 1.0), (8, 1.0), (16, 0.7), (32, 0.5)):
        small = rng.random((size, size, 3))
        total += weight * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(255 * total / 3.2, 0, 255).astype(np.uint8)


def shifted_pair(height=96, width=160, u=3, v=-2):
    """The second image shows at x + (u, v) what the first one shows at x."""
    wide = picture(height + 40, width + 40)
    return wide[20 : 20 + height, 20 : 20 + width].copy(), wide[
        20 - v : 20 - v + height, 20 - u : 20 - u + width
    ].copy()


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """One rendered snippet of three frames: images and true flow of the first pair."""
    out = tmp_path_factory.mktemp("street") / "raw"
    render_dataset(out, seed=3, size=(192, 96), snippets={"val": 1}, frames_per_snippet=3, annotated=(1,), fps=17.0)
    images = [cv2.imread(str(p))[..., ::-1].copy() for p in sorted(out.glob("leftImg8bit_sequence/*/*/*.png"))]
    paths = sorted(out.glob("truth/flow/*/*/*.png"))
    return images, [read_truth(p) for p in paths], paths


# ------------------------------------------------------------------ files


def test_one_name_for_each_flow():
    assert files.flow_path("f", FRAME, "forward") == Path("f/forward/train/town_000001_000002.png")
    assert files.flow_path("f", FRAME, "backward", "float16") == Path("f/backward/train/town_000001_000002.npy")
    assert files.consistency_path("f", FRAME) == Path("f/consistent/train/town_000001_000002.png")
    with pytest.raises(UserError, match="direction of a flow is 'up'"):
        files.flow_path("f", FRAME, "up")
    with pytest.raises(UserError, match="kind of flow file is 'exr'"):
        files.flow_path("f", FRAME, "forward", "exr")


def devkit(path):
    """KITTI's own decoding: u = (I(u, v, 1) - 2^15) / 64, v = (I(u, v, 2) - 2^15) / 64, valid = I(u, v, 3), RGB."""
    rgb = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    return (rgb[..., :2] - 2**15) / 64, rgb[..., 2] != 0


def test_png_is_kittis_coding(tmp_path):
    flow = random_flow(largest=500)
    flow[0, 0] = (-512, 511.98)
    valid = np.random.default_rng(1).random(flow.shape[:2]) < 0.8
    valid[0, 0] = True
    flow[~valid] = np.nan
    path = tmp_path / "deep" / "a.png"
    files.write_flow(path, flow, valid)
    for decode in (devkit, read_truth, files.read_flow):
        read, kept = decode(path)
        assert (kept == valid).all()
        assert np.abs(read[valid] - flow[valid]).max() <= 1 / 128
    assert (read[~valid] == 0).all()
    assert read.dtype == np.float32 and read.flags.c_contiguous
    files.write_flow(tmp_path / "again.png", read, kept)
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_reads_the_renderers_truth(street):
    _, truth, paths = street
    for path, (flow, valid) in zip(paths, truth, strict=True):
        own, own_valid = files.read_flow(path)
        assert (own == flow).all() and (own_valid == valid).all()


def test_float16(tmp_path):
    flow = random_flow(largest=2000)
    valid = np.random.default_rng(1).random(flow.shape[:2]) < 0.8
    files.write_flow(tmp_path / "a.npy", flow, valid)
    stored = np.load(tmp_path / "a.npy")
    assert stored.dtype == np.float16 and (np.isnan(stored).all(-1) == ~valid).all()
    read, kept = files.read_flow(tmp_path / "a.npy")
    assert (kept == valid).all() and (read[~valid] == 0).all() and read.dtype == np.float32
    assert (np.abs(read - flow)[valid] <= np.abs(flow[valid]) * 2.0**-11).all()


def test_flow_that_no_file_holds(tmp_path):
    flow = np.zeros((4, 5, 2), np.float32)
    for value, text in ((np.nan, "not a number"), (np.inf, "infinite"), (512.0, "write float16"), (-513.0, "float16")):
        flow[1, 2, 0] = value
        with pytest.raises(UserError, match=rf"a\.png: .*{text}"):
            files.write_flow(tmp_path / "a.png", flow)
    flow[1, 2, 0] = 1e6
    with pytest.raises(UserError, match=r"a\.npy: .*1000000 pixels"):
        files.write_flow(tmp_path / "a.npy", flow)
    with pytest.raises(UserError, match=r"a\.flo: a flow file is called"):
        files.write_flow(tmp_path / "a.flo", flow * 0)
    with pytest.raises(UserError, match=r"float array \(H, W, 2\), not float32 \(4, 5, 3\)"):
        files.write_flow(tmp_path / "a.png", np.zeros((4, 5, 3), np.float32))
    with pytest.raises(UserError, match=r"bool array \(4, 5\)"):
        files.write_flow(tmp_path / "a.png", flow * 0, np.ones((5, 4), bool))
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failure(tmp_path):
    path = tmp_path / "a.png"
    files.write_flow(path, random_flow())
    before = path.read_bytes()
    with pytest.raises(UserError):
        files.write_flow(path, random_flow(largest=2000))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a.npy", "mask"])
def test_a_new_file_takes_the_place_of_the_old_one(tmp_path, name):
    """Written in place, it would change what else is linked to the same data, such as DVC's cache."""
    path, cached = tmp_path / name, tmp_path / "cached"

    def write(seed):
        if name == "mask":
            files.write_mask(path, random_flow(seed=seed)[..., 0] > 0)
        else:
            files.write_flow(path, random_flow(seed=seed))

    write(1)
    cached.hardlink_to(path)
    before = cached.read_bytes()
    write(2)
    assert cached.read_bytes() == before != path.read_bytes()


def test_bad_flow_files(tmp_path):
    def wrong(name, text, content=None):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=text) as caught:
            files.read_flow(path)
        assert "\n" not in str(caught.value) and name in str(caught.value)

    def png(array):
        return cv2.imencode(".png", array)[1].tobytes()

    good = tmp_path / "good.png"
    files.write_flow(good, random_flow(64, 64))
    wrong("none.png", "no flow file")
    wrong("page.png", "damaged", b"<html>")
    wrong("eight.png", "16 bits with 3 channels", png(np.zeros((4, 5, 3), np.uint8)))
    wrong("grey.png", "16 bits with 3 channels", png(np.zeros((4, 5), np.uint16)))
    wrong("page.npy", "damaged", b"<html>")
    wrong("empty.npy", "damaged", b"")
    wrong("a.flo", "is called", b"PIEH")
    files.write_flow(tmp_path / "half.npy", random_flow())
    wrong("cut.npy", "damaged", (tmp_path / "half.npy").read_bytes()[:-100])
    np.save(tmp_path / "double.npy", np.zeros((4, 5, 2)))
    wrong("double.npy", "float16 array")
    np.save(tmp_path / "flat.npy", np.zeros((4, 5), np.float16))
    wrong("flat.npy", "float16 array")
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    wrong("pickle.npy", "damaged")
    with (tmp_path / "zip.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    wrong("zip.npy", "float16 array")


def test_masks(tmp_path):
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    files.write_mask(tmp_path / "m.png", mask)
    assert (files.read_mask(tmp_path / "m.png") == mask).all()
    assert set(np.unique(cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_UNCHANGED))) == {0, 255}
    with pytest.raises(UserError, match="bool array"):
        files.write_mask(tmp_path / "m.png", mask.astype(np.uint8))
    with pytest.raises(UserError, match=r"no mask .*none\.png"):
        files.read_mask(tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        files.read_mask(tmp_path / "bad.png")
    for bad in (np.full((3, 3), 7, np.uint8), np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.uint16)):
        cv2.imwrite(str(tmp_path / "bad.png"), bad)
        with pytest.raises(UserError, match="is no mask"):
            files.read_mask(tmp_path / "bad.png")


@pytest.mark.parametrize("size", [(40, 20), (13, 31), (160, 80), (80, 120)])
def test_resized_flow_of_a_zooming_scene(size):
    """A flow linear in the place: exact on any grid away from the border, with half-pixel centres."""

    def field(width, height):
        x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
        return np.dstack([(3 + 10 * x - 4 * y) * width / 80, (-2 + 5 * y + x) * height / 40]).astype(np.float32)

    resized = files.resize_flow(field(80, 40), size)
    assert resized.shape == (size[1], size[0], 2) and resized.dtype == np.float32
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(resized[inner], field(*size)[inner], atol=2e-3)


def test_resized_true_flow_still_leads_to_the_same_place(street):
    """Half size: images and flow halved; the halved flow explains the halved images, an unscaled one does not."""
    images, truth, _ = street
    flow, valid = truth[0]
    small = [cv2.resize(image, (96, 48), interpolation=cv2.INTER_AREA) for image in images[:2]]
    half, known = files.resize_flow(flow, (96, 48)), files.resize_valid(valid, (96, 48))
    assert 0.5 < known.mean() < valid.mean()
    np.testing.assert_allclose(half[known][:, 0].mean(), flow[valid][:, 0].mean() / 2, atol=0.15)
    errors = {
        scale: np.abs(small[0] - checks.sample(small[1], *checks.targets(half * scale)[:2]))[known].mean()
        for scale in (0, 1, 2)
    }
    assert errors[1] < 0.6 * min(errors[0], errors[2])
    # a block of four: the mean of its four values, and valid only with all of them
    np.testing.assert_allclose(half[10, 20], flow[20:22, 40:42].mean((0, 1)) / 2, atol=1e-5)
    assert (known == valid.reshape(48, 2, 96, 2).all((1, 3))).all()
    with pytest.raises(UserError, match="size of a flow"):
        files.resize_flow(flow, (0, 3))


# ------------------------------------------------------------------ checks


def plain_bilinear(image, x, y):
    """Bilinear with the border replicated, in float64."""
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.minimum(np.floor(x).astype(int), width - 2), np.minimum(np.floor(y).astype(int), height - 2)
    a, b = (x - x0)[..., None], (y - y0)[..., None]
    top = (1 - a) * image[y0, x0] + a * image[y0, x0 + 1]
    return (1 - b) * top + b * ((1 - a) * image[y0 + 1, x0] + a * image[y0 + 1, x0 + 1])


def test_warping_error_against_a_plain_one():
    first, second, flow = picture(30, 41, 1), picture(30, 41, 2), random_flow(30, 41, 6)
    y, x = np.mgrid[:30, :41]
    tx, ty = x + flow[..., 0].astype(float), y + flow[..., 1].astype(float)
    gap = np.abs(first - plain_bilinear(second.astype(float), tx, ty)).mean(-1)
    inside = (tx >= 0) & (tx <= 40) & (ty >= 0) & (ty <= 29)
    assert 0.5 < inside.mean() < 0.95
    np.testing.assert_allclose(checks.warping_error(first, second, flow), (gap.mean(), gap[inside].mean()), atol=0.03)
    error, inner = checks.warping_error(first, second, flow * 0 + 1000)
    assert error > 0 and np.isnan(inner)


def test_warping_error_of_the_camvid_pairs(shared):
    """The figures of the specification (pyflow, section 10), measured with OpenCV: without flow, and with DIS."""
    names = [f"0016E5_{n:05d}.jpg" for n in (7959, 7961, 7963, 7965)]
    images = [cv2.imread(str(shared / "data/camvid/val" / name))[..., ::-1].copy() for name in names]
    dis = build_estimator("dis", {"preset": "fast"})
    found = np.mean([checks.warping_error(a, b, dis(a, b)) for a, b in itertools.pairwise(images)], axis=0)
    np.testing.assert_allclose(found, (5.84, 5.56), atol=0.02)
    best = build_estimator("best")
    found = np.mean([checks.warping_error(a, b, best(a, b)) for a, b in itertools.pairwise(images)], axis=0)
    assert (found < (4.40, 3.96)).all()  # pyflow's, there
    still = np.zeros((360, 480, 2), np.float32)
    none = np.mean([checks.warping_error(a, b, still)[0] for a, b in itertools.pairwise(images)])
    assert abs(none - 12.8) < 0.05


def test_consistency_against_a_plain_one():
    forward, backward = random_flow(20, 30, 3, seed=1), random_flow(20, 30, 3, seed=2)
    backward[5:] = -forward[5:].mean((0, 1)) + backward[5:] * 0.1
    forward[5:] = forward[5:].mean((0, 1)) + forward[5:] * 0.1
    y, x = np.mgrid[:20, :30]
    tx, ty = x + forward[..., 0].astype(float), y + forward[..., 1].astype(float)
    back = plain_bilinear(backward.astype(float), tx, ty)
    wanted = ((forward + back) ** 2).sum(-1) < 0.01 * ((forward**2).sum(-1) + (back**2).sum(-1)) + 0.5
    wanted &= (tx >= 0) & (tx <= 29) & (ty >= 0) & (ty <= 19)
    found = checks.consistency(forward, backward)
    assert found.dtype == bool and 0.2 < wanted.mean() < 0.95
    assert (found != wanted).mean() < 0.01


def test_consistency_finds_the_uncovered_part():
    """A square that moves over a still ground: what it covers next is inconsistent, the rest is not."""
    forward, backward = np.zeros((40, 60, 2), np.float32), np.zeros((40, 60, 2), np.float32)
    forward[10:20, 10:20, 0] = 8
    backward[10:20, 18:28, 0] = -8
    wanted = np.ones((40, 60), bool)
    wanted[10:20, 20:28] = False  # ground that the square covers in the second frame
    assert (checks.consistency(forward, backward) == wanted).all()
    forward[:, 59] = (1, 0)
    assert not checks.consistency(forward, backward)[:, 59].any()
    # relative part: the same gap of 1.2 pixels is forgiven at long flow only
    for length, kept in ((5, False), (15, True)):
        a, b = np.zeros((4, 80, 2), np.float32), np.zeros((4, 80, 2), np.float32)
        a[..., 0], b[..., 0] = length, 1.2 - length
        assert checks.consistency(a, b)[:, 0].all() == kept


def test_end_point_error():
    truth = np.zeros((2, 3, 2), np.float32)
    truth[0, 0] = (100, 0)
    flow = truth.copy()
    flow[0, 0] = (104, 0)  # 4 pixels, but only 4 %: no outlier
    flow[0, 1] = (3, 4)  # 5 pixels: an outlier
    flow[1, 1] = (0, 2.5)
    flow[1, 2] = (900, 900)
    valid = np.ones((2, 3), bool)
    valid[1, 2] = False
    found = checks.end_point_error(flow, truth, valid)
    assert found == pytest.approx({"mean": 11.5 / 5, "median": 2.5, "outliers": 1 / 5})
    assert checks.end_point_error(flow, truth)["outliers"] == pytest.approx(2 / 6)
    with pytest.raises(UserError, match="no pixel has a true flow"):
        checks.end_point_error(flow, truth, ~np.ones((2, 3), bool))
    with pytest.raises(UserError, match="flows of one shape"):
        checks.end_point_error(flow[:1], truth)
    with pytest.raises(UserError, match="not a number"):
        checks.end_point_error(flow * np.nan, truth)


def test_carried_labels_against_a_plain_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, (15, 22)).astype(np.uint8)
    flow, reliable = random_flow(15, 22, 5), rng.random((15, 22)) < 0.7
    carried = checks.carry_labels(labels, flow, reliable)
    for y in range(15):
        for x in range(22):
            column, row = int(np.floor(x + flow[y, x, 0] + 0.5)), int(np.floor(y + flow[y, x, 1] + 0.5))
            seen = 0 <= column < 22 and 0 <= row < 15 and reliable[y, x]
            assert carried[y, x] == (labels[row, column] if seen else 255)
    assert (checks.carry_labels(labels, flow * 0) == labels).all()


def test_chain_of_two_translations_and_a_turn():
    one, two = np.full((9, 9, 2), (1.5, 0), np.float32), np.full((9, 9, 2), (0.25, -1), np.float32)
    np.testing.assert_allclose(checks.chain(one, two), np.full((9, 9, 2), (1.75, -1)))
    x = np.tile(np.arange(20, dtype=np.float32), (20, 1))
    stretch = np.dstack([0.1 * x, np.zeros_like(x)])  # x -> 1.1 x, twice: 1.21 x, inside the image
    np.testing.assert_allclose(checks.chain(stretch, stretch)[:, :15, 0], 0.21 * x[:, :15], atol=0.01)


def test_pairs_that_do_not_match():
    a, flow = picture(20, 30), np.zeros((20, 30, 2), np.float32)
    cases = [
        (lambda: checks.warping_error(a, a[:, :-1], flow), "different sizes, 30x20 and 29x20"),
        (lambda: checks.warping_error(a, a.astype(np.float32), flow), "the second image of a flow pair is float32"),
        (lambda: checks.warping_error(a[..., 0], a, flow), "the first image of a flow pair is uint8"),
        (lambda: checks.warping_error(None, a, flow), "is NoneType"),
        (lambda: checks.warping_error(a, a, flow[:10]), "30x10 does not fit images of 30x20"),
        (lambda: checks.warping_error(a, a, flow * np.nan), "not a number"),
        (lambda: checks.consistency(flow, flow[:, :9]), "9x20 does not fit"),
        (lambda: checks.carry_labels(a[..., 0], flow[:9]), "30x9 does not fit labels of 30x20"),
        (lambda: checks.carry_labels(a, flow), "uint8 array"),
        (lambda: checks.carry_labels(a[..., 0], flow, np.ones((3, 3), bool)), "reliable pixels"),
    ]
    for call, text in cases:
        with pytest.raises(UserError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ pictures


def test_colour_wheel_against_torchvisions():
    from torchvision.utils import flow_to_image

    flow = random_flow(60, 80, 9)
    wanted = flow_to_image(torch.from_numpy(flow).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    found = colours.flow_colours(flow)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_colours_of_scale_and_invalid_pixels():
    flow = np.zeros((1, 4, 2), np.float32)
    flow[0, :, 0] = (0, 5, 10, 20)
    whole, clipped = colours.flow_colours(flow), colours.flow_colours(flow, largest=10)
    assert (whole[0, 0] == 255).all() and (clipped[0, 0] == 255).all()
    assert (clipped[0, 2] == whole[0, 3]).all() and (clipped[0, 1] == whole[0, 2]).all()
    assert (clipped[0, 3] <= 0.75 * 255).all()  # beyond the largest: darker
    flow[0, 3] = np.nan
    part = colours.flow_colours(flow, np.array([[True, False, True, True]]))
    assert (part[0, [1, 3]] == 0).all() and (part[0, 2] == whole[0, 3]).all()
    assert (colours.flow_colours(flow[:, :1] * 0) == 255).all()


def test_hsv_picture_of_the_reference():
    flow = random_flow(20, 30, 9)
    length = np.hypot(flow[..., 0], flow[..., 1])
    angle = np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360
    value = 255 * (length - length.min()) / (length.max() - length.min())
    hsv = np.dstack([angle / 2, np.full_like(angle, 255), value]).astype(np.uint8)
    wanted = cv2.cvtColor(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), cv2.COLOR_BGR2RGB)
    found = colours.flow_hsv(flow)
    near = np.abs(found.astype(int) - wanted).max(-1) <= 12  # one step of hue or value where a float rounds otherwise
    assert near.all() and (found == wanted).all(-1).mean() > 0.95
    right = np.zeros((1, 2, 2), np.float32)
    right[0, 1, 0] = 4
    assert colours.flow_hsv(right).tolist() == [[[0, 0, 0], [255, 0, 0]]]
    assert (colours.flow_hsv(right[:, 1:]) == 0).all()


# ------------------------------------------------------------------ estimators


@pytest.fixture
def pyflow_stub(monkeypatch):
    """A stand-in for the package pyflow that keeps what it was given and answers u = 1, v = 2."""
    seen = []

    def coarse2fine_flow(*arguments):
        seen.append(arguments)
        ones = np.ones(arguments[0].shape[:2])
        return ones, 2 * ones, arguments[1]

    module = types.ModuleType("pyflow")
    module.coarse2fine_flow = coarse2fine_flow
    monkeypatch.setitem(sys.modules, "pyflow", module)
    return seen


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_pyflow_gets_what_its_interface_asks_for(pyflow_stub, colour):
    first, second = picture(20, 40, 1), picture(20, 40, 2)
    flow = build_estimator("pyflow", {"colour": colour, "outer": 5})(first, second)
    assert flow.dtype == np.float32 and flow.shape == (20, 40, 2)
    assert (flow == (1, 2)).all()
    (im1, im2, *numbers) = pyflow_stub[0]
    assert numbers == [0.012, 0.75, 20, 5, 1, 30, 1 if colour == "grey" else 0]
    for given, image in ((im1, first), (im2, second)):
        wanted = {"rgb": image, "bgr": image[..., ::-1], "grey": image @ np.array([[0.299], [0.587], [0.114]])}[colour]
        np.testing.assert_allclose(given, wanted / 255, atol=1e-12)
        assert given.dtype == np.float64 and given.flags.c_contiguous


def test_pyflow_needs_width():
    """The least width is the one from which the package itself takes the images."""
    from pyflow import coarse2fine_flow

    for width, options in ((27, {}), (80, {"ratio": 0.5, "min_width": 40}), (40, {"ratio": 0.3, "min_width": 30})):
        estimate = build_estimator("pyflow", options | {"outer": 1, "sor": 1})
        with pytest.raises(ValueError, match="too narrow"):
            narrow = np.zeros((20, width - 1, 3))
            coarse2fine_flow(narrow, narrow, 1.0, options.get("ratio", 0.75), options.get("min_width", 20), 1, 1, 1)
        estimate(picture(20, width), picture(20, width))
        with pytest.raises(UserError, match=f"width of at least {width} pixels"):
            estimate(picture(20, width - 1), picture(20, width - 1))


@pytest.mark.parametrize(
    "method, options",
    [("dis", {"preset": preset}) for preset in ("ultrafast", "fast", "medium")]
    + [("dis", {"preset": "medium", "finest_scale": 0}), ("best", {}), ("pyflow", {})],
)
def test_a_known_shift_is_found(method, options):
    first, second = shifted_pair()
    flow = build_estimator(method, options)(first, second)
    assert flow.dtype == np.float32 and flow.shape == (96, 160, 2) and flow.flags.c_contiguous
    gap = np.linalg.norm(flow[12:-12, 12:-12] - (3, -2), axis=-1)
    assert np.median(gap) < 0.25 and gap.mean() < 0.5
    assert checks.warping_error(first, second, flow)[0] < 0.25 * checks.warping_error(first, second, flow * 0)[0]


def test_best_bears_a_change_of_exposure():
    """A brighter second image: the flow stays, where the same weights without the match lose it."""
    first, second = shifted_pair(u=9, v=4)
    flow = build_estimator("best")(first, second)
    gaps = {}
    for gain, offset in ((0.8, 0), (1.1, 5)):
        other = cv2.convertScaleAbs(second, alpha=gain, beta=offset)
        gaps[gain] = np.linalg.norm(build_estimator("best")(first, other) - flow, axis=-1).mean()
    assert max(gaps.values()) < 0.3
    flat = np.full_like(first, 90)
    assert np.isfinite(build_estimator("best")(first, flat)).all()
    assert np.abs(build_estimator("best")(flat, flat)).max() < 1e-3


def test_the_finest_scale_and_the_preset_are_used():
    first, second = shifted_pair()
    options = [{}, {"finest_scale": 0}, {"preset": "fast"}, {"preset": "ultrafast"}]
    flows = [build_estimator("dis", o)(first, second) for o in options]
    assert all((flows[i] != flows[j]).any() for i in range(4) for j in range(i))


def test_true_flow_judges(street):
    """best is nearer to the renderer's flow than the fast setting, and both beat no flow."""
    images, truth, _ = street
    errors = {}
    for method in ("best", "dis"):
        estimate = build_estimator(method, {})
        flows = [estimate(a, b) for a, b in itertools.pairwise(images)]
        errors[method] = checks.end_point_error(
            np.stack(flows), np.stack([t[0] for t in truth]), np.stack([t[1] for t in truth])
        )["mean"]
    still = np.mean([np.linalg.norm(t[0], axis=-1)[t[1]].mean() for t in truth])
    assert errors["best"] < errors["dis"] < 0.7 * still


@pytest.mark.parametrize("method", ["dis", "best"])
def test_the_number_of_threads_changes_nothing(method):
    """Nor does an estimator leave another number behind."""
    first, second = shifted_pair(u=9, v=4)
    estimate = build_estimator(method, {})
    before = cv2.getNumThreads()
    try:
        flows = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            flows.append(estimate(first, second))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert (flows[0] == flows[1]).all() and (flows[0] == flows[2]).all()


def test_dis_runs_on_one_thread(monkeypatch):
    create, seen = cv2.DISOpticalFlow_create, []

    class Watched:
        def __init__(self, preset):
            self.dis = create(preset)

        def __getattr__(self, name):
            return getattr(self.dis, name)

        def calc(self, *arguments):
            seen.append(cv2.getNumThreads())
            return self.dis.calc(*arguments)

    monkeypatch.setattr(cv2, "DISOpticalFlow_create", Watched)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        for method in ("dis", "best"):
            build_estimator(method)(*shifted_pair())
    finally:
        cv2.setNumThreads(before)
    assert seen == [1, 1]


@pytest.mark.parametrize("method", ["dis", "best"])
def test_nothing_is_kept_from_one_pair_to_the_next(method):
    """Small images make OpenCV's DIS change its scales for good."""
    first, second = shifted_pair()
    estimate = build_estimator(method, {})
    flow = estimate(first, second)
    for size in ((16, 16), (50, 70)):
        estimate(picture(*size), picture(*size, 1))
        assert (estimate(first, second) == flow).all()


@pytest.mark.parametrize("options, least", [({}, 16), ({"finest_scale": 0}, 12), ({"preset": "fast"}, 32)])
def test_dis_refuses_what_would_end_the_process(options, least):
    """OpenCV runs into a segmentation fault there, e.g. at 64 x 15 with the preset medium."""
    estimate = build_estimator("dis", options)
    for width in (least, 64, 400):
        assert estimate(picture(least, width), picture(least, width, 1)).shape == (least, width, 2)
    with pytest.raises(UserError, match=f"shorter side of at least {least} pixels"):
        estimate(picture(least - 1, 64), picture(least - 1, 64))


@pytest.mark.parametrize(
    "network, size", [("raft_small", (96, 64)), ("raft_small", (131, 141)), ("raft_large", (96, 64))]
)
def test_raft_of_a_file(tmp_path, network, size):
    """Random weights by rule: the network's own output on the padded pair, cropped."""
    from torchvision.models import optical_flow

    net = getattr(optical_flow, network)(weights=None)
    for key, value in net.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    torch.save(net.state_dict(), tmp_path / "raft.pth")
    first, second = picture(*size, 1), picture(*size, 2)
    estimate = build_estimator("raft", {"network": network, "weights": str(tmp_path / "raft.pth"), "updates": 2})
    flow = estimate(first, second)
    assert flow.shape == (*size, 2) and flow.dtype == np.float32 and (flow == estimate(first, second)).all()
    height, width = (max(128, (n + 7) // 8 * 8) for n in size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    around = ((top, height - size[0] - top), (left, width - size[1] - left), (0, 0))
    pair = [
        torch.from_numpy(np.pad(im, around, mode="edge")).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        for im in (first, second)
    ]
    with torch.no_grad():
        wanted = net.eval()(*pair, num_flow_updates=2)[-1][0].permute(1, 2, 0).numpy()
    wanted = wanted[top : top + size[0], left : left + size[1]]
    np.testing.assert_allclose(flow, wanted, atol=1e-2 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 1e-3


def test_raft_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="raft needs weights"):
        build_estimator("raft", {})
    with pytest.raises(UserError, match="no such file"):
        build_estimator("raft", {"weights": str(tmp_path / "none.pth")})
    from torchvision.models import optical_flow

    torch.save(optical_flow.raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"small\.pth: does not fit"):
        build_estimator("raft", {"weights": str(tmp_path / "small.pth"), "network": "raft_large"})


@pytest.mark.parametrize(
    "method, options, text",
    [
        ("diss", {}, r"flow method is 'diss' \(did you mean dis\?\): give one of pyflow, dis, raft, best"),
        ("dis", {"presett": "fast"}, r"no option 'presett' \(did you mean preset\?\)"),
        ("dis", {"preset": "slow"}, "preset of dis is 'slow': give one of ultrafast, fast, medium"),
        ("dis", {"finest_scale": -1}, "finest_scale of dis is -1"),
        ("dis", {"finest_scale": 0.5}, "whole number"),
        ("best", {"preset": "fast"}, "best has no option 'preset': it takes none"),
        ("pyflow", {"colour": "hsv"}, "colour of pyflow"),
        ("pyflow", {"alpha": 0}, "alpha above 0"),
        ("pyflow", {"ratio": 1.5}, "ratio between 0 and 1"),
        ("pyflow", {"sor": 0}, "sor of pyflow is 0"),
        ("pyflow", {"outer": True}, "outer of pyflow is True"),
        ("raft", {"network": "raft"}, "network of raft"),
        ("raft", {"weights": "x", "updates": 0}, "updates of raft"),
    ],
)
def test_options_that_are_wrong(method, options, text):
    with pytest.raises(UserError, match=text):
        build_estimator(method, options)


def test_estimators_refuse_bad_pairs(monkeypatch):
    a = picture(40, 60)
    for method in ("dis", "best"):
        estimate = build_estimator(method, {})
        with pytest.raises(UserError, match="different sizes"):
            estimate(a, a[:, :-1])
        with pytest.raises(UserError, match="float32"):
            estimate(a.astype(np.float32) / 255, a)
    monkeypatch.setattr(estimators, "_dis", lambda **_: lambda x, y: np.full((40, 60, 2), np.nan))
    with pytest.raises(UserError, match="flow method dis gave values that are infinite"):
        build_estimator("dis", {})(a, a)


def test_files_and_checks_load_neither_torch_nor_pyflow():
    import subprocess

    code = (
        "import sys, semivid.flow.files, semivid.flow.checks, semivid.flow.colours, semivid.flow.estimators as e;"
        "e.build_estimator('best'); e.build_estimator('dis', {});"
        "print(sorted({'torch', 'pyflow', 'numba', 'torchvision'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_with_src())
    assert found.stdout.strip() == "[]"


def _with_src():
    import os

    return os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent / "src")}
