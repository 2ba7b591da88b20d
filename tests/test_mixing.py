"""Masks, mixing, pseudo labels and strong augmentation: the reference's numbers, and what they cannot show."""

import colorsys
import json
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import rand, randn
from semivid.data.classes import VOID
from semivid.data.strong import blur_kernel_size, color_jitter, gaussian_blur, strong_augment
from semivid.errors import UserError
from semivid.methods import mixing
from semivid.methods.mixing import (
    choose_classes,
    class_mask,
    confident_share,
    depthmix_mask,
    draw_mask,
    histogram_limits,
    mix,
    normalise_per_image,
    present_classes,
    pseudo_labels,
    with_ground_truth,
)
from semivid.training.losses import cross_entropy
from semivid.training.optim import rate_factor
from semivid.training.rng import generator

SIZE = (32, 48)
KINDS = ("none", "class", "depthmix", "depth", "depthhist")


@pytest.fixture(scope="module")
def spec(data_dir):
    return json.loads((data_dir / "three_ways_mix.json").read_text())


@pytest.fixture(scope="module")
def arrays(data_dir):
    return np.load(data_dir / "three_ways_mix.npz")


def resized(values, size, mode="bilinear"):
    return F.interpolate(values, size=size, mode=mode, **({} if mode == "nearest" else {"align_corners": False}))


def depth():
    return resized(rand((2, 1, 4, 6), 100), SIZE)[:, 0]


def image():
    return rand((2, 3, *SIZE), 101)


def teacher_logits():
    return 3 * randn((2, 19, *SIZE), 102)


def ground_truth():
    """The masks of both samples, the second of which has none."""
    truth = torch.full((2, *SIZE), VOID)
    truth[0] = torch.randint(0, 19, SIZE, generator=torch.Generator().manual_seed(103))
    truth[0, :5] = VOID
    return truth, torch.tensor([True, False])


# ---- DepthMix


@pytest.mark.parametrize(
    ("name", "margin", "foreground"), [("m003_t0", 0.03, 0.0), ("m0_t0", 0.0, 0.0), ("m003_t04", 0.03, 0.4)]
)
def test_depthmix_masks_equal_the_reference(spec, arrays, name, margin, foreground):
    mask = depthmix_mask(depth(), margin, foreground)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, torch.from_numpy(arrays[f"mask_{name}"]).bool())
    assert mask.sum((1, 2)).tolist() == spec[f"depthmix_{name}"]["ones per image"]


def test_depthmix_loss_equals_the_reference(spec, arrays):
    mask = depthmix_mask(depth(), 0.03)
    mixed = mix(image(), mask)
    np.testing.assert_allclose(mixed[:, :, 16], arrays["mixed_img_row16"], atol=1e-7)
    np.testing.assert_allclose(mixed[:, :, ::4, ::4], arrays["mixed_img_stride4"], atol=1e-7)
    assert float(mixed.mean()) == pytest.approx(spec["depthmix_loss"]["mean of mixed image"], rel=1e-6)

    student = 2 * randn((2, 19, *SIZE), 104)
    for truth, expected in ((True, spec["depthmix_loss"]), (False, spec["depthmix_loss_without_gt"])):
        labels, confidence = pseudo_labels(teacher_logits())
        if truth:
            labels, confidence = with_ground_truth(labels, confidence, *ground_truth())
        labels = mix(labels, mask)
        weight = confident_share(mix(confidence, mask))
        assert float(weight) == pytest.approx(next(v for k, v in expected.items() if k.startswith("weight")), rel=1e-6)
        assert float(cross_entropy(student, labels, weight)) == pytest.approx(expected["L_u"], rel=1e-5)
        if truth:
            assert int((labels == VOID).sum()) == expected["ignored pixels"]
            shown = torch.from_numpy(arrays["pseudo_label"]).long()
            shown[shown == 250] = VOID
            assert torch.equal(labels, shown)


def literal(disparity, margin, thresholds):
    """DepthMix as the specification writes it, pixel by pixel, the partner of i being (i + 1) mod B."""
    count, height, width = disparity.shape
    mask = torch.zeros(disparity.shape, dtype=torch.bool)
    for i in range(count):
        j = (i + 1) % count
        for y in range(height):
            for x in range(width):
                own, other = disparity[i, y, x], disparity[j, y, x]
                mask[i, y, x] = bool(own >= other - margin) and bool(own >= thresholds[i])
    return mask


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_depthmix_takes_any_batch_size(count):
    disparity, thresholds = rand((count, 6, 7), 1), torch.linspace(0.1, 0.6, count)
    assert torch.equal(depthmix_mask(disparity, 0.1, thresholds), literal(disparity, 0.1, thresholds))
    images, mask = rand((count, 3, 6, 7), 2), rand((count, 6, 7), 3) > 0.5
    mixed, maps = mix(images, mask), mix(images[:, 0], mask)
    for i in range(count):
        j = (i + 1) % count
        m = mask[i].float()
        assert torch.equal(mixed[i], m * images[i] + (1 - m) * images[j])
        assert torch.equal(maps[i], mixed[i, 0])


def test_equal_depths_keep_the_image_itself():
    """Road on road: without a margin too, and at the threshold itself."""
    disparity = rand((1, 5, 6), 3).expand(2, 5, 6)
    assert depthmix_mask(disparity, 0.0, float(disparity.min())).all()
    assert depthmix_mask(disparity, 0.0, disparity.amin((1, 2))).all()


def test_the_nearer_surface_shows_in_both_mixes():
    """A near box in each of two flat scenes at one distance: both boxes show in both mixes, and the rest is one's own.

    Shown by colour, not by the formula: where the box of the other image would be behind one's own, it is not pasted.
    """
    disparity, colour = torch.full((2, 8, 8), 0.2), torch.zeros(2, 1, 8, 8)
    colour[1] = 1
    disparity[0, 2:6, 1:4], colour[0, 0, 2:6, 1:4] = 0.9, 0.3
    disparity[1, 2:6, 3:7], colour[1, 0, 2:6, 3:7] = 0.6, 0.7
    mixed = mix(colour, depthmix_mask(disparity, 0.03))
    for i in range(2):
        expected = torch.full((8, 8), float(i))
        expected[2:6, 3:7] = 0.7
        expected[2:6, 1:4] = 0.3
        assert torch.equal(mixed[i, 0], expected)


def test_foreground_limits_draw_one_threshold_per_image():
    disparity = torch.linspace(0, 1, 1001).view(1, 1, 1001).expand(64, 1, 1001)
    labels = torch.zeros(64, 1, 1001, dtype=torch.long)
    mask = draw_mask("depthmix", labels, 3, disparity, generator(1, "mask", 0), 0.03, (0.2, 0.6))
    least = torch.where(mask, disparity, 2).amin((1, 2))
    assert 0.2 <= float(least.min()) < 0.26 and 0.54 < float(least.max()) <= 0.602
    assert len(set(least.tolist())) > 50
    fixed = draw_mask("depthmix", labels, 3, disparity, generator(1, "mask", 0), 0.03, (0.4, 0.4))
    assert torch.where(fixed, disparity, 2).amin((1, 2)).tolist() == pytest.approx([0.4] * 64)


def test_online_disparity_is_normalised_per_crop_and_detached():
    raw = (3 * rand((3, 1, 5, 6), 4) + 2).requires_grad_()
    normalised = normalise_per_image(raw)
    assert normalised.shape == (3, 5, 6) and not normalised.requires_grad
    for one, before in zip(normalised, raw.detach()[:, 0], strict=True):
        torch.testing.assert_close(one, (before - before.min()) / (before.max() - before.min()))
        assert float(one.min()) == 0 and float(one.max()) == 1
    assert torch.equal(normalise_per_image(raw[:, 0]), normalised)


def test_a_constant_disparity_is_no_division_by_zero():
    raw = torch.stack([torch.full((4, 4), 0.7), rand((4, 4), 5)])
    normalised = normalise_per_image(raw)
    assert torch.equal(normalised[0], torch.zeros(4, 4)) and float(normalised[1].max()) == 1


# ---- the other masks


def test_classmix_equals_the_reference(spec, arrays):
    expected = spec["classmix"]
    labels = resized(3 * randn((2, 19, 4, 6), 105), SIZE, "nearest").argmax(1)
    assert torch.equal(labels, torch.from_numpy(arrays["classmix_argmax"]).long())
    present = present_classes(labels, 19)
    assert [row.nonzero().flatten().tolist() for row in present] == expected["classes present"]

    # The reference's own draw, as random numbers that put its classes first.
    kept = torch.zeros(2, 19, dtype=torch.bool)
    for row, classes in zip(kept, expected["classes kept"], strict=True):
        row[classes] = True
    chosen = choose_classes(present, torch.where(kept, 0.1, 0.9) + 0.01 * rand((2, 19), 0))
    assert torch.equal(chosen, kept)
    mask = class_mask(labels, chosen)
    assert torch.equal(mask, torch.from_numpy(arrays["classmix_mask"]).bool())
    assert mask.sum((1, 2)).tolist() == expected["mask ones"]
    assert float(mix(image(), mask).mean()) == pytest.approx(expected["mean of mixed image"], rel=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 3, 6, 7])
def test_half_of_the_present_classes_are_kept_all_choices_alike(classes):
    names = torch.arange(classes) * 2 + 1  # of 16, so that absent ones lie between
    labels = names[torch.arange(4096) % classes].view(1, 64, 64).expand(32, 64, 64)
    kept = np.zeros(16, int)
    choices = set()
    for step in range(25):
        mask = draw_mask("class", labels, 16, None, generator(1, "mask", step))
        for one in mask:
            found = labels[0][one].unique().tolist()
            assert len(found) == classes // 2
            assert not set(found) & set(labels[0][~one].unique().tolist()), "a class is torn apart"
            kept[found] += 1
            choices.add(tuple(found))
    assert not kept[::2].any()
    if classes > 1:
        # 800 draws of a share of about a half: 6 standard deviations are 85
        assert np.abs(kept[names] - 800 * (classes // 2) / classes).max() < 85
    if 1 < classes < 7:
        assert len(choices) == math.comb(classes, classes // 2)


def test_void_pixels_of_a_mask_count_as_class_0():
    """In the reference they are rows of zeros, whose first entry is the largest (section 9)."""
    labels = torch.full((1, 4, 4), 5)
    labels[0, 0] = VOID
    assert present_classes(labels, 7)[0].nonzero().flatten().tolist() == [0, 5]
    chosen = torch.zeros(1, 7, dtype=torch.bool)
    chosen[0, 0] = True
    assert torch.equal(class_mask(labels, chosen), labels == VOID)


def test_no_mask_leaves_everything(spec):
    labels = torch.zeros(2, *SIZE, dtype=torch.long)
    mask = draw_mask("none", labels, 19, None, generator(1))
    assert mask.shape == labels.shape and float(mask.sum()) == spec["no_mask"]["sum"]
    assert torch.equal(mix(image(), mask), image())


def test_depth_thresholds_are_uniform_per_image():
    disparity = torch.linspace(0, 1, 2001).view(1, 1, 2001).expand(400, 1, 2001)
    labels = torch.zeros(400, 1, 2001, dtype=torch.long)
    mask = draw_mask("depth", labels, 3, disparity, generator(1, "mask", 0))
    least = torch.where(mask, disparity, 2).amin((1, 2)).numpy()
    assert (mask == (disparity >= torch.from_numpy(least).view(-1, 1, 1))).all()
    assert least.min() >= 0.1 and least.max() <= 0.401
    assert np.histogram(least, 4, (0.1, 0.401))[0] == pytest.approx([100] * 4, abs=35)  # 4 standard deviations


def test_histogram_thresholds_lie_between_the_quantile_and_the_farthest_dense_bin():
    """A tenth of the pixels is sky at 0.05 (dense), single ones are farther (not dense), the rest a ramp."""
    ramp = torch.linspace(0.2, 1.0, 8970)
    one = torch.cat([torch.linspace(0, 0.04, 30), torch.full((1000,), 0.05), ramp])
    disparity = one[torch.randperm(10000, generator=torch.Generator().manual_seed(0))].view(1, 100, 100)
    disparity = torch.cat([disparity, disparity / 2])
    low, high = histogram_limits(disparity)
    width = np.log(2) / mixing.HISTOGRAM_BINS
    for i, scale in enumerate((1, 0.5)):
        values = np.log1p(scale * one.numpy())
        assert float(high[i]) == pytest.approx(np.quantile(values, 0.4), abs=1e-3)
        assert np.log1p(0.05 * scale) - width <= float(low[i]) <= np.log1p(0.05 * scale)
    labels = torch.zeros(2, 100, 100, dtype=torch.long)
    shares = [
        draw_mask("depthhist", labels, 3, disparity, generator(1, "mask", k)).float().mean((1, 2)) for k in range(60)
    ]
    shares = torch.stack(shares)
    assert float(shares.min()) >= 0.6 - 1e-3 and float(shares.max()) <= 0.998
    assert float(shares.min()) < 0.66 and float(shares.max()) > 0.88


@pytest.mark.parametrize("kind", ["depthmix", "depth", "depthhist"])
def test_a_missing_disparity_is_one_line(kind):
    with pytest.raises(UserError, match=f"mask {kind}: the unlabelled stream carries no disparity"):
        draw_mask(kind, torch.zeros(1, 2, 2, dtype=torch.long), 3, None, generator(1), 0.03, (0.0, 0.0))


def test_an_unknown_mask_is_one_line():
    with pytest.raises(UserError, match="unknown mask 'cow'; choose"):
        draw_mask("cow", torch.zeros(1, 2, 2, dtype=torch.long), 3, torch.zeros(1, 2, 2), generator(1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_images_draws_do_not_depend_on_the_size_of_the_batch(kind):
    labels = torch.randint(0, 6, (6, 16, 16), generator=torch.Generator().manual_seed(0))
    disparity = rand((6, 16, 16), 1)
    masks = [draw_mask(kind, labels[:n], 6, disparity[:n], generator(3, "mask", 9), 0.03, (0.1, 0.7)) for n in (6, 4)]
    assert torch.equal(masks[0][:3], masks[1][:3])  # the fourth has another partner


# ---- pseudo labels and their weight


def test_pseudo_labels_are_the_largest_of_the_softmax():
    logits = teacher_logits()
    labels, confidence = pseudo_labels(logits)
    p = logits.softmax(1)
    assert torch.equal(labels, p.argmax(1)) and torch.equal(confidence, p.amax(1))


def test_mixing_labels_is_mixing_probabilities():
    """The reference mixes the probabilities of all classes, ground truth as one-hot; masks are 0 or 1, so it is one."""
    truth, labelled = ground_truth()
    mask = rand((2, *SIZE), 7) > 0.5
    p = teacher_logits().softmax(1)
    one_hot = F.one_hot(truth[0].masked_fill(truth[0] == VOID, 19), 20)[..., :19].permute(2, 0, 1)
    p = torch.stack([one_hot.float(), p[1]])
    m = mask[:, None].float()
    largest, label = (m * p + (1 - m) * p.roll(-1, 0)).max(1)
    label[largest == 0] = VOID
    labels, confidence = with_ground_truth(*pseudo_labels(teacher_logits()), truth.to(torch.uint8), labelled)
    assert torch.equal(mix(labels, mask), label) and torch.equal(mix(confidence, mask), largest)


def test_the_weight_counts_all_pixels_and_the_threshold_itself():
    assert float(confident_share(torch.tensor([[[0.968, 0.9679, 1.0, 0.0]]]))) == 0.5
    assert float(confident_share(torch.tensor([[[0.5, 0.4]]]), 0.5)) == 0.5


# ---- strong augmentation


@pytest.mark.parametrize("order", ["0123", "3210"])
def test_colour_jitter_equals_the_reference(spec, arrays, order):
    expected = spec[f"color_jitter_order_{order}"]
    factors = {k.removesuffix("_factor"): torch.tensor(v) for k, v in expected.items() if k.endswith("_factor")}
    factors["brightness"] = factors["brightness"] - 1
    before = image()
    out = color_jitter(before, **factors, order=[int(k) for k in order])
    assert torch.equal(before, image()), "the input was written into"
    np.testing.assert_allclose(out[:, :, ::4, ::4], arrays[f"jitter_order_{order}"], atol=5e-6)
    assert float(out.mean()) == pytest.approx(expected["mean"], abs=2e-6)


def hsv(pixel, change):
    h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in pixel))
    return colorsys.hsv_to_rgb(*change(h, s, v))


@pytest.mark.parametrize("value", [-0.7, -0.25, 0.0, 0.1, 0.25, 1.3])
@pytest.mark.parametrize("k", [2, 3])
def test_saturation_and_hue_are_those_of_hsv(k, value):
    """Against the standard library, with greys, black, white and pure and half colours among the pixels."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    pixels = torch.cat([corners, rand((37, 3), 8)])
    images = pixels.T.reshape(1, 3, 8, 8)
    one, none = torch.ones(1), torch.zeros(1)
    factor = torch.tensor([value])
    out = color_jitter(images, none, one, 1 + factor if k == 2 else one, factor if k == 3 else none, [k])
    change = (
        (lambda h, s, v: (h, min(1.0, s * (1 + value)), v)) if k == 2 else (lambda h, s, v: ((h + value) % 1, s, v))
    )
    expected = torch.tensor([hsv(p, change) for p in pixels.tolist()]).T.reshape(1, 3, 8, 8)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def test_blur_equals_the_reference(spec):
    expected = spec["gaussian_blur_64"]
    out = gaussian_blur(rand((1, 3, 64, 64), 106), expected["sigma"])
    assert float(out.mean()) == pytest.approx(expected["mean"], rel=1e-6)
    assert out[0, 0, 0, :4].tolist() == pytest.approx(expected["[0,0,0,:4]"], abs=1e-6)
    assert out[0, 2, 32, 30:34].tolist() == pytest.approx(expected["[0,2,32,30:34]"], abs=1e-6)


def test_blur_kernels_are_about_a_tenth_of_the_picture(spec):
    assert {side: blur_kernel_size(int(side)) for side in spec["blur_kernel_size_rule"]} == spec[
        "blur_kernel_size_rule"
    ]
    assert all(blur_kernel_size(n) % 2 == 1 for n in range(1, 2000))


@pytest.mark.parametrize("sigma", [0.15, 0.7, 1.15])
@pytest.mark.parametrize("size", [(512, 64), (64, 512), (16, 16)])
def test_blur_equals_opencv(size, sigma):
    """With the whole kernel, border reflected without repeating it; each side has a kernel of its own."""
    picture = rand((3, *size), 9)
    expected = cv2.GaussianBlur(
        picture.permute(1, 2, 0).numpy(), (blur_kernel_size(size[1]), blur_kernel_size(size[0])), sigma,
        borderType=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    out = gaussian_blur(picture[None].contiguous(memory_format=torch.channels_last), sigma)[0]
    np.testing.assert_allclose(out.permute(1, 2, 0), expected, atol=2e-6)


def test_strong_augmentation_is_a_function_of_seed_and_step():
    images = image()
    reference = [strong_augment(images, 1, step) for step in range(8)]
    assert torch.equal(images, image())
    torch.manual_seed(0)
    np.random.seed(0)
    for step in (5, 0, 5):
        assert torch.equal(strong_augment(images, 1, step), reference[step])
    assert len({float(strong_augment(images, seed, step, 1.0).mean()) for seed in (1, 2) for step in range(8)}) == 16
    # An image's draws depend on its place, not on the size of the batch.
    many = torch.cat([images, images])
    for step, expected in enumerate(reference):
        assert torch.equal(strong_augment(many, 1, step)[:2], expected)


def test_jitter_and_blur_are_as_frequent_as_asked():
    """4 standard deviations of 400 draws are 32 and 40."""
    grey = torch.full((1, 3, 4, 4), 0.5)  # blind to blur, saturation and hue
    point = torch.zeros(1, 3, 4, 4)
    point[..., 2, 2] = 1.0
    spread = resized(point, (32, 32), "nearest")
    jittered = sum(not torch.equal(strong_augment(grey, 1, s, blur=0), grey) for s in range(400))
    blurred = sum(not torch.equal(strong_augment(spread, 1, s, jitter=0), spread) for s in range(400))
    both = sum(
        not torch.equal(strong_augment(grey, 1, s, blur=0), grey)
        and not torch.equal(strong_augment(spread, 1, s, jitter=0), spread)
        for s in range(400)
    )
    assert abs(jittered - 320) <= 32 and abs(blurred - 200) <= 40
    assert abs(both - 160) <= 40, "jitter and blur are not independent"
    for step in range(20):
        assert strong_augment(spread, 1, step, jitter=0, blur=0) is spread
        assert not torch.equal(strong_augment(grey, 1, step, jitter=1, blur=0), grey)
        assert not torch.equal(strong_augment(spread, 1, step, jitter=0, blur=1), spread)


def test_jitter_draws_each_image_by_itself_within_its_strength(monkeypatch):
    from semivid.data import strong

    seen = []
    monkeypatch.setattr(strong, "color_jitter", lambda images, *values: seen.append(values) or images)
    for step in range(200):
        strong.strong_augment(torch.zeros(3, 3, 2, 2), 1, step, jitter=1.0, strength=0.25, blur=0)
    *factors, orders = zip(*seen, strict=True)
    for values, middle in zip(map(torch.cat, factors), (0, 1, 1, 0), strict=True):
        assert float(values.min()) == pytest.approx(middle - 0.25, abs=0.01)
        assert float(values.max()) == pytest.approx(middle + 0.25, abs=0.01)
        assert float(values.mean()) == pytest.approx(middle, abs=0.025)
        assert len(set(values.tolist())) > 590
    assert {tuple(sorted(o)) for o in orders} == {(0, 1, 2, 3)} and len({tuple(o) for o in orders}) == 24


def test_blur_widths_are_uniform(monkeypatch):
    from semivid.data import strong

    widths = []
    monkeypatch.setattr(strong, "gaussian_blur", lambda images, sigma: widths.append(sigma) or images)
    for step in range(400):
        strong.strong_augment(torch.zeros(1, 3, 2, 2), 1, step, jitter=0, blur=1.0)
    assert min(widths) >= 0.15 and max(widths) <= 1.15
    assert np.histogram(widths, 4, (0.15, 1.15))[0] == pytest.approx([100] * 4, abs=35)


# ---- what runs on the device


def test_nothing_reads_the_device_or_mixes_devices():
    """`meta` tensors have no values: to read one, or to combine it with one of the host, is an error."""
    images = torch.empty(2, 3, 32, 32, device="meta")
    disparity, logits = images[:, 0], torch.empty(2, 5, 32, 32, device="meta")
    labels, confidence = pseudo_labels(logits)
    truth = torch.empty(2, 32, 32, dtype=torch.uint8, device="meta")
    labels, confidence = with_ground_truth(labels, confidence, truth, torch.empty(2, dtype=torch.bool, device="meta"))
    for kind in KINDS:
        mask = draw_mask(kind, labels, 5, normalise_per_image(disparity), generator(1), 0.03, (0.1, 0.2))
        assert mask.device.type == "meta" and mix(images, mask).device.type == "meta"
        assert confident_share(mix(confidence, mask)).shape == ()
    for step in range(10):
        assert strong_augment(images, 1, step, jitter=1.0).device.type == "meta"


# ---- learning rates of the same fixture


def test_learning_rates_equal_the_reference(spec):
    for name, schedule, iterations, milestones in (
        ("poly_lr_2 max_iter 4000 power 0.9", "poly", 4000, ()),
        ("step_lr 30000 gamma 0.1", "step", 40000, (30000,)),
    ):
        for step, factor in spec["lr_factor"][name].items():
            assert rate_factor(schedule, int(step), iterations, milestones) == pytest.approx(factor, rel=1e-9)
