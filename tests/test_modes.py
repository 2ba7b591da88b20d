"""Evaluation modes: the reference's windows and maps, and a slow plain implementation for networks of the project."""

import json
import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import fill_value, rand
from semivid.data.index import Frame
from semivid.errors import UserError
from semivid.evaluation.inference import flip_averaged, segment
from semivid.evaluation.modes import evaluation_mode, resized, sliding, windows
from semivid.evaluation.segmenter import Segmenter, labels_at
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.models.fcn8s import build_fcn8s
from semivid.models.multitask import build_multitask_net
from semivid.pipeline.params import Multitask
from semivid.training.runtime import Runtime
from small import small_params

CPU = Runtime(1, device="cpu")


@pytest.fixture(scope="module")
def reference(data_dir):
    return json.loads((data_dir / "nvidia_sliding.json").read_text()), np.load(data_dir / "nvidia_sliding.npz")


# ---- windows


def test_windows_equal_the_reference(reference):
    for case in reference[0]["tilings"]:
        found = windows(case["scaled_w"], case["scaled_h"], case["tile"], case["overlap"], "reference")
        assert [list(box) for box in found] == case["boxes_x1y1x2y2"], case["tile"]
        count, _, height, width = case["crop_shape"]
        assert len(found) == count and {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in found} == {(width, height)}


def test_the_exact_stride_differs_from_the_references_where_rounding_made_it(reference):
    """552 (1 - 1/3) is 368, but 368.00000000000006 in floating point."""
    for case in reference[0]["tilings"]:
        found = windows(case["scaled_w"], case["scaled_h"], case["tile"], case["overlap"])
        same = [list(box) for box in found] == case["boxes_x1y1x2y2"]
        assert same == (case["tile"] != 552)
    assert [x1 for x1, y1, _, _ in windows(1920, 552, 552)] == [0, 368, 736, 1104, 1368]
    assert [x1 for x1, y1, _, _ in windows(1920, 552, 552, stride="reference")] == [0, 369, 738, 1107, 1368]


@pytest.mark.parametrize("overlap", [0.0, 0.1, 1 / 4, 1 / 3, 0.5, 2 / 3, 0.9])
@pytest.mark.parametrize("stride", ["exact", "reference"])
def test_windows_cover_the_frame_and_each_other(overlap, stride):
    for side in range(1, 120):
        for tile in (1, 10, 30, 100):
            found = windows(side, 5, tile, overlap, stride)
            places = [(x1, x2) for x1, _, x2, _ in found]
            assert {(y1, y2) for _, y1, _, y2 in found} >= {(0, min(tile, 5))}
            places = sorted(set(places))
            assert places[0][0] == 0 and places[-1][1] == side
            assert {b - a for a, b in places} == {min(tile, side)}
            for (_, end), (start, _) in pairwise(places):
                assert end - start >= math.floor(overlap * tile - 1e-9)


# ---- merging windows


def test_the_merged_map_equals_the_reference(reference):
    """Each window's logits are its pixels times a number of its own, so that order and counts show."""
    spec, arrays = reference
    seen = []

    def network(crops):
        numbers = range(len(seen), len(seen) + len(crops))
        seen.extend(numbers)
        return torch.stack([crop * (1 + 0.1 * n) for crop, n in zip(crops, numbers, strict=True)])

    image = rand((3, 37, 50), 0)
    both = sliding(network, 16, 1 / 3, window_batch=4)(torch.stack([image, image.flip(-1)]))
    assert len(seen) == 2 * spec["merge"]["tiles_per_image"]
    merged = ((both[0] + both[1].flip(-1)) / 2).numpy()
    np.testing.assert_allclose(merged, arrays["correct"], rtol=1e-5, atol=1e-6)
    assert np.abs(merged - arrays["reference_buggy"]).max() > 0.1
    seen.clear()
    flipped = flip_averaged(sliding(network, 16, 1 / 3, window_batch=7))(image[None])[0]
    np.testing.assert_allclose(flipped, arrays["correct"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(37, 50), (61, 20), (9, 12), (16, 16), (16, 33)])
@pytest.mark.parametrize("window_batch", [1, 5, 100])
def test_blending_is_exact(size, window_batch):
    """The mean of equal whole numbers is the number itself, at every pixel, wide or high, however windows lie."""
    images = torch.floor(256 * rand((2, 3, *size), 1))
    found = sliding(lambda crops: crops, 16, 0.6, window_batch=window_batch)(images)
    assert torch.equal(found, images)


def test_the_multi_scale_map_equals_the_reference(reference):
    spec, arrays = reference
    picture = torch.floor(rand((37, 50, 3), 3) * 256).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    weight = fill_value("probe.weight", torch.zeros(4, 3, 3, 3))

    def network(images):
        return F.conv2d((images - mean) / std, weight, padding=1)

    options = {"scales": spec["multi_scale"]["scales"], "flip": True, "tile": 16}
    for stride in ("exact", "reference"):
        found = evaluation_mode(network, "sliding", stride=stride, **options)(picture)[0].numpy()
        np.testing.assert_allclose(found, arrays["multi_scale_logits"], atol=1e-5)
        np.testing.assert_array_equal(found.argmax(0), arrays["multi_scale_argmax"])


# ---- against a slow plain implementation


def plain(predict, picture, mode, scales, flip, tile=None, overlap=None):
    """Logits float64 (C, H, W) of a picture uint8 (H, W, 3): one window at a time, pixel sums by NumPy, cv2 back."""
    height, width = picture.shape[:2]
    maps = []
    for scale in scales:
        copy = np.asarray(Image.fromarray(picture).resize((int(width * scale), int(height * scale)), Image.BILINEAR))
        for mirrored in (False, True) if flip else (False,):
            image = np.ascontiguousarray(copy[:, ::-1]) if mirrored else copy
            high, wide = image.shape[:2]
            side = int(tile * max(scale, 1)) if mode == "sliding" else max(high, wide)
            step = math.ceil(round(side * (1 - overlap), 6)) if mode == "sliding" else side
            sums, counts = None, np.zeros((high, wide))
            rows, columns = (max(1, math.ceil((s - side) / step) + 1) for s in (high, wide))
            for i in range(columns):
                for j in range(rows):
                    x2, y2 = min(i * step + side, wide), min(j * step + side, high)
                    x1, y1 = max(0, x2 - side), max(0, y2 - side)
                    crop = torch.from_numpy(image[y1:y2, x1:x2].transpose(2, 0, 1).copy())[None] / 255
                    with torch.no_grad():
                        found = predict(crop)[0].double().numpy()
                    if sums is None:
                        sums = np.zeros((len(found), high, wide))
                    for y in range(y1, y2):
                        for x in range(x1, x2):
                            sums[:, y, x] += found[:, y - y1, x - x1]
                            counts[y, x] += 1
            logits = sums / counts
            logits = logits[:, :, ::-1] if mirrored else logits
            if mode == "pooling" and scale == 2:
                logits = logits.reshape(len(logits), high // 2, 2, wide // 2, 2).mean((2, 4))
            maps.append([cv2.resize(np.ascontiguousarray(m), (width, height)) for m in logits])  # INTER_LINEAR
    return np.mean(maps, 0)


def convolutions():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    return torch.nn.Sequential(*layers)


def encoder_decoder():
    torch.manual_seed(0)
    return build_segmentation_net(4, "tf_efficientnet_lite0", channels=(4, 4, 8, 8, 8), layers=(8,), output_stride=2)


def multitask():
    torch.manual_seed(0)
    return build_multitask_net(4, **Multitask(**small_params()["multitask_network"]).arguments())


def predictor(network):
    network = network.eval().requires_grad_(False)
    return lambda images: network(images)


def picture_of(size, seed=0):
    blobs = cv2.resize((255 * rand((5, 7, 3), seed)).numpy(), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs + 30 * rand((*size, 3), seed + 1).numpy(), 0, 255).astype(np.uint8)


def tensor_of(*pictures):
    return torch.stack([torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in pictures]) / 255


CASES = [
    ("whole", [1.0], True, {}),
    ("whole", [0.5, 0.75, 1.0, 1.5], True, {}),
    ("whole", [1.25], False, {}),
    ("pooling", [0.5, 1.0, 2.0], True, {}),
    ("sliding", [1.0], False, {"tile": 32, "overlap": 1 / 3}),
    ("sliding", [0.5, 1.0, 1.5], True, {"tile": 24, "overlap": 0.5}),
    ("sliding", [1.0], True, {"tile": 200, "overlap": 1 / 3}),
]


@pytest.mark.parametrize(("mode", "scales", "flip", "options"), CASES)
@pytest.mark.parametrize("size", [(46, 70), (65, 38)])
def test_every_mode_agrees_with_a_plain_implementation(mode, scales, flip, options, size):
    if mode == "pooling":
        size = (size[0] // 2 * 2, size[1] // 2 * 2)
    predict = predictor(convolutions())
    pictures = [picture_of(size), picture_of(size, 5)]
    found = evaluation_mode(predict, mode, scales=scales, flip=flip, **options)(tensor_of(*pictures))
    alone = predict(tensor_of(*pictures))
    for logits, picture, once in zip(found, pictures, alone, strict=True):
        expected = plain(predict, picture, mode, scales, flip, **options)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        if flip or scales != [1.0] or options.get("tile", 999) < 40:
            assert np.abs(once.numpy() - expected).max() > 1e-3, "the mode changes nothing: not tested"


@pytest.mark.parametrize("build", [encoder_decoder, multitask])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("whole", {}), ("pooling", {}), ("sliding", {"tile": 64, "overlap": 1 / 4})],
)
def test_networks_of_the_project(build, mode, options):
    predict, picture = predictor(build()), picture_of((64, 96))
    scales = [0.5, 1.0, 2.0] if mode == "pooling" else [1.0, 1.5]
    with torch.no_grad():
        found = evaluation_mode(predict, mode, scales=scales, flip=True, **options)(tensor_of(picture))[0].numpy()
    expected = plain(predict, picture, mode, scales, True, **options)
    spread = expected.std()
    assert spread > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * spread, rtol=1e-4)


@pytest.mark.slow
def test_a_network_of_one_fixed_large_padding():
    """FCN-8s pads by 100 pixels, so that every window sees a border of its own."""
    torch.manual_seed(0)
    predict, picture = predictor(build_fcn8s(4)), picture_of((64, 96))
    with torch.no_grad():
        mode = evaluation_mode(predict, "sliding", scales=[1.0, 1.5], flip=True, tile=64)
        found = mode(tensor_of(picture))[0].numpy()
    expected = plain(predict, picture, "sliding", [1.0, 1.5], True, tile=64, overlap=1 / 3)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std(), rtol=1e-3)


def test_the_plain_mode_is_the_network_itself():
    predict, images = predictor(convolutions()), tensor_of(picture_of((20, 30)))
    assert torch.equal(evaluation_mode(predict)(images), predict(images))
    assert torch.equal(evaluation_mode(predict, flip=True)(images), flip_averaged(predict)(images))


def test_a_copy_is_resized_as_pillow_does():
    for size, scale in [((37, 50), 0.5), ((37, 50), 1.5), ((64, 48), 0.3)]:
        picture = picture_of(size)
        wanted = int(size[0] * scale), int(size[1] * scale)
        expected = np.asarray(Image.fromarray(picture).resize(wanted[::-1], Image.BILINEAR))
        found = resized(tensor_of(picture, picture), wanted)
        for one in found:
            np.testing.assert_array_equal((255 * one).round().permute(1, 2, 0), expected)
    images = tensor_of(picture)
    assert resized(images, size) is images


def test_windows_go_through_the_network_in_batches():
    shapes = []

    def network(crops):
        shapes.append(tuple(crops.shape))
        return crops

    evaluation_mode(network, "sliding", tile=16, overlap=0.5, window_batch=6)(rand((2, 3, 20, 50), 0))
    each = len(windows(50, 20, 16, 0.5))
    assert shapes == [(6, 3, 16, 16)] * (2 * each // 6) + [(2 * each % 6, 3, 16, 16)] * (2 * each % 6 > 0)
    shapes.clear()
    evaluation_mode(network, "sliding", scales=[0.5, 2.0], tile=16)(rand((1, 3, 20, 50), 0))
    assert {s[2:] for s in shapes} == {(10, 16), (32, 32)}, "windows grow with scales above 1, and only with them"


# ---- in use


class Store:
    """Frames in memory; a frame's position is its seed."""

    def image(self, frame):
        return picture_of((32, 48), frame.position)


def test_segmenting_a_split():
    predict = predictor(convolutions())
    frames = [Frame(f"f{n}", "val", "s", n, Path("x"), "", None) for n in range(3)]
    options = {"scales": [1.0, 1.5], "flip": True, "tile": 24, "overlap": 0.25}
    for frame, classes in segment(evaluation_mode(predict, "sliding", **options), frames, Store(), 2, CPU):
        expected = plain(predict, Store().image(frame), "sliding", **options)
        assert (classes != expected.argmax(0)).mean() < 1e-3


def test_predictions_at_the_frames_own_size():
    """A `Segmenter` takes any mode; its labels have each picture's size, whatever that is."""
    predict = predictor(convolutions())
    mode = evaluation_mode(predict, "sliding", tile=16, scales=[0.5, 1.0])
    segmenter = Segmenter(mode, None, None, (48, 32), CPU)
    for size in [(32, 48), (75, 124), (20, 18)]:
        ((labels, _),) = segmenter([picture_of(size)])
        assert labels.shape == size
    ((labels, _),) = segmenter([picture_of((32, 48))])
    np.testing.assert_array_equal(labels, labels_at(mode(tensor_of(picture_of((32, 48))))[0], (32, 48)))


# ---- bad input


IMAGES = torch.zeros(1, 3, 8, 8)


def same(images):
    return images


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation_mode(same, "tiles"), "no mode 'tiles'; take one of whole, sliding, pooling"),
        (lambda: evaluation_mode(same, scales=[]), r"scales \[\]; give one or more"),
        (lambda: evaluation_mode(same, scales=[1.0, 0.0]), r"scales \[1.0, 0.0\]"),
        (lambda: evaluation_mode(same, scales=[math.nan]), "scales"),
        (lambda: evaluation_mode(same, "pooling", scales=[1.5]), "scale 1.5 cannot be pooled; take 0.5, 1 and 2"),
        (lambda: evaluation_mode(same, "sliding"), "mode sliding needs the side of its windows; give tile"),
        (lambda: evaluation_mode(same, tile=16), "mode whole has no windows; leave tile out"),
        (lambda: evaluation_mode(same, "sliding", tile=0), "windows of 0 pixels"),
        (lambda: evaluation_mode(same, "sliding", tile=16, overlap=1.0), "overlap 1.0; give a share from 0 to below 1"),
        (lambda: evaluation_mode(same, "sliding", tile=16, overlap=-0.1), "overlap -0.1"),
        (lambda: evaluation_mode(same, "sliding", tile=16, stride="none"), "no stride 'none'; take exact or reference"),
        (lambda: evaluation_mode(same, "sliding", tile=16, window_batch=0), "window_batch 0"),
        (lambda: evaluation_mode(same, scales=[0.1])(IMAGES), "nothing is left of a frame of 8x8 at scale 0.1"),
        (lambda: evaluation_mode(lambda x: x[..., ::2])(IMAGES), "logits .* for images .*same height and width"),
        (lambda: sliding(lambda x: x[..., ::2], 4)(IMAGES), "logits .* for images"),
    ],
)
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
