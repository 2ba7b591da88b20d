"""Selection algorithms against the reference's values (three_ways.md, section 11) and plain versions."""

import json
import math

import numpy as np
import pytest
import torch

from helpers import rand, randn
from semivid.depth.disparity import encode_disparity, normalise_disparity, read_disparity, write_disparity
from semivid.errors import UserError
from semivid.selection import diversity, entropy, published, uncertainty
from semivid.selection import random as random_selection
from semivid.selection.lists import read_selection, write_selection


@pytest.fixture(scope="module")
def expected(data_dir):
    return json.loads((data_dir / "three_ways_selection.json").read_text())


@pytest.fixture(scope="module")
def features():
    maps = [randn((1, 6, 4, 8), 200 + i) * (1 + 0.1 * i) + 0.2 * (i % 5) for i in range(40)]
    return torch.cat(maps).numpy()


@pytest.fixture(scope="module")
def distance(features):
    return diversity.distance_matrix(diversity.normalise_features(features))


def to_ids(positions):
    return [3 * i + 7 for i in positions]


# ---- diversity


def test_distances_as_the_reference(distance, expected):
    np.testing.assert_allclose(distance[0, 1:5], expected["diversity"]["D[0,1:5]"], rtol=1e-6)
    assert distance.mean() == pytest.approx(expected["diversity"]["D mean"], rel=1e-6)


def test_normalisation_is_per_channel_with_unbiased_std(features):
    normalised = diversity.normalise_features(features)
    flat = torch.from_numpy(features).transpose(0, 1).flatten(1)
    want = (torch.from_numpy(features) - flat.mean(1).view(1, -1, 1, 1)) / flat.std(1).view(1, -1, 1, 1)
    np.testing.assert_allclose(normalised, want.numpy(), atol=2e-6)
    features = features.copy()
    features[:, 2] = 0.1  # a dead channel does not count, and does not divide by zero
    assert (diversity.normalise_features(features)[:, 2] == 0).all()
    features[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 frames are not finite"):
        diversity.normalise_features(features)


@pytest.mark.parametrize("block", [7, 512])
def test_distance_matrix_is_exact(block):
    points = np.random.default_rng(0).standard_normal((23, 4, 5, 2)).astype(np.float32) + 30
    points[17] = points[4]  # equal frames
    points[18] = points[4] + 1e-4  # nearly equal ones, where the fast formula alone would lose its digits
    flat = points.reshape(23, -1).astype(np.float64)
    naive = np.sqrt(((flat[:, None] - flat[None]) ** 2).sum(-1))
    fast = diversity.distance_matrix(points, block=block)
    np.testing.assert_allclose(fast, naive, rtol=1e-9, atol=0)
    assert (fast == fast.T).all() and (np.diag(fast) == 0).all() and fast[4, 17] == 0


def test_farthest_point_as_the_reference(distance, expected):
    want = expected["diversity"]
    added, distances = diversity.farthest_point(distance, [5], want["add"])
    assert to_ids(added) == want["selected ids in order"]
    np.testing.assert_allclose(distances, want["their min distances"], rtol=1e-6)


def test_diversity_plus_uncertainty_as_the_reference(distance, expected):
    want = expected["diversity_plus_uncertainty"]
    chosen = [5, *diversity.farthest_point(distance, [5], 9)[0]]
    error = 0.002 + 0.01 * rand((40,), 300).numpy()
    combined = diversity.add_uncertainty(distance, error, chosen, want["bias weight"])
    assert (combined[:, chosen] == distance[:, chosen]).all() and (np.diag(combined) == 0).all()
    added, distances = diversity.farthest_point(combined, chosen, want["add"])
    assert to_ids(added) == want["selected ids in order"]
    np.testing.assert_allclose(distances, want["their min distances"], rtol=1e-6)
    plain = diversity.farthest_point(diversity.add_uncertainty(distance, error, chosen, 0), chosen, 10)[0]
    assert to_ids(plain) == want["for contrast, bias 0"]

    candidates = [i for i in range(40) if i not in chosen]
    best = uncertainty.highest(error, candidates, expected["uncertainty_only"]["add"])
    assert to_ids(best) == expected["uncertainty_only"]["selected ids in order (largest first)"]


def test_farthest_point_agrees_with_a_plain_loop():
    matrix = np.random.default_rng(1).integers(0, 6, (30, 30)).astype(float)  # many ties, not symmetric
    chosen = [3, 9]
    for want in diversity.farthest_point(matrix, [3, 9], 28)[0]:
        values = [-1 if j in chosen else min(matrix[i, j] for i in chosen) for j in range(30)]
        assert want == values.index(max(values))
        chosen.append(want)
    assert sorted(chosen) == list(range(30))


def test_farthest_point_never_repeats_a_frame_and_needs_few_frames():
    added, distances = diversity.farthest_point(np.zeros((3, 3)), [1], 2)  # equal frames (defects 14, 15)
    assert added == [0, 2] and distances == [0, 0]
    with pytest.raises(UserError, match="only 1 of 3 are left"):
        diversity.farthest_point(np.zeros((3, 3)), [0, 1], 2)
    with pytest.raises(ValueError):
        diversity.farthest_point(np.zeros((3, 3)), [], 2)


@pytest.mark.parametrize("size", [(64, 128), (13, 19), (4, 8), (3, 5)])
def test_pooling_is_adaptive_averaging(size):
    maps = randn((2, 3, *size), 1)
    want = torch.nn.functional.adaptive_avg_pool2d(maps, (4, 8))
    np.testing.assert_allclose(diversity.pool_features(maps.numpy()), want.numpy(), atol=1e-6)
    assert diversity.pool_features(maps[0].numpy()).shape == (3, 4, 8)


# ---- uncertainty and entropy


def test_depth_error_as_the_reference(expected):
    want = expected["depth_error"]
    student = rand((32, 64), 310).numpy()
    coarse = rand((1, 1, 4, 8), 311)
    teacher = torch.nn.functional.interpolate(coarse, (32, 64), mode="bilinear", align_corners=False)[0, 0]
    teacher = normalise_disparity(teacher.numpy())
    trusted = uncertainty.trusted_pixels(teacher)
    assert np.count_nonzero(teacher < 0.07) == want["pixels below 0.07"]
    first = want["first zeroed row"]
    assert not trusted[first:].any() and trusted[first - 1].any()
    below = teacher.copy()  # the dilated mask by itself: a plain loop over neighbourhoods
    dilated = np.array(
        [[(below[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] < 0.07).any() for x in range(64)] for y in range(32)]
    )
    assert dilated.sum() == want["dilated mask pixels"]
    assert (trusted[:first] == ~dilated[:first]).all()
    assert np.abs(np.log1p(student) - np.log1p(teacher)).mean() == pytest.approx(want["mean before masking"], rel=1e-5)
    assert uncertainty.depth_error(student, teacher) == pytest.approx(want["error"], rel=1e-5)
    with pytest.raises(UserError, match="differ in size"):
        uncertainty.depth_error(student[:-1], teacher)


def test_highest_is_stable_and_checked():
    scores = np.array([1.0, 3.0, 3.0, np.nan, 3.0, 2.0])
    assert uncertainty.highest(scores, [5, 4, 2, 1, 0], 4) == [1, 2, 4, 5]
    with pytest.raises(UserError, match="1 frames are not finite"):
        uncertainty.highest(scores, [2, 3], 1)
    with pytest.raises(UserError, match="only 2 are left"):
        uncertainty.highest(scores, [2, 4], 3)


def test_entropy_as_the_reference(data_dir):
    want = json.loads((data_dir / "three_ways_depth_losses.json").read_text())["pixel_wise_entropy"]
    probabilities = randn((2, 19, 8, 12), 60).softmax(dim=1)
    pixels = entropy.pixel_entropy(probabilities)
    np.testing.assert_allclose(pixels[0, 0, :4].numpy(), want["[0,0,:4]"], rtol=1e-5)
    scores = entropy.entropy_score(probabilities)
    assert scores.shape == (2,) and scores.mean().item() == pytest.approx(want["mean"], rel=1e-5)
    certain = torch.zeros(1, 3, 2, 2)
    certain[:, 1] = 1
    assert entropy.entropy_score(certain).item() == 0
    assert entropy.entropy_score(torch.full((1, 3, 2, 2), 1 / 3)).item() == pytest.approx(1)


# ---- random and stored lists


@pytest.mark.parametrize("seed", [7, 25, 42])
def test_random_subsets_as_the_reference(seed, expected):
    want = expected["random_subsets"][str(seed)]
    assert random_selection.random_order(2975, seed)[:6] == want["permutation[:6]"]
    for labels, total in want["sum of first n ids"].items():
        assert sum(random_selection.random_subset(2975, seed, int(labels))) == total
    assert sorted(random_selection.random_subset(2975, seed, 100))[:5] == want["sorted first 5 for n=100"]


def test_partition_as_the_reference(expected):
    want = expected["restrict_to_subset"]
    labelled, rest = random_selection.partition(want["N"], random_selection.random_subset(20, 3, 6))
    assert labelled + rest == want["random n=6 seed=3, both parts, idx in order"]
    assert [True] * len(labelled) + [False] * len(rest) == want["labeled flags"]
    assert random_selection.partition(20, [9, 2, 5])[0] == want["fixed [9,2,5], labelled only"]
    with pytest.raises(UserError, match="cannot choose 21 of 20"):
        random_selection.random_subset(20, 3, 21)


@pytest.fixture(scope="module")
def splits(data_dir):
    return data_dir.parent.parent / "splits"


def test_stored_lists_as_the_reference(expected, splits):
    train = (splits / "cityscapes_train.txt").read_text().split()
    position = {name: i for i, name in enumerate(train)}
    assert len(train) == 2975
    lists = {}
    for criterion, by_seed in expected["stored_lists"]["cityscapes"].items():
        for run_seed, list_seed in published.LIST_SEEDS.items():
            names = published.published_order(splits / "published", "cityscapes", criterion, run_seed, train)
            want = by_seed[str(list_seed)]
            assert len(names) == want["count"] == len(set(names))
            assert [position[name] for name in names[:3]] == want["first 3"]
            lists[criterion, list_seed] = [position[name] for name in names]
    for pair, count in expected["stored_lists"]["overlap at 100 labels, cityscapes seed 42"].items():
        a, b = pair.split("&")
        assert len({*lists[a, 42][:100]} & {*lists[b, 42][:100]}) == count
    for seed in (42, 43, 44):
        permutation = random_selection.random_order(2975, seed)
        assert lists["us", seed][:25] == lists["ent", seed][:25] == permutation[:25]
        assert lists["ds", seed][:25] == lists["ds_us", seed][:25] and lists["ds", seed][0] == permutation[0]
    for run_seed, list_seed in published.LIST_SEEDS.items():
        names = read_selection(splits / "published" / f"camvid_ds_us_seed{list_seed}.txt")
        assert len(names) == expected["stored_lists"]["camvid"]["ds_us"][str(list_seed)]["count"]
        assert names == published.published_order(splits / "published", "camvid", "ds_us", run_seed, names)


def test_camvid_lists_name_real_frames(expected, splits, shared):
    train = sorted(file.stem for file in (shared / "data" / "camvid" / "train").iterdir())
    for run_seed, list_seed in published.LIST_SEEDS.items():
        names = published.published_order(splits / "published", "camvid", "ds_us", run_seed, train)
        first = expected["stored_lists"]["camvid"]["ds_us"][str(list_seed)]["first 3"]
        assert [train.index(name) for name in names[:3]] == first


def test_published_lists_are_checked(tmp_path):
    write_selection(tmp_path / "camvid_ds_us_seed42.txt", ["a", "b", "c"])
    with pytest.raises(UserError, match="no published list belongs to seed 3"):
        published.published_order(tmp_path, "camvid", "ds_us", 3, "abc")
    with pytest.raises(UserError, match=r"lists there: camvid_ds_us_seed42"):
        published.published_order(tmp_path, "camvid", "us", 7, "abc")
    with pytest.raises(
        UserError, match=r"2 of 3 frames are not among the training frames to choose from \(a, c\)"
    ) as error:
        published.published_order(tmp_path, "camvid", "ds_us", 7, ["b"])
    assert "\n" not in str(error.value)


def test_selection_files(tmp_path):
    path = tmp_path / "deep" / "list.txt"
    names = [f"f{i}" for i in (5, 2, 9)]
    write_selection(path, names)
    assert path.read_bytes() == b"f5\nf2\nf9\n" and read_selection(path, names) == names
    assert [file.name for file in path.parent.iterdir()] == ["list.txt"]
    with pytest.raises(UserError, match="named twice"):
        write_selection(path, ["a", "b", "a"])
    with pytest.raises(UserError, match="not among the training frames"):
        write_selection(path, ["a"], known=["b"])
    with pytest.raises(UserError, match="at least one"):
        write_selection(path, [])
    assert read_selection(path) == names  # failures leave the old file
    path.write_text("a\n\nb\na\n")
    with pytest.raises(UserError, match="named twice"):
        read_selection(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="names no frame"):
        read_selection(path)
    with pytest.raises(UserError, match="no list"):
        read_selection(tmp_path / "absent.txt")


# ---- disparity files


def test_disparity_file_as_the_reference(data_dir, tmp_path):
    want = json.loads((data_dir / "three_ways_preprocess.json").read_text())["depth_png"]
    disparity = rand((1, 8, 16), 402)[0].numpy()
    stored = encode_disparity(disparity, bits=8)
    assert stored.sum() == want["sum"] and stored[0, :8].tolist() == want["[0,:8]"]
    write_disparity(tmp_path / "d.png", disparity, bits=8)
    np.testing.assert_allclose(read_disparity(tmp_path / "d.png")[0, :3], want["read back [0,:3]"], atol=1e-8)
    assert encode_disparity(np.array([[0, 0.5, 0.9999, 1]]), bits=8).tolist() == [[0, 127, 254, 255]]


def test_disparity_files_of_16_bits(tmp_path):
    disparity = 3 + 5 * rand((8, 16), 402).numpy()
    write_disparity(tmp_path / "sub" / "d.png", disparity)
    back = read_disparity(tmp_path / "sub" / "d.png")
    assert back.dtype == np.float32 and back.min() == 0 and back.max() == 1
    np.testing.assert_allclose(back, normalise_disparity(disparity), atol=0.51 / 65535)
    assert (encode_disparity(np.full((2, 3), 0.4)) == 0).all()  # constant: no division by zero (defect 12)
    with pytest.raises(UserError, match="not finite"):
        encode_disparity(np.array([[0, math.inf]]))
    with pytest.raises(UserError, match="8 or 16"):
        encode_disparity(disparity, bits=12)
    with pytest.raises(UserError, match="cannot read"):
        read_disparity(tmp_path / "absent.png")
