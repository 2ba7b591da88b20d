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
from semivid.data.index import Frame, Index
from semivid.data.street.render import Renderer
from semivid.data.street.scene import draw_lots, make_scene
from semivid.data.street.textures import build_bank
from semivid.errors import UserError
from semivid.propagation import reference
from semivid.propagation.compose import VOID, Motion, carry, checked, compose, nearest, vote
from semivid.propagation.propagate import (
    NetworkMotion,
    Settings,
    propagate,
)
from semivid.propagation.quality import PropagationQuality

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
    print(table.drop(columns=["motion"]).to_string())
    for k in (2, 3, 4, 5):
        composed, chain = table.loc[("composed", k)], table.loc[("reference", k)]
        assert composed.miou > chain.miou + 0.02 and composed.accuracy > chain.accuracy
        assert composed.miou_common > chain.miou_common and composed.accuracy_common > chain.accuracy_common
        # the same coverage: nothing is void but what leaves the picture
        assert table.loc[("unchecked", k)].miou_common > chain.miou_common
        assert 0.7 < composed.known < 1 and chain.known == 1
