"""Class-uniform sampling: centroids against the reference and a plain loop, what an epoch holds, and its windows."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from semivid.data.centroids import centroid_table, centroids, class_numbers, read_centroids, tiles, write_centroids
from semivid.data.class_uniform import CentredSamples, CentredWindow, ClassUniformStream
from semivid.data.index import VOID, Frame
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, Window, batches
from semivid.errors import UserError
from small import write_prepared

NAMES = ["road", "sky", "car", "pole", "rider"]


@pytest.fixture(scope="module")
def reference(data_dir):
    spec = json.loads((data_dir / "nvidia_losses.json").read_text())
    return spec, np.load(data_dir / "nvidia_losses.npz")["labels"]


# ---- centroids


def test_tiles_equal_the_reference(reference):
    for name, expected in reference[0]["tile_locations"].items():
        tile, size = name.split(" on ")
        height, width = map(int, size.split("x"))
        assert [list(corner) for corner in tiles(width, height, int(tile))] == expected, name


def test_centroids_equal_the_reference(reference):
    found = centroids(reference[1][0], 5, 8)
    expected = reference[0]["centroids_labels0_tile8"]
    assert [[list(point) for point in points] for points in found] == [expected[str(c)] for c in range(5)]


def plain_centroids(label, classes, tile):
    found = [[] for _ in range(classes)]
    for top in range(0, label.shape[0] - tile + 1, tile):
        for left in range(0, label.shape[1] - tile + 1, tile):
            for c in range(classes):
                ys, xs = np.nonzero(label[top : top + tile, left : left + tile] == c)
                if len(xs):
                    found[c].append((left + int(xs.mean()), top + int(ys.mean())))
    return found


@pytest.mark.parametrize(("size", "tile"), [((37, 50), 9), ((37, 50), 37), ((16, 16), 1), ((30, 61), 30)])
@pytest.mark.parametrize("void", [VOID, 5, 40])
def test_centroids_agree_with_a_plain_loop(size, tile, void):
    rng = np.random.default_rng(tile)
    label = np.kron(rng.integers(0, 6, (20, 20)), np.ones((4, 4), int))[: size[0], : size[1]].astype(np.uint8)
    label[label == 5] = void
    found = centroids(label, 5, tile, void)
    assert found == plain_centroids(label, 5, tile)
    assert any(found)


def test_a_picture_smaller_than_a_tile_has_none():
    assert centroids(np.zeros((360, 480), np.uint8), 3, 512) == [[], [], []]


def test_the_table_is_that_of_the_pictures(tmp_path):
    """From the prepared masks, in the frames' order, whatever the number of threads; and through its file."""
    frames = write_prepared(tmp_path, size=(48, 32)).select("train")
    store = FrameStore()
    table = centroid_table(frames, store.label, 3, 16)
    for c, points in enumerate(table):
        expected = [(f.frame, x, y) for f in frames for x, y in plain_centroids(store.label(f), 3, 16)[c]]
        assert points == expected and len(points) > len(frames)
    assert centroid_table(frames, store.label, 3, 16, threads=3) == table
    path = tmp_path / "centroids.csv"
    names = ["road", "sky, blue", "car"]
    write_centroids(path, table, names)
    assert read_centroids(path, names) == table
    assert path.read_text().splitlines()[:2] == ["class,frame,x,y", "road,{},{},{}".format(*table[0][0])]
    write_centroids(path, [table[0], [], []], names)
    assert read_centroids(path, names) == [table[0], [], []]


def test_centroids_need_no_torch():
    import subprocess
    import sys

    code = "import sys, semivid.data.centroids; sys.exit('torch' in sys.modules)"
    src = Path(__file__).resolve().parent.parent / "src"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(src)}).returncode == 0


# ---- what an epoch holds


def frames_called(prefix, count):
    return [Frame(f"{prefix}{i}", "train", "s", i, None, "", None) for i in range(count)]


def points_of(frames, count=1):
    return [(f.frame, 10 * i, k) for i, f in enumerate(frames) for k in range(count)]


def stream(labelled, table, batch_size=4, seed=1, name="labelled", **options):
    return ClassUniformStream(name, labelled, batch_size, seed, lambda frame, rng, point: {}, table, **options)


def split(items, table):
    """(how often each class's centroids, how often each frame anywhere) in a list of picks."""
    owner = {point: c for c, points in enumerate(table) for point in points}
    at = [(frame.frame, *point) for frame, point in items if point]
    return Counter(owner[a] for a in at), Counter(frame.frame for frame, point in items if point is None)


def distinct(frames, classes, each):
    """A table in which every centroid is of one class alone."""
    return [[(f.frame, 100 * c + k, i) for i, f in enumerate(frames) for k in range(each)] for c in range(classes)]


def test_the_epoch_of_the_reference(reference):
    spec = reference[0]["build_epoch_counts"]
    labelled = frames_called("f", spec["images"])
    table = [*distinct(labelled, 4, 2), []]
    for number in range(5):
        items = stream(labelled, table, share=spec["pct"]).epoch(number)
        assert len(items) == spec["reference_list_length"]
        classes, anywhere = split(items, table)
        assert classes == dict.fromkeys(range(4), spec["per_class"])
        assert anywhere.total() == spec["random"] and max(anywhere.values()) == 1


def test_few_entries_repeat_evenly():
    labelled = frames_called("f", 40)
    table = [points_of(labelled[:1], 3), distinct(labelled, 2, 1)[1]]
    items = stream(labelled, table, share=0.8).epoch(0)  # 16 of each class
    counts = Counter((f.frame, *p) for f, p in items if p)
    assert sorted(counts[point] for point in table[0]) == [5, 5, 6]
    assert Counter(counts.values())[1] == 16


def test_of_very_few_frames_each_class_still_comes():
    """2 frames and 5 classes: with the reference's rule int(2 * 0.5 / 5) = 0 there would be no centroid at all."""
    labelled = frames_called("f", 2)
    table = distinct(labelled, 5, 3)
    items = stream(labelled, table).epoch(0)
    classes, anywhere = split(items, table)
    assert classes == dict.fromkeys(range(5), 1)
    assert sorted(anywhere.values()) == [2, 3]


def test_a_share_of_0_is_plain_and_of_1_has_nothing_else():
    labelled = frames_called("f", 10)
    table = distinct(labelled, 5, 1)
    plain = stream(labelled, [[] for _ in range(5)], share=0.0).epoch(0)
    assert sorted(f.frame for f, p in plain if p is None) == sorted(f.frame for f in labelled)
    classes, anywhere = split(stream(labelled, table, share=1.0).epoch(0), table)
    assert classes == dict.fromkeys(range(5), 2) and not anywhere


def test_frames_that_do_not_train_are_not_drawn():
    """A table is made of all labelled frames; a run trains on a subset."""
    labelled = frames_called("f", 20)
    items = drawn(stream(labelled[:8], distinct(labelled, 3, 2)), 20)
    assert {f.frame for f, _ in items} == {f"f{i}" for i in range(8)}


# ---- propagated and coarse frames, and the cut


@pytest.fixture
def roles():
    labelled, propagated, coarse = frames_called("l", 12), frames_called("p", 18), frames_called("c", 9)
    everything = [*labelled, *propagated, *coarse]
    return labelled, {"propagated": propagated, "coarse": coarse}, distinct(everything, 3, 1)


def kinds(items):
    return Counter((f.frame[0], p is not None) for f, p in items)


def drawn(s, epochs, joined=True):
    return [item for number in range(epochs) for item in s.epoch(number, joined)]


def test_roles(roles):
    labelled, others, table = roles
    s = stream(labelled, table, **others, boost=[2])
    items = drawn(s, 40)
    assert len(items) == 40 * 30  # N: labelled and propagated
    owner = {point: c for c, points in enumerate(table) for point in points}
    at = Counter((f.frame[0], owner[f.frame, *p]) for f, p in items if p)
    assert set(at) == {(r, c) for r in "lp" for c in range(3)} | {("c", 2)}
    anywhere = Counter(f.frame[0] for f, p in items if not p)
    assert set(anywhere) == {"l", "p"} and abs(anywhere["p"] / anywhere["l"] - 1.5) < 0.2
    assert sum(n for (_, c), n in at.items() if c == 1) == 40 * 5  # int(30 * 0.5 / 3)


def test_coarse_frames_without_a_boosted_class_are_not_drawn(roles):
    labelled, others, table = roles
    assert {f.frame[0] for f, _ in drawn(stream(labelled, table, **others), 20)} == {"l", "p"}


def test_propagated_frames_at_their_centroids_alone(roles):
    labelled, others, table = roles
    items = drawn(stream(labelled, table, **others, boost=[0], random_from="labelled"), 30)
    assert len(items) == 30 * 12
    assert set(kinds(items)) == {("l", False), ("l", True), ("p", True), ("c", True)}


def test_after_the_cut_only_labelled_frames_remain(roles):
    """The reference's lists are shared: there, centroids of propagated and coarse frames go on being drawn."""
    labelled, others, table = roles
    s = stream(labelled, table, **others, boost=[0, 1, 2], cut=7)
    steps = [s.picks(step) for step in range(60)]
    before, after = ([item for step in part for item in step] for part in (steps[:7], steps[7:]))
    assert {role for role, _ in kinds(before)} == {"l", "p", "c"}
    assert set(kinds(after)) == {("l", True), ("l", False)}
    fine = s.epoch(0, joined=False)
    assert len(fine) == 12 and [item for step in steps[7:10] for item in step] == fine
    uncut = stream(labelled, table, **others, boost=[0, 1, 2])
    assert steps[:7] == [uncut.picks(step) for step in range(7)], "the cut changes what is shown before it"
    assert [r for r, _ in kinds(drawn(stream(labelled, table, **others, cut=0), 1, joined=False))] in (
        ["l"],
        ["l", "l"],
    )


# ---- a function of seed and step


def test_batches_go_through_the_epochs_and_drop_the_remainder():
    labelled = frames_called("f", 22)
    s = stream(labelled, distinct(labelled, 5, 1), batch_size=4)
    for number in range(3):
        shown = [item for step in range(5 * number, 5 * number + 5) for item in s.picks(step)]
        assert shown == s.epoch(number)[:20] and len(s.epoch(number)) == 22
    small = stream(labelled[:1], distinct(labelled, 2, 1), batch_size=7)  # an epoch of 4
    shown = [item for step in range(4) for item in small.picks(step)]
    assert shown == [item for number in range(7) for item in small.epoch(number)]


def test_everything_is_a_function_of_seed_name_and_step():
    labelled = frames_called("f", 30)
    table = distinct(labelled, 4, 3)
    first = [stream(labelled, table).picks(step) for step in range(40)]
    s = stream(labelled, table)
    for step in (39, 0, 17, 39, 8, 25):  # in any order, twice, whatever the global generators do
        np.random.seed(step)
        assert s.picks(step) == first[step]
        assert [s.frames[i].frame for i in s.order(step)] == [f.frame for f, _ in first[step]]
    assert stream(labelled, table, seed=2).picks(0) != first[0]
    assert stream(labelled, table, name="other").picks(0) != first[0]
    assert stream(labelled, table).epoch(0) != stream(labelled, table).epoch(1)


# ---- windows


def test_a_window_contains_its_point_and_is_uniform():
    """Every place that contains the point, and no other, is drawn; all alike (chi-square, 99.9 % below 24.3)."""
    places = Counter()
    for seed in range(900):
        w = CentredWindow((50, 40), (10, 3), np.random.default_rng(seed), point=(23, 17))
        assert w.x <= 23 < w.x + 10 and w.y <= 17 < w.y + 3
        places[w.x] += 1
    assert sorted(places) == list(range(14, 24))
    assert sum((n - 90) ** 2 / 90 for n in places.values()) < 27.9


@pytest.mark.parametrize("point", [(0, 0), (49, 39), (3, 38), (25, 20)])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.7, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_point_is_in_the_picture_that_is_shown(point, scale, flip):
    """Marked in the picture and looked for in the window: at borders, resized, mirrored, and where it is padded."""
    picture = np.zeros((40, 50), np.float32)
    picture[point[1], point[0]] = 255
    for crop in [(12, 8), (50, 40), (70, 60)]:
        for seed in range(15):
            w = CentredWindow((50, 40), crop, np.random.default_rng(seed), flip, (scale, scale), point)
            shown = w(picture)
            assert shown.shape == crop[::-1]
            assert w.x >= 0 and w.y >= 0
            assert w.x <= max(0, w.resized[0] - crop[0]) and w.y <= max(0, w.resized[1] - crop[1])
            if scale >= 1:
                assert shown.max() > 60
            else:  # bilinear shrinking may step over a single pixel
                x, y = (int(p * scale) for p in point)
                x = w.resized[0] - 1 - x if flip else x
                assert 0 <= x - w.x < crop[0] and 0 <= y - w.y < crop[1]


def test_without_a_point_it_is_the_plain_window():
    a, b = (kind((50, 40), (20, 10), np.random.default_rng(3), 0.5, (0.5, 2.0)) for kind in (Window, CentredWindow))
    assert (a.x, a.y, a.flip, a.resized) == (b.x, b.y, b.flip, b.resized)


def test_samples_show_the_class_that_was_drawn(tmp_path):
    """Real pictures: crops around centroids hold the class far more often than crops anywhere."""
    frames = write_prepared(tmp_path, size=(64, 32)).select("train")
    label = np.zeros((32, 64), np.uint8)
    label[20:24, 40:44] = 2
    for frame in frames:
        cv2.imwrite(str(frame.label), label)
    store = FrameStore()
    table = centroid_table(frames, store.label, 3, 16)
    assert table[1] == [] and len(table[2]) == len(frames)
    s = ClassUniformStream("labelled", frames, 4, 1, CentredSamples(store, (12, 8), 0.5), table, share=1.0)
    batch = s[0]
    assert batch["image"].shape == (4, 3, 8, 12) and batch["label"].dtype == torch.uint8
    held = {True: [], False: []}
    for step in range(12):
        for (frame, point), shown in zip(s.picks(step), s[step]["label"], strict=True):
            held[point is not None and (frame.frame, *point) in table[2]].append(bool((shown == 2).any()))
    assert all(held[True]) and len(held[True]) > 8
    assert np.mean(held[False]) < 0.7
    part = s.part(3, slice(2, 4))
    assert torch.equal(part["image"], s[3]["image"][2:]) and torch.equal(part["label"], s[3]["label"][2:])


def test_samples_without_a_point_are_the_plain_ones(tmp_path):
    frame = write_prepared(tmp_path, size=(64, 32)).select("train")[0]
    for seed in range(5):
        ours, plain = (
            kind(FrameStore(), (20, 16), 0.5, (0.6, 1.5))(frame, np.random.default_rng(seed))
            for kind in (CentredSamples, LabelledSamples)
        )
        assert all((ours[k] == plain[k]).all() for k in ("image", "label"))


def test_the_loaders_workers_do_not_matter(tmp_path):
    """Through the shared loop's loader, byte for byte, beside another stream."""
    frames = write_prepared(tmp_path, size=(64, 32)).select("train")
    store = FrameStore()
    table = centroid_table(frames, store.label, 3, 16)
    s = ClassUniformStream("labelled", frames, 2, 1, CentredSamples(store, (24, 16), 0.5, (0.8, 1.4)), table, cut=3)
    other = Stream("plain", frames, 2, 1, LabelledSamples(store, (24, 16), 0.5))
    expected = list(batches([s, other], 1, 6, workers=0))
    for found, wanted in zip(batches([s, other], 1, 6, workers=2), expected, strict=True):
        for name in ("labelled", "plain"):
            assert all(torch.equal(found[name][k], wanted[name][k]) for k in ("image", "label"))


# ---- bad input


def test_class_numbers():
    assert class_numbers(["car", 0, "sky", 1], NAMES, "strict") == (0, 1, 2)
    assert class_numbers([], NAMES, "strict") == ()


LABELLED = frames_called("f", 4)
TABLE = distinct(LABELLED, 3, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: centroids(np.full((8, 8), 7, np.uint8), 3, 4),
            r"label 7 is neither a class \(0..2\) nor void \(255\)",
        ),
        (lambda: centroids(np.zeros((8, 8), np.uint8), 3, 4, void=2), r"void id 2 is not in 3\.\.255"),
        (lambda: centroids(np.zeros((8, 8), np.uint8), 3, 4, void=300), r"void id 300 is not in 3\.\.255"),
        (lambda: centroids(np.zeros((8, 8), np.uint8), 3, 0), "tiles of 0 pixels"),
        (lambda: class_numbers(["cars"], NAMES, "data.boost"), "data.boost: unknown class 'cars'; did you mean 'car'"),
        (lambda: class_numbers([5], NAMES, "strict"), "strict: unknown class 5; give names, or numbers from 0 to 4"),
        (lambda: class_numbers([True], NAMES, "strict"), "unknown class True"),
        (lambda: stream([], TABLE), "labelled stream has no frames"),
        (lambda: stream([], TABLE, coarse=LABELLED), "labelled stream has no labelled frames"),
        (lambda: stream(LABELLED, [[], [], []]), "no centroid for any of the 4 frames of the labelled stream"),
        (lambda: stream(frames_called("x", 4), TABLE), "no centroid for any of the 4 frames"),
        (
            lambda: stream(frames_called("x", 4), TABLE, propagated=LABELLED, cut=5),
            "no centroid for any of the 4 frames",
        ),
        (lambda: stream(LABELLED, TABLE, boost=[3]), r"boosted class 3 is none of 0\.\.2"),
        (lambda: stream(LABELLED, TABLE, propagated=LABELLED[2:3]), "has the frame f2 twice"),
        (lambda: stream(LABELLED, TABLE, share=1.5), "share 1.5; give 0, or a number from 0.01 to 1"),
        (lambda: stream(LABELLED, TABLE, share=float("nan")), "share nan"),
        (lambda: stream(LABELLED, TABLE, cut=-1), "cut at step -1"),
        (lambda: stream(LABELLED, TABLE, random_from="coarse"), "no frames 'coarse'; take all or labelled"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no table of centroids .*; run the stage that makes it"),
        ("", "no table of centroids"),
        ("class,frame\nroad,f\n", "no table of centroids"),
        ("class,frame,x,y\nroad,f,1\n", "line 2: malformed row"),
        ("class,frame,x,y\nroad,f,1,2\nroad,f,-1,2\n", "line 3: malformed row"),
        ("class,frame,x,y\ntram,f,1,2\n", "line 2: unknown class 'tram'; the table belongs to other classes"),
        (b"\xff\xfe\x00", "no table of centroids"),
    ],
)
def test_a_bad_table_is_told(tmp_path, text, message):
    path = tmp_path / "centroids.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        read_centroids(path, NAMES)
    assert "\n" not in str(error.value)


def test_every_bad_mask_is_told(tmp_path):
    frames = write_prepared(tmp_path, size=(64, 32), unlabelled=1).select("train")
    cv2.imwrite(str(frames[1].label), np.full((32, 64), 9, np.uint8))
    frames[2].label.write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        centroid_table(frames, FrameStore().label, 3, 16)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(str(frames[1].label)) and "label 9 is neither a class" in lines[0]
    assert frames[2].label.name in lines[1] and "no mask" in lines[2]


def test_masks_and_tables_of_another_size_are_told(tmp_path):
    frame = write_prepared(tmp_path, size=(64, 32)).select("train")[0]
    samples = CentredSamples(FrameStore(), (16, 16), 0.0)
    for point in [(64, 0), (3, 32)]:
        with pytest.raises(UserError, match=rf"{frame.frame}: a centroid at \({point[0]}, {point[1]}\)"):
            samples(frame, np.random.default_rng(0), point)
    small = replace(frame, label=tmp_path / "small.png")
    cv2.imwrite(str(small.label), np.zeros((16, 32), np.uint8))
    with pytest.raises(UserError, match=r"small\.png: a mask of 32x16 for a picture of 64x32"):
        samples(small, np.random.default_rng(0))


def test_points_on_a_flat_generator():
    """The lowest and the highest draw are the places farthest from each other that contain the point."""
    ends = [
        CentredWindow((50, 40), (10, 8), SimpleNamespace(random=lambda n: np.zeros(n), integers=pick), point=(20, 20))
        for pick in (lambda low, high: low, lambda low, high: high - 1)
    ]
    assert [(w.x, w.y) for w in ends] == [(11, 13), (20, 20)]
