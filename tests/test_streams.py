"""Streams of batches and random windows: what comes when, and that nothing but the step decides it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semivid.data.cameras import Camera
from semivid.data.index import VOID, Frame
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Stream, Window, batches, check_crop
from semivid.errors import UserError
from small import write_prepared

NO_DRAW = np.random.default_rng(0)


def numbered(count):
    return [Frame(f"f{i}", "train", "s", i, None, "", None) for i in range(count)]


def number_and_draw(frame, rng):
    return {"frame": np.int64(frame.position), "draw": rng.random(3)}


def stream(count, batch_size, seed=1, name="labelled"):
    return Stream(name, numbered(count), batch_size, seed, number_and_draw)


def fixed(*values):
    """A generator whose first draws are `values` (scale, x, y, flip)."""
    return SimpleNamespace(random=lambda n: np.array(values))


# ---- order


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (7, 7), (5, 1)])
def test_each_epoch_shows_no_frame_twice_and_drops_the_remainder(count, batch):
    s = stream(count, batch)
    steps = count // batch
    epochs = [[i for step in range(e * steps, (e + 1) * steps) for i in s.order(step)] for e in range(20)]
    for epoch in epochs:
        assert len(epoch) == steps * batch and len(set(epoch)) == len(epoch)
    assert {i for epoch in epochs for i in epoch} == set(range(count)), "some frame is dropped for ever"
    assert len({tuple(e) for e in epochs}) > 1 or count == 1, "every epoch has the same order"


@pytest.mark.parametrize(("count", "batch"), [(3, 4), (1, 4), (2, 5)])
def test_fewer_frames_than_a_batch_follow_each_other_without_a_gap(count, batch):
    s = stream(count, batch)
    flat = [i for step in range(count * 3) for i in s.order(step)]
    assert len(flat) == count * 3 * batch
    for start in range(0, len(flat), count):
        assert sorted(flat[start : start + count]) == list(range(count))


def test_an_epoch_is_shuffled_without_preference():
    """Each frame is as often first as any other (chi-square, 200 seeds: 99.9 % below 27.9 for 9 degrees)."""
    first = [stream(10, 2, seed).order(0)[0] for seed in range(200)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 20) ** 2 / 20).sum() < 27.9


def test_order_and_draws_depend_on_seed_and_name():
    a, same, other_seed, other_name = stream(9, 4), stream(9, 4), stream(9, 4, seed=2), stream(9, 4, name="video")
    orders = [[s.order(step) for step in range(6)] for s in (a, same, other_seed, other_name)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]
    assert torch.equal(a[3]["draw"], same[3]["draw"])
    assert not torch.equal(a[3]["draw"], other_seed[3]["draw"])
    assert not torch.equal(a[3]["draw"], other_name[3]["draw"])


def test_every_slot_of_every_step_has_draws_of_its_own():
    s = stream(1, 3)
    draws = torch.cat([s[step]["draw"] for step in range(4)])
    assert len({tuple(d) for d in draws.tolist()}) == 12


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(UserError, match="labelled stream has no frames"):
        stream(0, 2)


# ---- batches


def test_batch_k_depends_on_nothing_but_k():
    reference = {k: stream(7, 2)[k] for k in range(8)}
    s = stream(7, 2)
    for k in (5, 0, 7, 5, 1):  # in any order, twice, and whatever the global generators do between
        torch.manual_seed(k)
        np.random.seed(k)
        batch = s[k]
        assert torch.equal(batch["frame"], reference[k]["frame"])
        assert torch.equal(batch["draw"], reference[k]["draw"])


def test_batches_start_anywhere_and_name_their_streams():
    two = [stream(7, 2), stream(5, 3, name="video")]
    whole = list(batches(two, 0, 6, workers=0))
    assert len(whole) == 6 and set(whole[0]) == {"labelled", "video"}
    assert whole[0]["labelled"]["frame"].shape == (2,) and whole[0]["video"]["draw"].shape == (3, 3)
    rest = list(batches(two, 4, 6, workers=0))
    assert len(rest) == 2
    for a, b in zip(whole[4:], rest, strict=True):
        for name in a:
            assert all(torch.equal(a[name][k], b[name][k]) for k in a[name])
    assert list(batches(two, 6, 6, workers=0)) == []


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    """Real pictures through a store, windows and flips: byte for byte the same from 0, 1 and 2 processes."""
    frames = write_prepared(tmp_path, size=(24, 16)).select("train")
    samples = LabelledSamples(FrameStore(), (16, 16), flip=0.5, scale=(0.7, 1.5))
    s = Stream("labelled", frames, 3, 1, samples)
    reference = list(batches([s], 1, 7, workers=0))
    assert reference[0]["labelled"]["image"].shape == (3, 3, 16, 16)
    for workers in (1, 2):
        for a, b in zip(reference, batches([s], 1, 7, workers), strict=True):
            for key in ("image", "label"):
                assert torch.equal(a["labelled"][key], b["labelled"][key])


# ---- windows


def test_a_window_is_the_cut_out_it_says(tmp_path):
    picture = np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3)
    window = Window((10, 6), (4, 3), fixed(0.0, 0.5, 0.5, 0.9), flip=0.5)
    assert (window.x, window.y, window.flip) == (3, 2, False)
    assert np.array_equal(window(picture), picture[2:5, 3:7])
    flipped = Window((10, 6), (4, 3), fixed(0.0, 0.5, 0.5, 0.1), flip=0.5)
    assert np.array_equal(flipped(picture), picture[:, ::-1][2:5, 3:7])
    assert np.array_equal(flipped(picture[..., 0]), picture[:, ::-1, 0][2:5, 3:7])


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_and_its_camera_agree(flip):
    """A point of the scene lies on the marked pixel, and still does after the window: flip first, then crop.

    A flipped scene is mirrored in x, and Camera.flip counts pixel edges (cx -> W - cx): half a pixel and one whole.
    """
    width, height = 20, 12
    camera = Camera.of_source(30.0, 40.0, 9.0, 6.5, width, height)
    u, v = 11, 7
    ray = np.linalg.inv(camera.matrix()) @ (u + 0.5, v + 0.5, 1)  # through the middle of the pixel, edges at integers
    picture = np.zeros((height, width), np.uint8)
    picture[v, u] = 255
    for u_x, u_y in ((0.0, 0.0), (0.3, 0.9), (0.6, 0.2)):
        window = Window((width, height), (12, 8), fixed(0.0, u_x, u_y, 0.0 if flip else 1.0), flip=0.5)
        k = camera.window(window.x, window.y, 12, 8, window.flip).matrix()
        seen = k @ (ray * ((-1, 1, 1) if flip else (1, 1, 1)))
        (row, column), *more = np.argwhere(window(picture))
        assert not more
        assert seen[:2] == pytest.approx((column + 0.5, row + 0.5))


def test_pictures_of_a_sample_get_one_window():
    rng = np.random.default_rng(3)
    left, right = np.indices((9, 15)).astype(np.uint8)
    window = Window((15, 9), (7, 5), rng, flip=0.5)
    rows, columns = window(left), window(right)
    assert rows.shape == columns.shape == (5, 7)
    assert np.array_equal(rows[:, 0], np.arange(window.y, window.y + 5))
    expected = np.arange(window.x, window.x + 7)
    assert np.array_equal(columns[0], 14 - expected if window.flip else expected)


def test_all_offsets_are_equally_likely_and_the_last_occurs():
    offsets = [
        (w.x, w.y)
        for seed in range(600)
        for w in [Window((12, 6), (8, 4), np.random.default_rng(seed))]
    ]  # fmt: skip
    for values, largest in ((0, 4), (1, 2)):
        counts = np.bincount([o[values] for o in offsets])
        assert len(counts) == largest + 1
        expected = 600 / (largest + 1)
        # chi-square with 4 or 2 degrees of freedom: 99.9 % below 18.5 and 13.8
        assert ((counts - expected) ** 2 / expected).sum() < (18.5 if largest == 4 else 13.8)


def test_the_largest_draw_stays_inside():
    window = Window((12, 6), (8, 4), fixed(0.5, np.nextafter(1, 0), np.nextafter(1, 0), 0.5))
    assert (window.x, window.y) == (4, 2)


@pytest.mark.parametrize(("flip", "share"), [(0.0, 0), (0.5, 300), (1.0, 600)])
def test_flips_are_as_frequent_as_asked(flip, share):
    flips = sum(Window((8, 8), (8, 8), np.random.default_rng(seed), flip).flip for seed in range(600))
    assert abs(flips - share) <= (50 if flip == 0.5 else 0)


def test_settings_do_not_shift_each_others_draws():
    plain, scaled = (
        Window((40, 30), (10, 10), np.random.default_rng(5), flip, scale)
        for flip, scale in ((0.0, (1.0, 1.0)), (0.9, (1.0, 1.0)))
    )
    assert (plain.x, plain.y) == (scaled.x, scaled.y)
    after = [np.random.default_rng(5) for _ in range(2)]
    Window((40, 30), (10, 10), after[0])
    Window((40, 30), (10, 10), after[1], 1.0, (0.5, 2.0))
    assert after[0].random() == after[1].random()


@pytest.mark.parametrize(("draw", "resized"), [(0.0, (20, 10)), (0.5, (50, 25)), (1.0, (80, 40))])
def test_scale_is_uniform_between_its_limits(draw, resized):
    window = Window((40, 20), (16, 8), fixed(draw, 0.0, 0.0, 1.0), scale=(0.5, 2.0))
    assert window.resized == resized
    picture = np.tile(np.linspace(0, 255, 40), (20, 1)).astype(np.uint8)
    out = window(picture)
    assert out.shape == (8, 16)
    # the ramp's slope tells the factor
    slope = 255 / 39 * 40 / resized[0]
    assert np.diff(out[4].astype(float))[2:-2].mean() == pytest.approx(slope, rel=0.1)


def test_labels_are_resized_without_mixing_classes():
    label = np.zeros((20, 40), np.uint8)
    label[:, 20:] = 18
    window = Window((40, 20), (32, 16), fixed(0.6, 0.5, 0.5, 0.0), flip=0.5, scale=(0.5, 2.0))
    assert set(np.unique(window(label, nearest=True, fill=VOID))) == {0, 18}
    assert len(np.unique(window(label))) > 2, "linear resizing would not mix: the test shows nothing"


def test_what_lies_beyond_the_border_is_void(tmp_path):
    """A frame scaled below the crop: its own pixels at the top left, padding elsewhere, alike in image and mask."""
    frame = write_prepared(tmp_path, size=(16, 8)).select("train")[0]
    samples = LabelledSamples(FrameStore(), (16, 8), flip=0.0, scale=(0.5, 0.5))
    sample = samples(frame, np.random.default_rng(0))
    assert sample["image"].shape == (3, 8, 16) and sample["label"].shape == (8, 16)
    inside = np.zeros((8, 16), bool)
    inside[:4, :8] = True
    assert (sample["label"][~inside] == VOID).all() and (sample["image"][:, ~inside] == 0).all()
    assert (sample["label"][inside] != VOID).any() and (sample["image"][:, inside] != 0).any()


def test_samples_are_rgb_bytes(tmp_path):
    import cv2

    frame = write_prepared(tmp_path, size=(16, 8)).select("train")[0]
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[..., 2] = 200  # red, in OpenCV's order
    cv2.imwrite(str(frame.image), picture)
    sample = LabelledSamples(FrameStore(), (16, 8), flip=0.0)(frame, NO_DRAW)
    assert sample["image"].dtype == sample["label"].dtype == np.uint8
    assert sample["image"][0].min() == 200 and sample["image"][1:].max() == 0


def test_batches_are_copies_of_what_the_store_keeps(tmp_path):
    """A method may change its batch in place; the next batch must not show it."""
    frames = write_prepared(tmp_path, size=(16, 8)).select("train")[:1]
    store = FrameStore()
    s = Stream("labelled", frames, 1, 1, LabelledSamples(store, (16, 8), flip=0.5))
    before = store.image(frames[0]).copy(), store.label(frames[0]).copy()
    for step in range(6):
        batch = s[step]
        batch["image"] += 1
        batch["label"] += 1
    assert np.array_equal(store.image(frames[0]), before[0]) and np.array_equal(store.label(frames[0]), before[1])


def test_check_crop():
    check_crop((64, 32), (64, 32), "train.crop")
    for crop in ((65, 32), (64, 33)):
        with pytest.raises(UserError, match=r"`train\.crop`.*larger than the frames"):
            check_crop(crop, (64, 32), "train.crop")


# ---- the store


def test_a_picture_is_read_once_while_the_budget_lasts(tmp_path, monkeypatch):
    import semivid.data.store as module

    frames = write_prepared(tmp_path, size=(64, 32)).select("train")
    reads = []
    real = module._read
    monkeypatch.setattr(module, "_read", lambda path, flags: reads.append(path.stem) or real(path, flags))
    roomy = FrameStore()
    for _ in range(2):
        for frame in frames:
            assert roomy.image(frame).shape == (32, 64, 3)
    assert reads == [f.frame for f in frames]

    reads.clear()
    narrow = FrameStore(budget_mb=0)
    for frame in [frames[0], frames[0], frames[1], frames[0]]:
        narrow.image(frame)
    assert reads == [frames[i].frame for i in (0, 1, 0)], "the last one is kept, the one before dropped"


def test_the_least_recently_used_is_dropped(tmp_path, monkeypatch):
    import semivid.data.store as module

    frames = write_prepared(tmp_path, size=(64, 32)).select("train")[:3]
    store = FrameStore()
    store._budget = 2 * 64 * 32 * 3
    reads = []
    real = module._read
    monkeypatch.setattr(module, "_read", lambda path, flags: reads.append(path.stem) or real(path, flags))
    for i in (0, 1, 0, 2, 0, 1):
        store.image(frames[i])
    assert reads == [frames[i].frame for i in (0, 1, 2, 1)]


def test_missing_masks_pictures_and_disparities_are_told(tmp_path):
    index = write_prepared(tmp_path, size=(16, 8), unlabelled=1, disparity=True)
    unlabelled = index.select("train", labelled=False)[0]
    with pytest.raises(UserError, match=f"{unlabelled.frame}: no mask"):
        FrameStore().label(unlabelled)
    with pytest.raises(UserError, match="no disparity folder"):
        FrameStore().disparity(unlabelled)
    assert FrameStore(disparity=tmp_path / "data/disparity").disparity(unlabelled).max() == 1.0
    unlabelled.image.write_bytes(b"")
    with pytest.raises(UserError, match=f"{unlabelled.image}: missing or not a picture"):
        FrameStore().image(unlabelled)
