"""Propagation: the reference's chain byte for byte, composed motion against the renderer's truth, files, tables."""

import dataclasses
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import rand, randn
from semivid.data.classes import Classes
from semivid.data.index import Frame, Index
from semivid.data.street.render import Renderer
from semivid.data.street.scene import draw_lots, make_scene
from semivid.data.street.textures import build_bank
from semivid.errors import UserError
from semivid.evaluation.film import open_source
from semivid.evaluation.pictures import read_labels, read_rgb
from semivid.flow.estimators import build_estimator
from semivid.flow.files import flow_path, write_flow
from semivid.flow.index import FlowPair, write_flow_index
from semivid.flow.store import FlowStore
from semivid.propagation import reference
from semivid.propagation.compose import VOID, Motion, carry, checked, compose, nearest, vote
from semivid.propagation.film import mistakes, strip, write_film
from semivid.propagation.index import (
    COLUMNS,
    for_training,
    read_confidence,
    read_propagated,
    save,
    write_propagated,
)
from semivid.propagation.propagate import (
    STEPS,
    EstimatedMotion,
    NetworkMotion,
    Settings,
    StoredMotion,
    check_steps,
    propagate,
)
from semivid.propagation.quality import PropagationQuality, quality_csv, quality_markdown

# ------------------------------------------------------------------ a rendered film and its truth


class Film:
    """A rendered snippet held in memory: images, labels, the true flow between any two frames, an index of it."""

    def __init__(self, number, frames=6, size=(128, 64)):
        bank, key = build_bank(1), zlib.crc32(b"val")
        rng = np.random.default_rng(np.random.SeedSequence([1, key, number]))
        self.scene = make_scene(rng, draw_lots(1, key, number), bank, size=size, frames=frames, fps=17.0)
        self.bank, renderer = bank, Renderer(self.scene, bank)
        self.seen = [renderer.visible(i) for i in range(frames)]
        self.images = [renderer.image(b, i, rng) for i, b in enumerate(self.seen)]
        self.labels = [renderer.labels(b) for b in self.seen]
        self.frames = [
            Frame(f"f{i}", "val", "film", i, Path(f"{i}.png"), "", Path(f"{i}_label.png")) for i in range(frames)
        ]
        self.index = Index(self.frames)

    def truth(self, a, b):
        """True flow from frame a to frame b, and where the point is seen there: the renderer's own, of two frames."""
        two = [a, b]
        scene = dataclasses.replace(
            self.scene, camera_pose=self.scene.camera_pose[two], object_pose=self.scene.object_pose[two]
        )
        flow, valid = Renderer(scene, self.bank).flow(self.seen[a], 0, self.seen[b])
        return flow.astype(np.float32), valid

    # what a FrameStore gives
    def image(self, frame):
        return self.images[frame.position]

    def label(self, frame):
        return self.labels[frame.position]


class TrueMotion:
    """The renderer's flow as a source of motion; it does not tell what is hidden: the check must find that."""

    def __init__(self, film):
        self.film = film

    def missing(self, target, source, past=None):
        return ""

    def flow(self, target, source, past=None):
        flow, _ = self.film.truth(target.position, source.position)
        return flow, np.ones(flow.shape[:2], bool)


@pytest.fixture(scope="module")
def films():
    return [Film(1), Film(6)]  # with cars that pass each other and posts


# ------------------------------------------------------------------ the reference's warp and chain


def test_warps_are_the_references(data_dir):
    arrays = np.load(data_dir / "sdc_resample2d.npz")
    image, flow = rand((2, 3, 9, 13), 10) * 10, randn((2, 2, 9, 13), 11) * 4
    for place, value in enumerate(((0.5, -0.5), (-0.5, 1.5), (100, -100), (0, 0))):
        flow[0, :, place, place] = torch.tensor(value, dtype=torch.float32)
    pictures, flows = (a.permute(0, 2, 3, 1).numpy() for a in (image, flow))
    for i in range(2):
        smooth = reference.bilinear(pictures[i], flows[i])
        np.testing.assert_allclose(smooth.transpose(2, 0, 1), arrays["bilinear"][i], atol=1e-5)
        x, y = (
            flows[i, ..., 0] + np.arange(13, dtype=np.float32),
            flows[i, ..., 1] + np.arange(9, dtype=np.float32)[:, None],
        )
        assert (nearest(pictures[i], x, y).transpose(2, 0, 1) == arrays["nearest"][i]).all()


def chain_source(folder):
    """The fixture's scene as files, by its stated rule."""
    for t in range(14, 25):
        image = (rand((32, 48, 3), t) * 256).floor().to(torch.uint8).numpy()
        for sequence in [True] + [False] * (t == 19):
            path = folder / reference.frame_file("image", sequence, "train", "aachen", "000000", t)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    cells = torch.randint(0, 34, (8, 12), generator=torch.Generator().manual_seed(100)).numpy().astype(np.uint8)
    label = cells.repeat(4, 0).repeat(4, 1)
    path = folder / reference.frame_file("label", False, "train", "aachen", "000000", 19)
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), label)
    colour = path.with_name("aachen_000000_000019_gtFine_color.png")
    cv2.imwrite(str(colour), np.dstack([label, 255 - label, label // 2]))


def test_chain_of_the_reference(data_dir, tmp_path):
    case, arrays = json.loads((data_dir / "sdc_chain.json").read_text()), np.load(data_dir / "sdc_chain.npz")
    chain_source(tmp_path / "SRC")
    seen = []

    def network(images):
        seen.append(images)
        return np.broadcast_to(np.float32((1.25, -0.75)), (32, 48, 2))

    written = reference.propagate_files(
        tmp_path / "SRC", tmp_path / "DST", "train", "aachen", "000000", 19, network, steps=3, colours=True
    )
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [e["writes"] for e in case["log_per_write"]]
    assert len(seen) == 6  # each motion once
    for name, wanted in ((n, arrays[n]) for n in arrays.files):
        what, place = name.split("_")
        t = 19 + int(place[1:]) * (1 if place[0] == "p" else -1)
        kind = {"rgb": "image", "label": "label"}[what]
        path = tmp_path / "DST" / reference.frame_file(kind, False, "train", "aachen", "000000", t)
        assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == wanted).all(), name
    copies = list((tmp_path / "DST").rglob("*000019*"))
    assert len(copies) == 3 and len(list((tmp_path / "DST").rglob("*.png"))) == len(written) + 3
    # what the network sees and what is warped are among the files that the reference reads for this result
    for one, entry in zip(reference.passes(3, colours=True), case["log_per_write"], strict=True):
        reads = set(entry["reads"])
        past, source, target = one.frames
        video = {f"SRC/{reference.frame_file('image', True, 'train', 'aachen', '000000', 19 + o)}" for o in one.frames}
        if abs(one.step) == 1:  # the labelled frame itself is read from the folder of labelled frames
            video.remove(f"SRC/{reference.frame_file('image', True, 'train', 'aachen', '000000', 19)}")
            video.add(f"SRC/{reference.frame_file('image', False, 'train', 'aachen', '000000', 19)}")
            assert source == 0 and past == -target
        assert video == {r for r in reads if "/leftImg8bit" in r and r.startswith("SRC")}
        if one.source:
            warped = reference.frame_file(one.what, False, "train", "aachen", "000000", 19 + one.source)
            assert f"DST/{warped}" in reads
    # in the order [before the source, source, target]
    frames = {
        t: cv2.imread(str(p))
        for t, p in ((t, next((tmp_path / "SRC").rglob(f"leftImg8bit_sequence/**/*{t:06d}_*"))) for t in range(14, 25))
    }
    order = [[int(next(t for t in frames if (frames[t] == i).all())) for i in images] for images in seen]
    assert order == [[18, 19, 20], [20, 19, 18], [19, 20, 21], [19, 18, 17], [19, 21, 22], [19, 17, 16]]


def test_chain_ends_where_a_frame_is_missing_and_wants_no_colours(tmp_path):
    chain_source(tmp_path / "SRC")
    (tmp_path / "SRC" / reference.frame_file("image", True, "train", "aachen", "000000", 21)).unlink()
    next((tmp_path / "SRC").rglob("*color*")).unlink()
    still = lambda images: np.zeros((32, 48, 2), np.float32)  # noqa: E731
    written = reference.propagate_files(tmp_path / "SRC", tmp_path / "DST", "train", "aachen", "000000", 19, still, 3)
    assert sorted({int(p.name.split("_")[2]) for p in written}) == [16, 17, 18, 20]
    with pytest.raises(UserError, match=r"000030_leftImg8bit.png: missing"):
        reference.propagate_files(tmp_path / "SRC", tmp_path / "DST", "train", "aachen", "000000", 30, still, 3)


def test_chain_through_the_index_is_that_of_the_files(data_dir):
    """The same chain as the way `reference` of the index, there in memory."""
    arrays = np.load(data_dir / "sdc_chain.npz")
    store = Film.__new__(Film)
    store.images = {t: (rand((32, 48, 3), t) * 256).floor().to(torch.uint8).numpy() for t in range(14, 25)}
    store.labels = {19: arrays["label_p0"]}
    frames = [Frame(f"t{t}", "train", "s", t, Path("x"), "", None) for t in range(14, 25)]
    index = Index(frames)
    asked = []

    def network(images):
        asked.append([next(t for t in store.images if store.images[t] is i) for i in images])
        return np.full((32, 48, 2), (1.25, -0.75), np.float32)

    motion = NetworkMotion(store, index, network)
    results = propagate(index, store, motion, frames[5], (-3, 1, 3), Settings("reference"))
    for r in results:
        name = f"{'p' if r.step > 0 else 'm'}{abs(r.step)}"
        assert (r.carried.label == arrays[f"label_{name}"]).all() and (r.carried.image == arrays[f"rgb_{name}"]).all()
        assert r.carried.known.all() and (r.carried.confidence == 1).all()
    assert asked == [[18, 19, 20], [19, 20, 21], [19, 21, 22], [20, 19, 18], [19, 18, 17], [19, 17, 16]]


# ------------------------------------------------------------------ composed motion


def test_motion_of_zero_and_of_whole_pixels():
    rng = np.random.default_rng(0)
    labels, image = rng.integers(0, 19, (12, 20), dtype=np.uint8), rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    still = checked(np.zeros((12, 20, 2), np.float32), np.zeros((12, 20, 2), np.float32))
    carried = carry(labels, image, compose([still] * 3), image)
    assert (carried.label == labels).all() and (carried.image == image).all() and (carried.confidence == 1).all()
    step = checked(np.full((12, 20, 2), (2, -1), np.float32), np.full((12, 20, 2), (-2, 1), np.float32))
    motion = compose([step] * 3)
    assert (motion.flow == (6, -3)).all()
    known = np.zeros((12, 20), bool)
    known[3:, :-6] = True  # x + 6 and y - 3 inside
    assert (motion.known == known).all()
    real = np.full_like(image, 7)
    carried = carry(labels, image, motion, real)
    assert (carried.label[3:, :-6] == labels[:-3, 6:]).all() and (carried.image[3:, :-6] == image[:-3, 6:]).all()
    assert (carried.label[~known] == VOID).all() and (carried.confidence[~known] == 0).all()
    assert (carried.image[~known] == 7).all()


def slow_vote(labels, x, y):
    """Bilinear one-hot maps of all classes by torch's grid_sample, and their argmax."""
    onehot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 256).permute(2, 0, 1)[None].double()
    height, width = labels.shape
    grid = torch.from_numpy(np.dstack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1])[None]).double()
    sampled = torch.nn.functional.grid_sample(onehot, grid, padding_mode="border", align_corners=True)[0].numpy()
    return sampled.argmax(0), sampled.max(0)


def test_vote_is_the_argmax_of_bilinear_one_hot_maps():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (15, 21), dtype=np.uint8)
    labels[4:8, 3:9] = VOID
    x = (np.arange(21) + rng.uniform(-4, 4, (15, 21))).astype(np.float32)
    y = (np.arange(15)[:, None] + rng.uniform(-4, 4, (15, 21))).astype(np.float32)
    label, share = vote(labels, x, y)
    wanted, weight = slow_vote(labels, x, y)
    np.testing.assert_allclose(share, weight, atol=1e-5)
    clear = np.sort(weight.ravel())  # no ties here: they would leave the label open
    assert (label == wanted).mean() == 1 and clear[0] >= 0.25
    half = np.full((15, 21), 0.5, np.float32)  # ties: the nearest pixel's, halves up
    two = np.zeros((15, 21), np.uint8)
    two[:, 1] = 9
    assert vote(two, half, np.zeros_like(half))[0][0, 0] == 9


def test_confidence_falls_with_mixed_labels_and_other_pictures():
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 4:] = 1
    image = np.full((8, 8, 3), 100, np.uint8)
    flow = np.zeros((8, 8, 2), np.float32)
    flow[..., 0] = 0.3
    motion = Motion(flow, np.ones((8, 8), bool))
    carried = carry(labels, image, motion, image)
    np.testing.assert_allclose(carried.confidence[:, 3], 0.7, atol=1e-6)
    assert (carried.confidence[:, :3] == 1).all() and (carried.label[:, 3] == 0).all()
    darker = carry(labels, image, motion, image - 20)
    np.testing.assert_allclose(darker.confidence, carried.confidence / np.e, rtol=1e-5)
    assert (carry(labels, image, motion, image, least=0.71).label[:, 3] == VOID).all()
    labels[0, 0] = VOID
    voided = carry(labels, image, motion, image)
    assert voided.label[0, 0] == VOID and voided.confidence[0, 0] == 0 and voided.known[0, 0]


def interior(labels, radius=2):
    """bool: pixels with one label around them."""
    kernel = np.ones((2 * radius + 1,) * 2, np.uint8)
    return cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)


def test_with_true_flow_labels_are_exact_and_what_is_hidden_is_void(films):
    wrong = given = clear = hidden = found = left = gone = 0
    for film in films:
        for start, steps in ((0, (1, 3, 5)), (5, (-1, -3, -5))):
            source = film.frames[start]
            for result in propagate(film.index, film, TrueMotion(film), source, steps):
                target, label = result.target.position, result.carried.label
                true = film.labels[target]
                flow, seen = film.truth(target, start)  # over all steps at once
                x, y = flow[..., 0] + np.arange(128), flow[..., 1] + np.arange(64)[:, None]
                outside = (x < -1) | (x > 128) | (y < -1) | (y > 64)
                # a pixel of tolerance at silhouettes, as the renderer's truth has
                inner = seen & interior(true) & interior(film.labels[start])
                behind = cv2.erode((~seen & ~outside).astype(np.uint8), np.ones((1, 3))) > 0
                clear += inner.sum()
                given += (inner & (label != VOID)).sum()
                wrong += (inner & (label != VOID) & (label != true)).sum()
                hidden += behind.sum()
                found += (behind & (label == VOID)).sum()
                gone += outside.sum()
                left += (outside & (label == VOID)).sum()
    assert given > 0.95 * clear and wrong < 1e-3 * given
    assert hidden > 500 and found > 0.95 * hidden
    assert gone > 1000 and left == gone


NAMES = [f"id{i}" for i in range(34)]


def test_composed_motion_with_void_beats_the_references_chain(films):
    """With DIS, at small size: also on the same pixels, and where void counts as a miss of what all pixels score."""
    quality = PropagationQuality(34)
    for film in films:
        motion = EstimatedMotion(film, build_estimator("dis"), keep=64)
        for start in (0, 2, 3, 5):
            ways = [
                {r.step: r.carried.label for r in propagate(film.index, film, motion, film.frames[start], STEPS, way)}
                for way in (Settings("reference"), Settings(), Settings(check=False), Settings("direct"))
            ]
            for step in ways[0]:
                names = ("reference", "composed", "unchecked", "direct")
                labels = {("dis", n): w[step] for n, w in zip(names, ways, strict=True)}
                quality.add(step, film.labels[start + step], labels)
    table = quality.table(NAMES).set_index(["way", "distance"])
    for k in (2, 3, 4, 5):
        composed, chain = table.loc[("composed", k)], table.loc[("reference", k)]
        assert composed.miou > chain.miou + 0.02 and composed.accuracy > chain.accuracy
        assert composed.miou_common > chain.miou_common and composed.accuracy_common > chain.accuracy_common
        # without the check only what leaves the picture is void: it is not the choice of easy pixels that wins
        assert table.loc[("unchecked", k)].miou_common > chain.miou_common
        assert 0.6 < composed.known < 1 and chain.known == 1


# ------------------------------------------------------------------ sources of motion, ends of videos, bad input


def test_stored_flow_gives_what_estimated_flow_gives(films, tmp_path):
    film, estimate = films[0], build_estimator("dis")
    pairs = []
    for first, second in zip(film.frames[:4], film.frames[1:4], strict=False):
        one, two = film.image(first), film.image(second)
        for frame, direction, flow in (
            (first, "forward", estimate(one, two)),
            (second, "backward", estimate(two, one)),
        ):
            write_flow(flow_path(tmp_path, frame, direction, "float16"), flow)
        files = [f"{d}/val/{f.frame}.npy" for f, d in ((first, "forward"), (second, "backward"))]
        pairs.append(FlowPair("val", "film", first.frame, second.frame, *files, "", 0.0, 0.0, 0.0, 0.0, None))
    write_flow_index(tmp_path / "index.csv", pairs)
    store = FlowStore(tmp_path)
    store.image, store.label = film.image, film.label
    stored, estimated = StoredMotion(store), EstimatedMotion(film, estimate)
    for source, steps in ((0, [1, 3]), (3, [-2])):
        pairs = [list(propagate(film.index, film, m, film.frames[source], steps)) for m in (stored, estimated)]
        for one, other in zip(*pairs, strict=True):
            assert (one.carried.label == other.carried.label).mean() > 0.995
    faults = []
    got = list(propagate(film.index, film, stored, film.frames[3], [1, -1, -3, -4], faults=faults))
    assert [r.step for r in got] == [-1, -3]
    assert faults == [
        "f3, step +1: no flow file from f4 to f3",
        "f3, step -4: film (val) has no frame -1",
    ]
    with pytest.raises(UserError, match=r"f4: no flow to f3 in .*set `flow.frames: all`"):
        stored.flow(film.frames[4], film.frames[3])


def test_network_sees_the_frame_before_the_source(films):
    film, seen = films[0], []

    def network(images):
        seen.append([next(i for i, x in enumerate(film.images) if x is image) for image in images])
        return film.truth(seen[-1][2], seen[-1][1])[0]

    motion, faults = NetworkMotion(film, film.index, network), []
    results = list(propagate(film.index, film, motion, film.frames[1], [1, 2, 4], faults=faults))
    assert sorted(seen) == [[0, 1, 2], [1, 2, 3], [3, 2, 1], [4, 3, 2]]  # each once, both ways for the check
    assert [r.step for r in results] == [1, 2]
    assert faults == ["f1, step +4: no frame 6 of film, which the network sees before f5"]
    true = list(propagate(film.index, film, TrueMotion(film), film.frames[1], [1, 2]))
    assert all((a.carried.label == b.carried.label).all() for a, b in zip(results, true, strict=True))
    bad = NetworkMotion(film, film.index, lambda images: np.zeros((3, 4, 2), np.float32))
    with pytest.raises(UserError, match=r"motion of f2: the network gave \(3, 4, 2\)"):
        list(propagate(film.index, film, bad, film.frames[1], [1]))


def test_bad_input(films):
    film, motion = films[0], TrueMotion(films[0])
    for steps, text in (([], "are \\[\\]"), ([0, 1], "other than 0"), ([1, 1], "each once"), ([1.5], "whole numbers")):
        with pytest.raises(UserError, match=text):
            list(propagate(film.index, film, motion, film.frames[0], steps))
    assert check_steps([-2, 1, -1, 3, 2]) == [1, -1, 2, -2, 3]
    with pytest.raises(UserError, match="way of propagation is 'chain'"):
        Settings("chain")
    with pytest.raises(UserError, match="least confidence of propagation is 2"):
        Settings(least=2)
    label, image = film.labels[0], film.images[0]
    still = Motion(np.zeros((64, 128, 2), np.float32), np.ones((64, 128), bool))
    with pytest.raises(UserError, match=r"the label map is uint8 \(32, 128\)"):
        carry(label[:32], image, still, image)
    with pytest.raises(UserError, match=r"the picture is float64"):
        carry(label, image / 2, still, image)
    with pytest.raises(UserError, match="have 2 sizes"):
        compose([still, Motion(still.flow[:32], still.known[:32])])
    wide = EstimatedMotion(film, build_estimator("dis"))
    wide.store = type("Store", (), {"image": lambda self, f: np.zeros((64, 128 + f.position, 3), np.uint8)})()
    with pytest.raises(UserError, match="f1 is 129x64, f0 128x64: bring the frames"):
        list(propagate(film.index, film, wide, film.frames[0], [1]))


# ------------------------------------------------------------------ files and the index


@pytest.fixture
def written(films, tmp_path):
    """Propagated labels of two frames, one joint and one with real pictures, in a folder, and what was propagated."""
    film = films[0]
    folder = tmp_path / "prepared"
    frames = [dataclasses.replace(f, image=folder / f"images/{f.frame}.png") for f in film.frames]
    index, results, labels = Index(frames), [], []
    for source, steps, joint in ((1, [1, -1], True), (4, [-2, 1], False)):
        for result in propagate(index, film, TrueMotion(film), index.frames[source], steps):
            results.append(result)
            labels.append(save(tmp_path / "propagated", result, joint))
    path = tmp_path / "propagated" / "propagated.csv"
    write_propagated(path, labels)
    return index, results, labels, path


def test_written_labels_are_read_again(written):
    index, results, labels, path = written
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    read = read_propagated(path, index)
    assert [(p.frame.frame, p.source.frame, p.step, p.joint) for p in read] == [
        ("f0", "f1", -1, True), ("f2", "f4", -2, False), ("f2", "f1", 1, True), ("f5", "f4", 1, False),
    ]  # fmt: skip
    by_place = {(p.frame.frame, p.step): p for p in read}
    for result, label in zip(results, labels, strict=True):
        p = by_place[result.target.frame, result.step]
        assert (read_labels(p.label) == result.carried.label).all()
        assert np.abs(read_confidence(p.confidence_map) - result.carried.confidence).max() <= 0.5 / 255 + 1e-6
        given = result.carried.label != VOID
        assert p.known == pytest.approx(given.mean(), abs=1e-4) and 0.3 < p.known < 1
        assert p.confidence == pytest.approx(result.carried.confidence[given].mean(), abs=1e-4)
        assert p.label == label.label and p.image == label.image
        if p.joint:
            assert (read_rgb(p.image) == result.carried.image).all()
        else:
            assert p.image == index.by_name[p.frame.frame].image


def test_training_takes_labels_of_its_own_frames_only(written):
    index, _, _, path = written
    read = read_propagated(path, index)
    names = lambda *args, **kwargs: [f.frame for f in for_training(read, *args, **kwargs)]  # noqa: E731
    assert names({"f1"}) == ["f0_m1", "f2_p1"]
    assert names({"f1", "f4"}) == ["f0_m1", "f2_m2", "f2_p1", "f5_p1"]
    assert names({"f1", "f4"}, steps={-2}) == ["f2_m2"]
    assert names({"f1", "f2"}) == ["f0_m1"] and names({"f1", "f2"}, over_labelled=True) == ["f0_m1", "f2_p1"]
    with pytest.raises(UserError, match="none of 4 propagated labels is from one of the 1 labelled frames"):
        names({"f3"})
    with pytest.raises(UserError, match="none of 4"):
        names({"f1"}, least_known=1.0)
    # beside the real frames in one index: these keep their neighbours
    joined = Index([*index.frames, *for_training(read, {"f1", "f4"})])
    assert joined.neighbour(index.by_name["f1"], 1) is index.by_name["f2"] and len(joined) == 10


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.replace("known\n", "share\n"), "no column known"),
        (lambda t: t.replace("f0,f1", "f9,f1"), "line 2: the prepared index has no frame f9"),
        (lambda t: t.replace("f0,f1,-1", "f0,f1,1"), r"line 2: f0 is not \+1 frames from f1"),
        (lambda t: t.replace("f0,f1,-1", "f0,f1,x"), "line 2: malformed row"),
        (lambda t: t.replace("labels/m1/val/f0.png", ""), "line 2: malformed row"),
        (lambda t: t[:-4] + "nan\n", "line 5: malformed row"),
        (lambda t: t + t.splitlines()[-1] + "\n", r"line 6: f5 has two labels of step \+1"),
    ],
)
def test_faulty_indexes(written, change, text):
    index, _, labels, path = written
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=text):
        read_propagated(path, index)
    with pytest.raises(UserError, match=r"no file .*other.csv; run the stage propagate"):
        read_propagated(path.with_name("other.csv"), index)
    with pytest.raises(UserError, match=r"has two labels of step -1"):
        write_propagated(path, [*labels, labels[1]])


# ------------------------------------------------------------------ quality and pictures


def test_quality_counts_as_by_hand():
    truth = np.uint8([[0, 0, 0, 1, 1, VOID]])
    void = VOID
    late = np.uint8([[0, 0, 0, void, void, 0]])
    quality = PropagationQuality(3)
    quality.add(2, truth, {
        ("flow", "composed"): np.uint8([[0, 0, void, 1, 0, 2]]), ("flow", "reference"): np.uint8([[0, 1, 1, 1, 0, 2]]),
    })  # fmt: skip
    quality.add(-2, truth, {
        ("flow", "composed"): late, ("flow", "reference"): np.uint8([[0, 0, 0, 1, 1, 0]]),
    })  # fmt: skip
    table = quality.table(["a", "b", "c"])
    assert list(table.way) == ["reference", "composed"] and set(table.distance) == {2} and set(table.pairs) == {2}
    chain, composed = table.iloc[0], table.iloc[1]
    # composed: a is 5 of 6, b 1 of 4 labelled; one pixel of b is called a. union a = 6 with the wrong one, b = 2
    assert composed.known == pytest.approx(7 / 10) and composed.accuracy == pytest.approx(6 / 7)
    assert composed.miou == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert composed.miou_all == pytest.approx((5 / 7 + 1 / 4) / 2)
    # the chain: a 4 right, 1 b called a, 2 a called b
    assert chain.known == 1 and chain.miou == chain.miou_all == pytest.approx((4 / 7 + 3 / 6) / 2)
    # common pixels: first pair 0, 1, 3, 4; second pair 0, 1, 2
    assert composed.common == chain.common == pytest.approx(7 / 10)
    assert chain.accuracy_common == pytest.approx(5 / 7) and composed.accuracy_common == pytest.approx(6 / 7)
    text = quality_markdown(table, {"data": "toy"})
    assert "| flow | composed | 66.67 (70.00) |" in text and "4" in text and "Protocol: data toy." in text
    assert quality_csv(table, {"data": "toy"}).splitlines()[0].endswith("miou_all,protocol_data")
    with pytest.raises(UserError, match="no propagated label has a true one"):
        PropagationQuality(3).table(["a", "b", "c"])
    with pytest.raises(UserError, match="bring them to one size"):
        quality.add(1, truth, {("flow", "direct"): truth[:, :3]})


def test_strip_and_film(films, tmp_path):
    film = films[0]
    classes = Classes(tuple(NAMES), np.random.default_rng(0).integers(0, 256, (34, 3), dtype=np.uint8))
    results = list(propagate(film.index, film, TrueMotion(film), film.frames[1], [1, -1]))
    labels = {r.step: {"composed": r.carried.label, "truth": film.labels[1 + r.step]} for r in results}
    images = {s: film.images[1 + s] for s in labels}
    truths = {s: film.labels[1 + s] for s in labels}
    sheet = strip(images, labels, classes, truths, width=128)
    assert sheet.shape == (5 * (64 + 24) + 6, 2 * 134 + 6, 3)  # 2 overlays, 2 of mistakes, 1 of the truth; 2 steps
    write_film(tmp_path / "a.mp4", images, labels, classes, truths, fps=2.0, width=128)
    frames = [picture for _, picture in open_source(tmp_path / "a.mp4")]
    assert len(frames) == 2 and list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]
    assert np.abs(frames[0][6:70, 6:134].astype(int) - sheet[6:70, 6:134]).mean() < 12  # step -1 comes first
    with pytest.raises(UserError, match="different ways"):
        strip(images, {1: labels[1], -1: {"composed": labels[-1]["composed"]}}, classes)
    with pytest.raises(UserError, match="fps of the film"):
        write_film(tmp_path / "b.mp4", images, labels, classes, fps=0)
    image = np.full((1, 4, 3), 100, np.uint8)
    shown = mistakes(image, np.uint8([[1, 2, VOID, 1]]), np.uint8([[1, 1, 1, VOID]]))
    assert shown.tolist() == [[[80, 130, 88], [158, 70, 70], [0, 0, 0], [100, 100, 100]]]
