"""Geometry and losses of self-supervised depth: the reference's numbers, and literal recomputations."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import rand, randn
from semivid.depth import losses
from semivid.geometry import camera
from semivid.geometry.warp import Reprojection, warp
from semivid.selection.entropy import pixel_entropy
from semivid.training.losses import cross_entropy


@pytest.fixture(scope="module")
def spec(data_dir):
    return json.loads((data_dir / "three_ways_depth_losses.json").read_text())


@pytest.fixture(scope="module")
def arrays(data_dir):
    return np.load(data_dir / "three_ways_depth_losses.npz")


def close(actual, expected, rel=1e-5, atol=1e-7):
    torch.testing.assert_close(
        torch.as_tensor(actual),
        torch.as_tensor(np.asarray(expected), dtype=torch.float32),
        rtol=rel,
        atol=atol,
    )


def pose(seed, rotation, translation, invert=False):
    axisangle, offset = rotation * randn((2, 1, 3), seed), translation * randn((2, 1, 3), seed + 1)
    return camera.transform_from_parameters(axisangle[:, 0], offset[:, 0], invert)


def test_disp_to_depth(spec):
    facts = spec["disp_to_depth"]
    inverse, depth = camera.disp_to_depth(torch.tensor(facts["disp"]))
    close(inverse, facts["scaled"])
    close(depth, facts["depth"])
    inverse, depth = camera.disp_to_depth(torch.tensor(facts["disp"]), *facts["test_min,max"])
    close(inverse, facts["test_scaled"])
    close(depth, facts["test_depth"])


def test_transforms(spec):
    close(pose(1, 0.1, 0.2), spec["transformation_from_parameters"]["T"])
    close(pose(1, 0.1, 0.2, invert=True), spec["transformation_from_parameters"]["T_inverted"])


def test_rotation_is_the_matrix_exponential():
    axisangle = 2 * randn((5, 3), 0).double()
    x, y, z = axisangle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    torch.testing.assert_close(
        camera.rotation_from_axisangle(axisangle), torch.linalg.matrix_exp(cross), rtol=0, atol=1e-6
    )


def test_no_rotation_has_a_gradient():
    axisangle = torch.zeros(1, 3, requires_grad=True)
    camera.transform_from_parameters(axisangle, torch.zeros(1, 3)).sum().backward()
    assert torch.isfinite(axisangle.grad).all()


def test_ssim(spec, arrays):
    x = rand((2, 3, 16, 24), 3)
    y = (x + 0.1 * randn((2, 3, 16, 24), 4)).clamp(0, 1)
    out = losses.ssim(x, y)
    # Variances are small differences of float32 sums: single pixels hang on the order of summation.
    close(out, arrays["ssim"], atol=1e-5)
    close(out.mean(), spec["ssim"]["mean"])
    close(out[1, 2, 8, :6], spec["ssim"]["[1,2,8,:6]"], rel=2e-5, atol=1e-6)


def test_ssim_is_its_formula_and_has_its_gradient():
    """Window statistics by average pooling, in float64; the gradient against finite differences."""
    a, b = (rand((1, 2, 6, 7), seed).double() for seed in range(2))

    def box(x):
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)

    ma, mb = box(a), box(b)
    va, vb, cov = box(a * a) - ma**2, box(b * b) - mb**2, box(a * b) - ma * mb
    value = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    torch.testing.assert_close(losses.ssim(a, b), ((1 - value) / 2).clamp(0, 1), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(losses.ssim, (a.requires_grad_(), b))


def test_photometric_weights():
    a, b = rand((1, 3, 6, 7), 0), rand((1, 3, 6, 7), 1)
    expected = 0.85 * losses.ssim(a, b).mean(1) + 0.15 * (a - b).abs().mean(1)
    torch.testing.assert_close(losses.photometric(a, b)[:, 0], expected)
    assert float(losses.photometric(a, a).abs().max()) < 1e-6


def test_smoothness(spec):
    disp, image = rand((2, 1, 16, 24), 5), rand((2, 3, 16, 24), 3)
    close(losses.smoothness(disp, image), spec["smoothness"]["get_smooth_loss(raw disp)"])
    normalised = losses.mean_normalised(disp)
    close(losses.smoothness(normalised, image), spec["smoothness"]["mean-normalised disp"])


def test_projection(spec, arrays):
    facts = spec["project"]
    k = torch.tensor(facts["K"])
    depth, transform = 1 + 9 * rand((2, 1, 8, 12), 6), pose(1, 0.1, 0.2)
    points = camera.backproject(depth, torch.linalg.pinv(k))
    close(points, arrays["cam_points"], atol=2e-6)
    grid = camera.project(points, k, transform, (8, 12))
    close(grid, arrays["pix_coords"], atol=2e-6)
    close(Reprojection(k, transform, (8, 12)).grid(depth), arrays["pix_coords"], rel=2e-5, atol=5e-6)


def test_projection_of_single_pixels():
    """A plain loop over pixels, in NumPy: x right, y down, whole numbers at pixel centres."""
    height, width = 8, 12
    k = np.array([[10.0, 0, 6], [0, 9, 4], [0, 0, 1]])
    depth, transform = (1 + 9 * rand((2, 1, height, width), 6)).double(), pose(1, 0.1, 0.2).double()
    intrinsics = torch.tensor(k)
    grid = Reprojection(intrinsics, transform, (height, width)).grid(depth)
    points = camera.backproject(depth, torch.linalg.inv(intrinsics))
    assert grid.dtype == points.dtype == torch.float64
    for b, y, x in ((0, 0, 0), (1, 7, 11), (0, 3, 9), (1, 5, 0)):
        point = float(depth[b, 0, y, x]) * np.array([(x - 6) / 10, (y - 4) / 9, 1.0])
        np.testing.assert_allclose(points[b, :3, y * width + x].numpy(), point, rtol=1e-12)
        moved = transform[b, :3, :3].numpy() @ point + transform[b, :3, 3].numpy()
        u, v = 10 * moved[0] / moved[2] + 6, 9 * moved[1] / moved[2] + 4
        expected = [2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1]
        np.testing.assert_allclose(grid[b, y, x].numpy(), expected, rtol=0, atol=1e-6)


def test_intrinsics_may_be_3x3_or_4x4_and_batched():
    depth, transform = 1 + rand((2, 1, 6, 8), 0), pose(3, 0.1, 0.2)
    k = torch.tensor([[8.0, 0, 4, 0], [0, 8, 3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = rand((2, 3, 6, 8), 1)
    expected = warp(image, depth, k, transform)
    for form in (k[:3, :3], k.expand(2, 4, 4), k[:3, :3].expand(2, 3, 3)):
        torch.testing.assert_close(warp(image, depth, form, transform), expected)
        inverse = torch.linalg.inv(form)
        points = camera.backproject(depth, inverse)
        grid = camera.project(points, form, transform, (6, 8))
        torch.testing.assert_close(grid, Reprojection(form, transform, (6, 8)).grid(depth), rtol=0, atol=1e-5)


def test_warp_moves_pixels_and_repeats_the_border():
    """A camera that steps one pixel's worth to the left sees everything one pixel to the right."""
    image = rand((1, 3, 5, 7), 0)
    k = torch.tensor([[10.0, 0, 3], [0, 10, 2], [0, 0, 1]])
    transform = torch.eye(4)[None].clone()
    transform[0, 0, 3] = 0.2
    seen = warp(image, torch.full((1, 1, 5, 7), 2.0), k, transform)
    torch.testing.assert_close(seen[..., :-1], image[..., 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[..., -1], image[..., -1], rtol=0, atol=1e-5)


@pytest.fixture
def scene():
    image = F.interpolate(rand((2, 3, 8, 12), 10), size=(32, 48), mode="bilinear", align_corners=False)
    return {
        "disparities": {s: (0.05 + 0.4 * rand((2, 1, 32 >> s, 48 >> s), 20 + s)).requires_grad_() for s in range(4)},
        "target": image,
        "sources": {-1: torch.roll(image, 1, 3), 1: torch.roll(image, -1, 3)},
        "transforms": {-1: pose(30, 0.01, 0.05, invert=True), 1: pose(32, 0.01, 0.05)},
        "k": torch.tensor([[40.0, 0, 24, 0], [0, 38, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    }


@pytest.mark.parametrize("automask", [True, False])
def test_monodepth_loss(scene, spec, automask):
    facts = spec["monodepth_loss"]["with automask" if automask else "without automask"]
    result = losses.monodepth_loss(**scene, automask=automask, generator=torch.Generator().manual_seed(0))
    for name in ("loss", "loss/0", "loss/1", "loss/2", "loss/3"):
        close(result[name].detach(), facts[name])
    result["loss"].backward()
    for scale in (0, 3):
        gradient = scene["disparities"][scale].grad.abs().sum()
        # Few pixels carry the gradient: the fixture's own float32 is 1.8e-4 away from the sum in float64.
        close(gradient, facts[f"sum |grad disp{scale}|"], rel=3e-4)
    if automask:
        close(result["warped/0"], facts["fraction of pixels won by a warped frame, scale 0"])
    else:
        assert float(result["warped/0"]) == 1


def test_warped_neighbour(scene, arrays):
    _, depth = camera.disp_to_depth(scene["disparities"][0].detach())
    seen = warp(scene["sources"][-1], depth, scene["k"], scene["transforms"][-1])
    close(seen, arrays["warped_m1_scale0"], atol=2e-5)


def test_monodepth_loss_is_its_formula(scene):
    """Scale by scale and step by step, on four frames' worth of terms, in float64, without any shortcut."""
    scene = {
        key: {k: v.detach().double() for k, v in value.items()} if isinstance(value, dict) else value.double()
        for key, value in scene.items()
    }
    result = losses.monodepth_loss(**scene, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    target, total = scene["target"], 0.0
    for scale, disp in scene["disparities"].items():
        full = F.interpolate(disp, size=(32, 48), mode="bilinear", align_corners=False)
        depth = 1 / (0.01 + 9.99 * full)
        terms = [losses.photometric(scene["sources"][f], target)[:, 0] for f in (-1, 1)]
        noise = torch.randn((2, 2, 32, 48), generator=generator, dtype=torch.float64)
        terms = [term + 1e-5 * noise[:, i] for i, term in enumerate(terms)]
        for f in (-1, 1):
            points = camera.backproject(depth, torch.linalg.inv(scene["k"]))
            grid = camera.project(points, scene["k"], scene["transforms"][f], (32, 48))
            seen = F.grid_sample(scene["sources"][f], grid, padding_mode="border", align_corners=True)
            terms.append(losses.photometric(seen, target)[:, 0])
        reprojection = torch.stack(terms).amin(0).mean()
        star = disp / (disp.mean((2, 3), keepdim=True) + 1e-7)
        image = F.avg_pool2d(target, 2**scale)
        across = (star[..., 1:] - star[..., :-1]).abs()
        across = across * (-(image[..., 1:] - image[..., :-1]).abs().mean(1, True)).exp()
        down = (star[..., 1:, :] - star[..., :-1, :]).abs()
        down = down * (-(image[..., 1:, :] - image[..., :-1, :]).abs().mean(1, True)).exp()
        loss = reprojection + 1e-3 / 2**scale * (across.mean() + down.mean())
        torch.testing.assert_close(result[f"loss/{scale}"], loss, rtol=1e-7, atol=0)
        total += loss / 4
    torch.testing.assert_close(result["loss"], total, rtol=1e-7, atol=0)


def test_monodepth_loss_repeats_and_needs_no_noise(scene):
    runs = [losses.monodepth_loss(**scene, generator=torch.Generator().manual_seed(5))["loss"] for _ in range(2)]
    assert torch.equal(*runs)
    still = {**scene, "sources": {f: scene["target"] for f in (-1, 1)}}
    still["transforms"] = {f: torch.eye(4).expand(2, 4, 4) for f in (-1, 1)}
    result = losses.monodepth_loss(**still)
    assert float(result["warped/0"]) < 0.5  # ties go to the un-warped neighbour


def test_monodepth_loss_keeps_float32_under_autocast(scene):
    expected = losses.monodepth_loss(**scene)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.monodepth_loss(**scene)["loss"], expected)


def test_monodepth_loss_of_odd_sizes():
    target = rand((1, 3, 33, 45), 0)
    disparities = {s: rand((1, 1, -(-33 // 2**s), -(-45 // 2**s)), s).requires_grad_() for s in range(4)}
    k = torch.tensor([[40.0, 0, 22], [0, 40, 16], [0, 0, 1]])
    result = losses.monodepth_loss(disparities, target, {1: rand((1, 3, 33, 45), 9)}, {1: torch.eye(4)[None]}, k)
    result["loss"].backward()
    assert all(torch.isfinite(d.grad).all() for d in disparities.values())


def test_feature_distance(spec):
    a, b = randn((1, 16, 4, 6), 40).requires_grad_(), randn((1, 16, 4, 6), 41)
    close(losses.feature_distance(a, b).detach(), spec["feature_distance"]["dist"])
    losses.feature_distance(a, a.detach()).backward()
    assert float(a.grad.abs().max()) == 0


def test_berhu(spec):
    facts = spec["berhu"]
    prediction, target = rand((2, 1, 20, 30), 50), rand((2, 1, 20, 30), 51)
    close(losses.berhu(prediction, target, keep_rows=0.9), facts["loss"])
    close(losses.berhu(prediction, target, keep_rows=0.9, log=True), facts["loss with log(1+x)"])


def test_berhu_by_hand():
    """Errors 0.1, 0.2, 1 and a masked 9: C = 0.2, no gradient through it; the mean runs over all four."""
    prediction = torch.tensor([[[[0.1], [0.2], [-1.0], [9.0]]]], dtype=torch.float64, requires_grad=True)
    loss = losses.berhu(prediction, torch.zeros(1, 1, 4, 1, dtype=torch.float64), keep_rows=0.75)
    assert float(loss.detach()) == pytest.approx((0.1 + 0.2 + (1 + 0.04) / 0.4 + 0) / 4)
    loss.backward()
    # L1 part: 1 each; squared part: e / C, with the sign of the error; the last row is the own car.
    np.testing.assert_allclose(prediction.grad.flatten(), np.array([1, 1, -1 / 0.2, 0]) / 4, rtol=1e-12)


def test_berhu_of_equal_maps():
    prediction = rand((1, 1, 4, 4), 0).requires_grad_()
    loss = losses.berhu(prediction, prediction.detach())
    loss.backward()
    assert float(loss.detach()) == 0 and torch.isfinite(prediction.grad).all()


def test_berhu_rows():
    """floor(keep_rows * H), although 0.29 * 100 is 28.999999999999996 in binary."""
    zero = torch.zeros(1, 1, 100, 1)
    assert float(losses.berhu(torch.ones_like(zero), zero, keep_rows=0.29)) == pytest.approx(29 * 2.6 / 100)


def test_cross_entropy(spec):
    facts = spec["cross_entropy2d"]
    logits = randn((2, 19, 8, 12), 60)
    target = torch.randint(0, 19, (2, 16, 24), generator=torch.Generator().manual_seed(61))
    target[:, :3] = 250
    close(cross_entropy(logits, target, ignore=250), facts["loss"])
    weighted = facts["loss with pixel weight 0.3 everywhere (mean over all pixels)"]
    close(cross_entropy(logits, target, weight=0.3, ignore=250), weighted)
    close(cross_entropy(logits, target, weight=torch.full((2, 16, 24), 0.3), ignore=250), weighted)


def test_cross_entropy_without_a_labelled_pixel():
    logits = randn((1, 3, 4, 4), 0).requires_grad_()
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0 and float(logits.grad.abs().max()) == 0


def test_entropy(spec):
    entropy = pixel_entropy(randn((2, 19, 8, 12), 60).softmax(1))
    close(entropy.mean(), spec["pixel_wise_entropy"]["mean"])
    close(entropy[0, 0, :4], spec["pixel_wise_entropy"]["[0,0,:4]"])
