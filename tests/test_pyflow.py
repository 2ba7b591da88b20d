"""pyflow: the reference's numbers, a slow literal version of every step, and what a user does wrong."""

import hashlib
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from math import log, trunc

import numpy as np
import pytest
from numba import njit
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import pyflow
from pyflow import _compiled
from pyflow._features import features
from pyflow._flow import levels
from pyflow._pyramid import level_count, pyramid
from pyflow._solver import relax, solve
from pyflow._warp import warp

STANDARD = {
    "alpha": 0.012,
    "ratio": 0.75,
    "minWidth": 20,
    "nOuterFPIterations": 7,
    "nInnerFPIterations": 1,
    "nSORIterations": 30,
    "colType": 0,
}
SMALL = STANDARD | {"minWidth": 8, "nOuterFPIterations": 1, "nSORIterations": 4}
CAMVID = {
    "0016E5_07959": "5eddffc9f2537457ee9af78628bc79cde7e4adf352924466f1e930099e6b9e5b",
    "0016E5_07961": "6760add6ea844099b029f6179aebf7bddd6e5877cea511b3cd5aac822745016b",
}


def flow(pair, **changes):
    return pyflow.coarse2fine_flow(*pair, **STANDARD | changes)


def planes(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def texture(x, y):
    """The fixture's picture at any coordinates, (h, w, 3) in [0, 1]."""
    wave = 2 * np.pi
    return np.stack(
        [
            0.5 + 0.20 * np.sin(wave * x / 17) * np.cos(wave * y / 23) + 0.15 * np.sin(wave * (x + 2 * y) / 41),
            0.5 + 0.25 * np.cos(wave * x / 29 + 0.7) * np.sin(wave * y / 19) + 0.10 * np.cos(wave * (2 * x - y) / 37),
            0.5 + 0.20 * np.sin(wave * (x - y) / 31) + 0.15 * np.cos(wave * (x + y) / 13),
        ],
        axis=-1,
    )


def moved(width, height, motion):
    y, x = np.mgrid[:height, :width].astype(float)
    u, v = motion(x, y)
    return texture(x, y), texture(x - u, y - v)


@pytest.fixture(scope="module")
def synth():
    return moved(128, 96, lambda x, y: (2 + np.sin(2 * np.pi * y / 96), -1 + 0.5 * np.cos(2 * np.pi * x / 128)))


@pytest.fixture(scope="module")
def small():
    """A pair that takes the literal version a moment only."""
    return moved(27, 20, lambda x, y: (1.3 + 0.1 * y / 20, -0.7 + 0 * x))


@pytest.fixture(scope="module")
def expected(data_dir):
    return np.load(data_dir / "pyflow_synth.npz")


# The reference's numbers


def test_synthetic_images_are_those_of_the_fixture(synth, expected):
    for image, corner in zip(synth, ("im1_corner", "im2_corner"), strict=True):
        assert_allclose(image[:4, :4], expected[corner], rtol=0, atol=1e-14)


def test_standard_set(synth, expected):
    u, v, picture = flow(synth)
    assert u.dtype == v.dtype == picture.dtype == np.float64 and picture.flags.c_contiguous
    for actual, name in ((u, "u"), (v, "v"), (picture[::2, ::2], "warp")):
        assert_allclose(actual, expected[name], rtol=0, atol=1e-6)


def grey(image):
    return (image @ [0.299, 0.587, 0.114])[..., None]


@pytest.mark.parametrize(
    "name, change, options",
    [
        ("bgr", lambda image: image[..., ::-1], {}),
        ("gray", grey, {"colType": 1}),
        ("inner2", lambda image: image, {"nOuterFPIterations": 3, "nInnerFPIterations": 2, "nSORIterations": 10}),
    ],
)
def test_other_sets(synth, expected, name, change, options):
    u, v, _ = flow([change(image) for image in synth], **options)
    assert_allclose(u[::2, ::2], expected[f"{name}_u"], rtol=0, atol=1e-6)
    assert_allclose(v[::2, ::2], expected[f"{name}_v"], rtol=0, atol=1e-6)


def test_every_level_of_the_standard_set(synth):
    table = [  # width, height, mean and std of the image, mean u and v: specification, section 11
        (30, 22, 0.50008573, 0.11950777, 0.46045774, -0.26643099),
        (40, 30, 0.50014097, 0.13443187, 0.61970273, -0.33710797),
        (54, 40, 0.50015360, 0.14300567, 0.84527277, -0.42816206),
        (72, 54, 0.50016876, 0.14942822, 1.12447558, -0.56387928),
        (96, 72, 0.50017829, 0.15492070, 1.50015795, -0.75127199),
        (128, 96, 0.50018750, 0.15704609, 2.00109240, -1.00110672),
    ]
    rows = [
        (image.shape[2], image.shape[1], image.mean(), image.std(), u.mean(), v.mean())
        for image, u, v in levels(*map(planes, synth), 0.012, 0.75, 20, 7, 1, 30, False)
    ]
    assert_allclose(rows, table, rtol=0, atol=6e-9)


def test_feature_means(synth):
    means = features(planes(synth[0])).mean((1, 2))
    assert_allclose(means, [0.500204737, -3.37679e-5, -2.29516e-5, -4.70730e-4, 1.52279e-4], rtol=0, atol=6e-10)


def test_real_pair(shared, data_dir):
    expected = np.load(data_dir / "pyflow_camvid.npz")
    pair = []
    for name, digest in CAMVID.items():
        image = np.asarray(Image.open(shared / f"data/camvid/val/{name}.jpg").convert("RGB"))
        assert hashlib.sha256(image.tobytes()).hexdigest() == digest, "decoded to other pixels: blame the decoder"
        pair.append(image / 255)
    u, v, picture = flow(pair)
    assert_allclose(u[::4, ::4], expected["u"], rtol=0, atol=0.008)
    assert_allclose(v[::4, ::4], expected["v"], rtol=0, atol=0.008)
    assert_allclose(u[100], expected["row100_u"], rtol=0, atol=1e-6)
    assert_allclose(v[100], expected["row100_v"], rtol=0, atol=1e-6)
    assert_array_equal(np.round(255 * picture)[::8, ::8], expected["warp"])
    facts = [u.mean(), u.std(), u.min(), u.max(), v.mean(), v.std(), v.min(), v.max()]
    numbers = [0.9755767, 4.430886, -7.433172, 16.074908, 0.8742927, 3.039792, -7.286190, 7.571243]
    assert_allclose(facts, numbers, rtol=0, atol=6e-7)
    assert_allclose(255 * np.abs(pair[0] - picture).mean(), 3.6707, rtol=0, atol=6e-5)


# A literal version: the specification's sections line by line, one pixel at a time where order matters


def plain_correlate(a, taps, axis):
    radius = len(taps) // 2
    width = [(0, 0)] * a.ndim
    width[axis] = (radius, radius)
    padded = np.pad(a, width, mode="edge")
    return sum(t * np.take(padded, np.arange(a.shape[axis]) + k, axis) for k, t in enumerate(taps))


def plain_bilinear(a, x, y):
    height, width = a.shape[:2]
    x0, y0 = np.trunc(x).astype(int), np.trunc(y).astype(int)
    dx, dy = (np.clip(d, 0, 1).reshape(*d.shape, *[1] * (a.ndim - 2)) for d in (x - x0, y - y0))
    total = 0
    for step_y, weight_y in ((0, 1 - dy), (1, dy)):
        for step_x, weight_x in ((0, 1 - dx), (1, dx)):
            rows, columns = np.clip(y0 + step_y, 0, height - 1), np.clip(x0 + step_x, 0, width - 1)
            total = total + weight_x * weight_y * a[rows, columns]
    return total


def plain_resize(a, width, height, qx, qy):
    y, x = np.mgrid[1 : height + 1, 1 : width + 1]
    return plain_bilinear(a, x / qx - 1, y / qy - 1)


def plain_pyramid(image, ratio, count):
    ratio = ratio if 0.4 <= ratio <= 0.98 else 0.75
    n = trunc(log(0.25) / log(ratio))
    out = [image]
    for i in range(1, count):
        source, s = (image, (1 / ratio - 1) * i) if i <= n else (out[i - n], (1 / ratio - 1) * n)
        q = ratio**i if i <= n else ratio**i * image.shape[1] / source.shape[1]
        k = np.arange(-trunc(3 * s), trunc(3 * s) + 1)
        taps = np.exp(-(k**2) / (2 * s * s))
        blurred = plain_correlate(plain_correlate(source, taps / taps.sum(), 1), taps / taps.sum(), 0)
        out.append(plain_resize(blurred, trunc(source.shape[1] * q), trunc(source.shape[0] * q), q, q))
    return out


D = np.array([1, -8, 0, 8, -1]) / 12
G = [0.02, 0.11, 0.74, 0.11, 0.02]


def plain_features(image, weights):
    if image.shape[2] not in (1, 3):
        return image
    one = image[..., 0] if image.shape[2] == 1 else image @ weights
    out = [one, plain_correlate(one, D, 1), plain_correlate(one, D, 0)]
    if image.shape[2] == 3:
        out += [image[..., 1] - image[..., 0], image[..., 1] - image[..., 2]]
    return np.stack(out, -1)


def plain_warp(first, second, u, v):
    y, x = np.mgrid[: u.shape[0], : u.shape[1]]
    x, y = x + u, y + v
    outside = (x < 0) | (x > u.shape[1] - 1) | (y < 0) | (y > u.shape[0] - 1)
    return np.where(outside[..., None], first, plain_bilinear(second, x, y))


def plain_sweeps(phi, a11, a22, a12, b1, b2, alpha, count):
    height, width = phi.shape
    du, dv = np.zeros((2, height, width))
    for _ in range(count):
        for i in range(height):
            for j in range(width):
                edges = []
                if j > 0:
                    edges.append((phi[i, j - 1], i, j - 1))
                if j < width - 1:
                    edges.append((phi[i, j], i, j + 1))
                if i > 0:
                    edges.append((phi[i - 1, j], i - 1, j))
                if i < height - 1:
                    edges.append((phi[i, j], i + 1, j))
                total = sum(w for w, _, _ in edges)
                s1 = -alpha * sum(w * du[y, x] for w, y, x in edges) + a12[i, j] * dv[i, j]
                share = 1.8 / (a11[i, j] + 0.05 * alpha + alpha * total)
                du[i, j] = (1 - 1.8) * du[i, j] + share * (b1[i, j] - s1)
                s2 = -alpha * sum(w * dv[y, x] for w, y, x in edges) + a12[i, j] * du[i, j]
                share = 1.8 / (a22[i, j] + 0.05 * alpha + alpha * total)
                dv[i, j] = (1 - 1.8) * dv[i, j] + share * (b2[i, j] - s2)
    return du, dv


def plain_laplacian(a, phi):
    out = np.zeros_like(a)
    across, down = phi[:, :-1] * np.diff(a, axis=1), phi[:-1] * np.diff(a, axis=0)
    out[:, :-1] -= across
    out[:, 1:] += across
    out[:-1] -= down
    out[1:] += down
    return out


def plain_solve(first, second, warped, u, v, alpha, outer, inner, sweeps):
    def slopes(a):
        return np.diff(a, axis=1, append=a[:, -1:]), np.diff(a, axis=0, append=a[-1:])

    for _ in range(outer):
        a, b = (plain_correlate(plain_correlate(f, G, 1), G, 0) for f in (first, warped))
        mixed = 0.4 * a + 0.6 * b
        ix, iy, it = plain_correlate(mixed, D, 1), plain_correlate(mixed, D, 0), b - a
        du, dv = np.zeros((2, *u.shape))
        for _ in range(inner):
            phi = 0.5 / np.sqrt(sum(g**2 for a in (u + du, v + dv) for g in slopes(a)) + 1e-6)
            psi = 0.5 / np.sqrt((it + ix * du[..., None] + iy * dv[..., None]) ** 2 + 1e-6)
            a11, a22, a12 = ((psi * p).mean(-1) for p in (ix * ix, iy * iy, ix * iy))
            b1 = -(psi * ix * it).mean(-1) - alpha * plain_laplacian(u, phi)
            b2 = -(psi * iy * it).mean(-1) - alpha * plain_laplacian(v, phi)
            du, dv = plain_sweeps(phi, a11, a22, a12, b1, b2, alpha, sweeps)
        u, v = u + du, v + dv
        warped = plain_warp(first, second, u, v)
    return u, v


def plain_flow(first, second, alpha, ratio, minWidth, nOuterFPIterations, nInnerFPIterations, nSORIterations, colType):
    used = ratio if 0.4 <= ratio <= 0.98 else 0.75
    count = trunc(log(minWidth / first.shape[1]) / log(used))
    pairs = list(zip(plain_pyramid(first, ratio, count), plain_pyramid(second, ratio, count), strict=True))
    for k in range(count - 1, -1, -1):
        weights = (0.114, 0.587, 0.299) if colType == 1 and k == 0 else (0.299, 0.587, 0.114)
        f1, f2 = (plain_features(image, weights) for image in pairs[k])
        height, width = f1.shape[:2]
        if k == count - 1:
            u, v = np.zeros((2, height, width))
            warped = f2
        else:
            size = width, height, width / u.shape[1], height / u.shape[0]
            u, v = plain_resize(u, *size) / ratio, plain_resize(v, *size) / ratio
            warped = plain_warp(f1, f2, u, v)
        iterations = nOuterFPIterations + k, nInnerFPIterations, nSORIterations + 3 * k
        u, v = plain_solve(f1, f2, warped, u, v, alpha, *iterations)
    return u, v


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("size", [(12, 9), (9, 12), (5, 2)])
def test_one_level_is_the_raster_scan(size, inner):
    width, height = size
    y, x = np.mgrid[:height, :width]
    first, second = moved(width, height, lambda x, y: (0.6 + 0 * x, -0.4 + 0 * y))
    guess = 0.3 + 0.2 * np.sin(x), -0.2 + 0.1 * np.cos(y)
    f1, f2 = (plain_features(image, (0.299, 0.587, 0.114)) for image in (first, second))
    warped = plain_warp(f1, f2, *guess)
    kept = [array.copy() for array in guess]
    actual = solve(planes(f1), planes(f2), planes(warped), *guess, 0.012, 3, inner, 30)
    wanted = plain_solve(f1, f2, warped, *guess, 0.012, 3, inner, 30)
    assert np.abs(wanted[0] - guess[0]).max() > 0.1, "nothing to find"
    assert_allclose(actual, wanted, rtol=0, atol=1e-12)
    assert_array_equal(guess, kept)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(9, 12), (12, 9), (1, 7), (7, 1), (2, 3), (3, 2), (1, 1)])
def test_sweeps_are_the_raster_scan(shape, count):
    """Few rows and many sweeps, and the reverse: the sweeps that follow each other down must not meet."""
    rng = np.random.default_rng(0)
    alpha = 0.1
    phi, a11, a22 = rng.uniform(0.1, 1, (3, *shape))
    a12 = rng.uniform(-1, 1, shape) * 0.9 * np.sqrt(a11 * a22)
    b1, b2 = rng.uniform(-1, 1, (2, *shape))
    total = np.zeros(shape)
    total[:, :-1] += phi[:, :-1]
    total[:, 1:] += phi[:, :-1]
    total[:-1] += phi[:-1]
    total[1:] += phi[:-1]
    share_u, share_v = (1.8 / (a + 0.05 * alpha + alpha * total) for a in (a11, a22))
    du, dv, weights, first, second, right_u, right_v, cross = (
        np.pad(a, 1) for a in (0 * phi, 0 * phi, alpha * phi, share_u, share_v, b1, b2, a12)
    )
    left = alpha * np.pad(phi, ((0, 0), (1, 0)))[:, :-1]
    feedback = np.pad(np.stack([share_u * left, share_v * left, share_v * a12], -1), ((1, 1), (0, 0), (0, 0)))
    relax(du, dv, weights, first, second, right_u, right_v, cross, feedback, count)
    wanted = plain_sweeps(phi, a11, a22, a12, b1, b2, alpha, count)
    assert_allclose([du[1:-1, 1:-1], dv[1:-1, 1:-1]], wanted, rtol=0, atol=1e-12)


CHANNELS = {
    "rgb": lambda image: image,
    "grey": grey,
    "two channels": lambda image: image[..., :2],
    "four channels": lambda image: np.concatenate([image, image[..., :1] * image[..., 1:2]], -1),
}


@pytest.mark.parametrize(
    "channels, options",
    [
        ("rgb", {}),
        ("rgb", {"colType": 1}),
        ("grey", {}),
        ("two channels", {}),
        ("four channels", {"colType": 1}),
        ("rgb", {"nInnerFPIterations": 3, "nSORIterations": 2}),
        ("rgb", {"ratio": 0.5, "minWidth": 3}),
        ("rgb", {"ratio": 0.99}),
        ("rgb", {"ratio": 0.98, "minWidth": 25}),
        ("rgb", {"ratio": 0.3}),
        ("rgb", {"ratio": 0.4, "minWidth": 4}),
        ("rgb", {"alpha": 3, "minWidth": 5}),
    ],
)
def test_whole_method_is_the_literal_one(small, channels, options):
    pair = [CHANNELS[channels](image) for image in small]
    u, v, _ = pyflow.coarse2fine_flow(*pair, **SMALL | options)
    assert_allclose((u, v), plain_flow(*pair, **SMALL | options), rtol=0, atol=1e-10)


def test_bgr_changes_the_finest_level_alone(synth):
    rgb, bgr = ([u for _, u, _ in levels(*map(planes, synth), 0.012, 0.75, 20, 2, 1, 5, f)] for f in (False, True))
    assert [np.array_equal(a, b) for a, b in zip(rgb, bgr, strict=True)] == [True] * 5 + [False]


def test_colour_type_means_nothing_for_one_channel(synth):
    pair = [grey(image) for image in synth]
    assert_array_equal(flow(pair, colType=0)[:2], flow(pair, colType=1)[:2])


@pytest.mark.parametrize("ratio, direct, radii", [(0.75, 4, [0, 1, 2, 3, 3, 3]), (0.5, 2, [3, 6, 6])])
def test_blur_of_the_pyramid(ratio, direct, radii):
    """How far a bright half of the picture spreads: by the blur's radius and the next pixel's share of a sample."""
    image = np.zeros((1, 256, 256))
    image[:, :, :128] = 1
    made = pyramid(image, ratio, len(radii) + 1)
    for level, radius in enumerate(radii, 1):
        source = made[max(level - direct, 0)]
        scale = made[level].shape[2] / source.shape[2]
        positions = np.arange(1, made[level].shape[2] + 1) / scale - 1
        edge = np.flatnonzero(source[0, 0]).max()
        reached = positions[np.flatnonzero(made[level][0, 0]).max()] - edge
        # The samples lie 1 / scale apart: the last one reached is that much or less before the limit.
        assert radius + 1 - 1 / scale - 0.1 <= reached <= radius + 1 + 0.1


@pytest.mark.parametrize(
    "size, ratio, minimum, sizes",
    [
        ((128, 96), 0.75, 20, "128x96 96x72 72x54 54x40 40x30 30x22"),
        (
            (480, 360),
            0.75,
            20,
            "480x360 360x270 270x202 202x151 151x113 113x85 85x63 64x47 48x35 36x27 27x20",
        ),
        (
            (512, 256),
            0.75,
            20,
            "512x256 384x192 288x144 216x108 162x81 121x60 91x45 68x34 51x25 38x19 28x14",
        ),
        ((80, 20), 0.5, 40, "80x20"),
        ((27, 9), 0.75, 20, "27x9"),
    ],
)
def test_sizes_of_the_pyramid(size, ratio, minimum, sizes):
    made = pyramid(np.zeros((1, size[1], size[0])), ratio, level_count(size[0], ratio, minimum))
    assert " ".join(f"{level.shape[2]}x{level.shape[1]}" for level in made) == sizes


def test_levels_beyond_the_direct_ones():
    image = planes(moved(96, 64, lambda x, y: (x * 0, y * 0))[0])
    for ratio, count in ((0.75, 8), (0.5, 5)):
        wanted = plain_pyramid(image.transpose(1, 2, 0), ratio, count)
        for actual, level in zip(pyramid(image, ratio, count), wanted, strict=True):
            assert_allclose(actual, planes(level), rtol=0, atol=1e-14)


def test_targets_outside_keep_the_first_image():
    first, second = np.full((2, 3, 4), 5.0), np.arange(24.0).reshape(2, 3, 4)
    u, v = np.zeros((2, 3, 4))
    u[0, 0], u[0, 3], v[2, 1], v[0, 2], u[1, 1] = -0.01, 0.01, 0.01, -0.01, np.nan
    out = warp(first, second, u, v)
    outside = np.zeros((3, 4), bool)
    outside[[0, 0, 2, 0, 1], [0, 3, 1, 2, 1]] = True
    assert_array_equal(out, np.where(outside, first, second))


# What the flow means


def test_identical_images_have_no_flow(synth, capfd):
    u, v, picture = flow([synth[0], synth[0].copy()])
    assert not u.any() and not v.any()
    assert_array_equal(picture, synth[0])
    assert capfd.readouterr() == ("", "")


def test_grey_images_as_three_equal_channels(synth, capfd):
    u, v, _ = flow([np.repeat(grey(image), 3, -1) for image in synth])
    assert abs(u.mean() - 2) < 0.05 and abs(v.mean() + 1) < 0.05
    assert capfd.readouterr() == ("", "")


def test_shifted_texture_is_found():
    rng = np.random.default_rng(1)
    noise = plain_correlate(plain_correlate(rng.uniform(0, 1, (120, 150, 3)), [0.2] * 5, 0), [0.2] * 5, 1)
    first, second = noise[10:100, 10:130], noise[13:103, 5:125]
    u, v, picture = pyflow.coarse2fine_flow(first, second, **STANDARD)  # second(x, y) = first(x - 5, y + 3)
    error = np.hypot(u - 5, v + 3)[8:-8, 8:-8]
    assert error.mean() < 0.03 and error.max() < 0.3
    assert np.abs(picture - first)[8:-8, 8:-8].mean() < 0.1 * np.abs(second - first)[8:-8, 8:-8].mean()


# Manners


def test_signature():
    parameters = inspect.signature(pyflow.coarse2fine_flow).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert list(parameters)[:2] == ["Im1", "Im2"]
    assert list(defaults.items()) == list(zip(STANDARD, (1, 0.5, 40, 3, 1, 20, 0), strict=True))


def test_pure_and_repeatable(synth, capfd):
    pair = [image.copy() for image in synth]
    one, two = flow(pair), flow(pair)
    for a, b in zip(one, two, strict=True):
        assert_array_equal(a, b)
    assert_array_equal(pair, synth)
    assert not any(np.shares_memory(out, image) for out in one for image in pair)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("channels", [1, 3])
def test_any_memory_layout(synth, channels):
    pair = [image[..., :channels].copy() for image in synth]
    wanted = flow(pair, minWidth=60)
    for image in pair:
        image.setflags(write=False)
    layouts = [
        pair,
        [np.asfortranarray(image) for image in pair],
        [np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1] for image in pair],
    ]
    for layout in layouts:
        for a, b in zip(flow(layout, minWidth=60), wanted, strict=True):
            assert_array_equal(a, b)


def test_threads_give_equal_bits(synth):
    pairs = [synth, synth[::-1], [image[::-1] for image in synth], [image[:, ::-1] for image in synth]]
    alone = [flow(pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(flow, pairs), strict=True):
            for a, b in zip(one, other, strict=True):
                assert_array_equal(a, b)


def test_sweeps_release_the_interpreter():
    """Else this thread would not wake up a single time while the other one sweeps."""
    arrays = [np.zeros((302, 302)) for _ in range(8)]
    feedback = np.zeros((302, 300, 3))
    relax(*arrays, feedback, 1)
    thread = threading.Thread(target=relax, args=(*arrays, feedback, 1000))
    thread.start()
    awake = 0
    while thread.is_alive():
        time.sleep(0.001)
        awake += 1
    assert awake > 10


def test_without_a_place_for_machine_code(monkeypatch):
    """numba refuses cache=True where it can write neither beside the source nor in the user's folder."""

    def refuse(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(_compiled, "njit", refuse)
    assert _compiled.compiled(lambda x: x + 1)(2) == 3


# Errors


GOOD = np.full((30, 40, 3), 0.5)


def with_value(value):
    image = GOOD.copy()
    image[3, 4, 1] = value
    return image


@pytest.mark.parametrize(
    "first, second, error, said",
    [
        (GOOD, GOOD[:-1], ValueError, r"Im1 has shape \(30, 40, 3\) and Im2 \(29, 40, 3\): both must be"),
        (GOOD, GOOD[..., :1], ValueError, r"Im2 \(30, 40, 1\): both must be"),
        (GOOD[:, :26], GOOD[:, :26], ValueError, r"width 26 are too narrow for minWidth 20 and ratio 0.75.* need 27:"),
        (GOOD.astype("f4"), GOOD, ValueError, r"Im1 has dtype float32: give float64 .* Im1.astype\(float\)$"),
        (GOOD, (GOOD * 255).astype("u1"), ValueError, r"Im2 has dtype uint8: .* Im2.astype\(float\) / 255$"),
        (GOOD.astype(">f8"), GOOD, ValueError, "Im1 has dtype >f8: give float64"),
        (GOOD[..., 0], GOOD, ValueError, r"Im1 has shape \(30, 40\).*a grey image is Im1\[:, :, None\]"),
        (GOOD, GOOD[None], ValueError, r"Im2 has shape \(1, 30, 40, 3\): give \(height, width, channels\)$"),
        (None, GOOD, TypeError, "Im1 is NoneType: give a numpy array"),
        (GOOD, GOOD.tolist(), TypeError, "Im2 is list: give a numpy array"),
        (with_value(np.nan), GOOD, ValueError, "Im1 holds NaN or infinite values: replace"),
        (GOOD, with_value(-np.inf), ValueError, "Im2 holds NaN or infinite values: replace"),
        (GOOD * 255, GOOD * 255, ValueError, "Im1 has values from 127.5 to 127.5: scale"),
        (GOOD, with_value(-3), ValueError, "Im2 has values from -3 to 0.5: scale"),
        (GOOD[:0], GOOD[:0], ValueError, r"Im1 has shape \(0, 40, 3\) and no pixels"),
        (GOOD[..., :0], GOOD, ValueError, r"Im1 has shape \(30, 40, 0\) and no pixels"),
        (np.zeros((2, 400, 1)), np.zeros((2, 400, 1)), ValueError, "400 x 2 pixels have no row left at level 3.*crop"),
    ],
)
def test_bad_images(first, second, error, said):
    with pytest.raises(error, match=said) as caught:
        pyflow.coarse2fine_flow(first, second, **STANDARD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"alpha": 0}, ValueError, "alpha is 0: give a number above 0 and finite"),
        ({"alpha": np.nan}, ValueError, "alpha is .*nan"),
        ({"alpha": np.inf}, ValueError, "alpha is .*inf"),
        ({"alpha": "much"}, TypeError, "alpha is 'much': give a number"),
        ({"ratio": 1}, ValueError, "ratio is 1: give a number above 0 and below 1"),
        ({"ratio": 0.0}, ValueError, "ratio is 0.0: give"),
        ({"ratio": None}, TypeError, "ratio is None: give a number"),
        ({"minWidth": 0}, ValueError, "minWidth is 0: give at least 1"),
        ({"minWidth": 20.5}, TypeError, "minWidth is 20.5: give a whole number"),
        ({"minWidth": 10**9}, ValueError, "need 1333333334: enlarge them or lower minWidth"),
        ({"nOuterFPIterations": 0}, ValueError, "nOuterFPIterations is 0: give at least 1"),
        ({"nInnerFPIterations": 0}, ValueError, "nInnerFPIterations is 0: give at least 1"),
        ({"nSORIterations": -1}, ValueError, "nSORIterations is -1: give at least 1"),
        ({"nSORIterations": "30"}, TypeError, "nSORIterations is '30': give a whole number"),
        ({"colType": 2}, ValueError, "colType is 2: give 0"),
        ({"colType": None}, TypeError, "colType is None: give 0 or 1"),
    ],
)
def test_bad_parameters(options, error, said):
    with pytest.raises(error, match=said) as caught:
        pyflow.coarse2fine_flow(GOOD, GOOD, **STANDARD | options)
    assert "\n" not in str(caught.value)


def test_alpha_that_is_nothing_to_the_arithmetic():
    with pytest.raises(ValueError, match=r"the flow is not finite with alpha .*: give a larger alpha"):
        pyflow.coarse2fine_flow(0 * GOOD, 0 * GOOD, **STANDARD | {"alpha": 1e-322})


@pytest.mark.parametrize("ratio, minimum, needed", [(0.75, 20, 27), (0.5, 40, 80), (0.99, 20, 27), (0.6, 1, 2)])
def test_the_needed_width_is_enough_and_one_less_is_not(ratio, minimum, needed):
    options = {"ratio": ratio, "minWidth": minimum}
    image = np.zeros((12, needed, 1))
    pyflow.coarse2fine_flow(image, image, **options)
    with pytest.raises(ValueError, match=f"need {needed}:"):
        pyflow.coarse2fine_flow(image[:, 1:], image[:, 1:], **options)


def test_a_little_overshoot_is_accepted(synth):
    pair = [1.6 * image - 0.3 for image in synth]
    assert min(image.min() for image in pair) < 0 and max(image.max() for image in pair) > 1
    picture = flow(pair, minWidth=60)[2]
    assert picture.min() == 0 and picture.max() == 1
