"""The Flow Consistency Loss and the reference's cross entropies: its numbers, plain loops, and what must not count."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT
from helpers import rand, randn
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.methods import flow_consistency_loss as module
from semivid.methods.flow_consistency_loss import flow_consistency_loss, pair_weights
from semivid.training.reference_losses import bootstrapped_cross_entropy, cross_entropy2d, multi_scale_cross_entropy

sys.path.insert(0, str(ROOT))

from benchmarks import flow_consistency as benchmark

VOID = 250
SHAPE = (2, 16, 24)


@pytest.fixture(scope="module")
def spec(data_dir):
    return json.loads((data_dir / "flow_consistency_loss.json").read_text())


@pytest.fixture(scope="module")
def arrays(data_dir):
    return np.load(data_dir / "flow_consistency_loss.npz")


def fixture_flow(name):
    flow = 6 * rand((2, 2, 16, 24), 1) - 3
    if "pm03" in name:
        flow = 0.1 * flow
    if name.endswith("_bottom0"):
        flow[:, :, 12:] = 0
    return flow


def fixture_logits():
    return 2 * randn((2, 19, 16, 24), 0)


def fixture_labels():
    labels = torch.randint(0, 19, SHAPE, generator=torch.Generator().manual_seed(2))
    return labels.masked_fill(rand(SHAPE, 3) < 0.1, VOID)


def with_gradient(loss, logits):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def close(actual, expected, rel=1e-5, atol=0.0):
    expected = torch.as_tensor(np.asarray(expected)).to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=rel, atol=atol)


# The reference's numbers


@pytest.mark.parametrize("number", range(15))
def test_reference_values_and_gradients(spec, arrays, number):
    fact = spec["flow_consistency"][number]
    assert len(spec["flow_consistency"]) == 15
    args = dict(fact["args"])
    weight, average = args.pop("flow_weight"), args.pop("size_average")
    version = {"flow_consistency": "final", "flow_consistency_v2": "v2"}.get(fact["function"], "january")

    def loss(z):
        reduction = "mean" if average else "sum"
        return weight * flow_consistency_loss(
            z, fixture_flow(fact["flow"]), version=version, reduction=reduction, **args
        )

    value, gradient = with_gradient(loss, fixture_logits())
    close(value, fact["value"])
    close(gradient.norm(), fact["grad_l2"])
    close(gradient.abs().sum(), fact["grad_sum_abs"])
    scale = float(gradient.abs().max())
    close(gradient[0, 0, 0, :4], fact["grad[0,0,0,:4]"], atol=1e-6 * scale)
    close(gradient[1, 5, 8, 10:14], fact["grad[1,5,8,10:14]"], atol=1e-6 * scale)
    if version == "final" and weight == 0.01 and not average:
        close(gradient, arrays[f"grad_fcl_{fact['flow']}"], atol=1e-6 * scale)


def test_versions_have_the_published_defaults(spec):
    flow, logits = fixture_flow("flow_pm3_bottom0"), fixture_logits()
    assert flow_consistency_loss(logits, flow) == flow_consistency_loss(logits, flow, max_shift=1, threshold=0.2)
    january = 10 * flow_consistency_loss(logits, flow, version="january")
    close(january, next(f["value"] for f in spec["flow_consistency"] if "january" in f["function"]))
    attraction = flow_consistency_loss(logits, flow, version="v2")
    assert attraction == flow_consistency_loss(logits, flow, version="v2", max_shift=1, threshold=0.5) > 0


# Against plain computations


def loops(logits, flow, m, tau, version="final", valid=None, clamp=math.inf, q=None):
    """The definition, pixel by pixel in Python floats; `q` replaces the neighbours' probabilities."""
    batch, classes, height, width = logits.shape
    p = torch.softmax(logits.double(), 1).numpy()
    q = p if q is None else q
    flow = flow.double().numpy()
    total = 0.0
    for n, y, x in itertools.product(range(batch), range(height), range(width)):
        for a, b in itertools.product(range(-m, m + 1), repeat=2):
            y2, x2 = y - a, x - b
            if (a, b) == (0, 0) or not (0 <= y2 < height and 0 <= x2 < width):
                continue
            (u, v), (u2, v2) = flow[n, :, y, x], flow[n, :, y2, x2]
            if not (u2 or v2) if valid is None else not (valid[n, y, x] and valid[n, y2, x2]):
                continue
            apart = math.hypot(u - u2, v - v2)
            weight = max(0.0, (tau - apart) / tau) if version == "v2" else apart * (apart > tau)
            weight = min(weight, clamp) / (8 * max(abs(a), abs(b)))
            for c in range(classes):
                total += weight * q[n, c, y2, x2] * math.log(p[n, c, y, x] + 1e-10)
    return -total if version == "v2" else total


def small(seed=0, size=(4, 5), classes=3):
    logits = 3 * randn((2, classes, *size), seed).double()
    flow = (2 * rand((2, 2, *size), seed + 1) - 1).double()
    flow[:, :, 1, 2] = 0
    flow[0, 0, 2, 3] = flow[1, 1, 0, 1] = 0  # moves along one axis only: not static
    flow[1, :, 2, :3] = 0.25  # equal neighbours
    return logits, flow, rand((2, *size), seed + 2) < 0.7


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("version", "m", "tau"),
    [("final", 1, 0.2), ("final", 2, 1.0), ("final", 3, 0.0), ("january", 2, 0.0), ("v2", 1, 0.5), ("v2", 2, 1.5)],
)
def test_small_images_in_plain_loops(version, m, tau, masked):
    logits, flow, valid = small()
    valid = valid if masked else None
    expected = loops(logits, flow, m, tau, version, valid)
    assert abs(expected) > 1
    value = flow_consistency_loss(logits, flow, version=version, max_shift=m, threshold=tau, valid=valid)
    assert value.dtype == torch.float64 and value.item() == pytest.approx(expected, rel=1e-12)
    mean = flow_consistency_loss(
        logits, flow, version=version, max_shift=m, threshold=tau, valid=valid, reduction="mean"
    )
    assert mean.item() == pytest.approx(expected / 40, rel=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2), (4, 5)])
def test_neighbours_may_reach_beyond_the_image(size):
    logits, flow = 3 * randn((1, 2, *size), 0).double(), 1 + rand((1, 2, *size), 1).double()
    value = flow_consistency_loss(logits, flow, max_shift=3, threshold=0.1)
    assert value.item() == pytest.approx(loops(logits, flow, 3, 0.1), rel=1e-12)


def test_gradient_by_finite_differences():
    """Of the pixel's own log-likelihood: the neighbours' probabilities are held at where they were."""
    logits, flow, valid = small(classes=2)
    logits[0, 0, 0, 0] = 40.0  # p of the other class is far below 1e-10
    q = torch.softmax(logits, 1).numpy()
    _, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow, valid=valid), logits)
    _, free = with_gradient(lambda z: flow_consistency_loss(z, flow), logits)
    step = 1e-5
    for place in itertools.product(range(2), range(2), (0, 2, 3), (0, 2, 4)):
        change = torch.zeros_like(logits)
        change[place] = step
        for mask, ours in ((valid, gradient), (None, free)):
            up, down = (loops(logits + s * change, flow, 1, 0.2, valid=mask, q=q) for s in (1, -1))
            assert ours[place].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


FLOWS = {
    "dense": lambda b, h, w: benchmark.random_flow(b, h, w),
    "street": lambda b, h, w: F.interpolate(benchmark.street_flow(b, 256, 512), size=(h, w), mode="nearest"),
    "one object": lambda b, h, w: F.pad(torch.full((b, 2, 7, 9), 2.5), (11, w - 20, 12, h - 19)) + 0.5,
    "none": lambda b, h, w: torch.full((b, 2, h, w), 1.5),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("kind", FLOWS)
def test_equal_to_the_literal_formulation(monkeypatch, kind, m, memory_format):
    """In double precision, with bands of 8 rows of which the last is cut: values and whole gradients."""
    monkeypatch.setattr(module, "_BAND", 1)
    logits = 2 * randn((2, 19, 45, 40), 3).double().to(memory_format=memory_format)
    flow = FLOWS[kind](2, 45, 40).double()
    value, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow, max_shift=m), logits)
    expected, literal = with_gradient(lambda z: benchmark.plain(z, flow, max_shift=m), logits)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, literal, rtol=1e-11, atol=1e-14)
    assert (value == 0) == (kind == "none") and (gradient.norm() == 0) == (kind == "none")


def test_bands_do_not_change_the_result(monkeypatch):
    logits, flow = 2 * randn((2, 19, 45, 40), 3).double(), benchmark.random_flow(2, 45, 40).double()
    results = []
    for elements in (1, 2 * 19 * 40 * 20, 2**30):
        monkeypatch.setattr(module, "_BAND", elements)
        results.append(with_gradient(lambda z: flow_consistency_loss(z, flow, max_shift=3), logits))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-13, atol=0)
        assert torch.equal(gradient, results[0][1])


# What the numbers of the reference cannot see


def test_seam_of_the_discarded_bottom():
    """Constant motion repels nothing; zeroing the bottom rows makes a border, the mask does not (section 4)."""
    logits, flow = torch.zeros(1, 19, 16, 24), torch.full((1, 2, 16, 24), 5 / math.sqrt(2))
    assert flow_consistency_loss(logits, flow) == 0
    flow[:, :, 12:] = 0
    assert flow_consistency_loss(logits, flow).item() == pytest.approx(-128.82, abs=0.005)
    valid = torch.ones(1, 16, 24, dtype=torch.bool)
    valid[:, 12:] = False
    value, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow, valid=valid), logits)
    assert value == 0 and not gradient.any()


def test_mask_is_what_a_smaller_image_gives():
    """A masked border and a cropped image are the same."""
    logits, flow, _ = small(size=(9, 11))
    flow += 2  # nothing is exactly 0
    valid = torch.zeros(2, 9, 11, dtype=torch.bool)
    valid[:, 2:8, 1:9] = True
    whole, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow, max_shift=2, valid=valid), logits)
    part, inner = with_gradient(
        lambda z: flow_consistency_loss(z, flow[:, :, 2:8, 1:9], max_shift=2), logits[:, :, 2:8, 1:9]
    )
    torch.testing.assert_close(whole, part, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[:, :, 2:8, 1:9], inner, rtol=1e-12, atol=0)
    assert not gradient[~valid[:, None].expand_as(gradient)].any()


def test_static_pixel_is_a_neighbour_like_any_other():
    """With a mask both ends of each pair are repelled; the reference's rule repels the static pixel alone."""
    logits, flow = torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 1.0)
    flow[:, :, 1, 1] = 0
    once = 8 * math.sqrt(2) / 8 * math.log(0.5)
    assert flow_consistency_loss(logits, flow).item() == pytest.approx(once)
    everywhere = torch.ones(1, 3, 3, dtype=torch.bool)
    assert flow_consistency_loss(logits, flow, valid=everywhere).item() == pytest.approx(2 * once)
    weights = pair_weights(flow)
    assert all(w[0, 1, 1] > 0 and w.sum() == w[0, 1, 1] for w in weights.values())


def test_it_repels():
    """A step against the gradient lowers the loss and drives the two sides of a motion border apart; v2 joins."""
    flow = torch.ones(1, 2, 6, 8)
    flow[..., 4:] = 3
    logits = 0.1 * randn((1, 2, 6, 8), 0)
    for version, sign in (("final", 1), ("v2", -1)):
        value, gradient = with_gradient(lambda z, v=version: flow_consistency_loss(z, flow, version=v), logits)
        moved = logits - 0.1 * gradient
        assert flow_consistency_loss(moved, flow, version=version) < value
        before, after = (torch.softmax(z, 1) for z in (logits, moved))
        side = {"final": (3, 4), "v2": (1, 2)}[version]
        apart = [(p[..., side[0]] - p[..., side[1]]).abs().mean().item() for p in (before, after)]
        assert sign * (apart[1] - apart[0]) > 0


def test_classes_and_images_are_independent():
    logits, flow, valid = small(size=(6, 7), classes=5)
    value, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow, valid=valid), logits)
    order = [3, 0, 4, 1, 2]
    permuted, moved = with_gradient(lambda z: flow_consistency_loss(z, flow, valid=valid), logits[:, order])
    torch.testing.assert_close(permuted, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved, gradient[:, order], rtol=1e-12, atol=1e-16)
    single = [flow_consistency_loss(logits[n : n + 1], flow[n : n + 1], valid=valid[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(sum(single), value, rtol=1e-12, atol=0)


def test_clamp_limits_an_outlier():
    logits, flow, _ = small()
    flow[0, :, 0, 0] = 500
    value = flow_consistency_loss(logits, flow, clamp=0.5)
    assert value.item() == pytest.approx(loops(logits, flow, 1, 0.2, clamp=0.5), rel=1e-12)
    assert abs(value) < abs(flow_consistency_loss(logits, flow)) / 50


def test_threshold_is_exclusive():
    """A difference of exactly the threshold does not count: w = 0 where w <= tau."""
    flow = torch.ones(1, 2, 1, 2)
    flow[0, 0, 0, 1] = 1.25
    logits = torch.zeros(1, 2, 1, 2)
    assert flow_consistency_loss(logits, flow, threshold=0.25) == 0
    assert flow_consistency_loss(logits, flow, threshold=0.24) < 0


def test_nothing_valid():
    logits, flow, _ = small()
    nothing = torch.zeros(2, 4, 5, dtype=torch.bool)
    for version in ("final", "january", "v2"):
        value, gradient = with_gradient(
            lambda z, v=version: flow_consistency_loss(z, flow.float(), version=v, valid=nothing), logits.float()
        )
        assert value == 0 and not gradient.any()


def test_flow_of_invalid_pixels_is_not_looked_at():
    logits, flow, valid = small()
    expected = flow_consistency_loss(logits, flow, valid=valid)
    spoilt = flow.masked_fill(~valid[:, None], float("nan"))
    value, gradient = with_gradient(lambda z: flow_consistency_loss(z, spoilt, valid=valid), logits)
    assert value == expected and torch.isfinite(gradient).all()


def test_confident_predictions_stay_finite():
    """1e-10 bounds the reward at log 1e-10 per unit of weight (section 4)."""
    flow = torch.ones(1, 2, 1, 2)
    flow[0, 0, 0, 1] = 2
    logits = torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]])
    value, gradient = with_gradient(lambda z: flow_consistency_loss(z, flow), logits)
    assert value.item() == pytest.approx(2 / 8 * math.log(1e-10), rel=1e-6)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    logits, flow = fixture_logits().to(dtype), fixture_flow("flow_pm3")
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = with_gradient(lambda z: 0.01 * flow_consistency_loss(z, flow), logits)
    exact, reference = with_gradient(lambda z: 0.01 * flow_consistency_loss(z, flow), logits.float())
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert value == exact
    torch.testing.assert_close(gradient.float(), reference, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_flow_gets_no_gradient_and_types_mix():
    logits, flow, _ = small()
    flow.requires_grad_()
    value = flow_consistency_loss(logits.float().requires_grad_(), flow)
    value.backward()
    assert flow.grad is None and value.dtype == torch.float32
    assert flow_consistency_loss(logits, flow.detach().float()).item() == pytest.approx(value.item(), rel=1e-5)
    assert not flow_consistency_loss(logits, flow).requires_grad
    with torch.no_grad():
        assert flow_consistency_loss(logits, flow).item() == pytest.approx(value.item(), rel=1e-5)


def test_weight_of_the_loss_scales_the_gradient():
    logits, flow, _ = small()
    _, one = with_gradient(lambda z: flow_consistency_loss(z, flow), logits)
    _, other = with_gradient(lambda z: 0.3 * flow_consistency_loss(z * 2, flow), logits)
    _, doubled = with_gradient(lambda z: flow_consistency_loss(z, flow), 2 * logits)
    torch.testing.assert_close(other, 0.6 * doubled, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(one, doubled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": torch.ones(2, 2, 8, 10)}, r"flow of \(B, H, W\) = \(2, 8, 10\) does not fit .*\(2, 4, 5\); resize"),
        ({"flow": torch.ones(1, 2, 4, 5)}, "does not fit"),
        ({"flow": torch.ones(2, 4, 5, 2)}, r"flow \(2, 4, 5, 2\).*wanted are floats \(B, 2, H, W\)"),
        ({"flow": torch.ones(2, 2, 4, 5, dtype=torch.int16)}, "wanted are floats"),
        ({"flow": torch.full((2, 2, 4, 5), float("nan"))}, "infinite or not a number"),
        ({"flow": torch.full((2, 2, 4, 5), float("inf"))}, "infinite or not a number"),
        ({"logits": torch.ones(3, 4, 5)}, r"logits \(3, 4, 5\)"),
        ({"logits": torch.ones(2, 3, 4, 5, dtype=torch.uint8)}, "wanted are floats"),
        ({"valid": torch.ones(2, 1, 4, 5, dtype=torch.bool)}, r"valid \(2, 1, 4, 5\).*wanted is bool"),
        ({"valid": torch.full((2, 4, 5), 255, dtype=torch.uint8)}, "wanted is bool"),
        ({"version": "February"}, "unknown version 'February'; take one of final, january, v2"),
        ({"reduction": "none"}, "unknown reduction 'none'"),
        ({"max_shift": 0}, "max_shift 0"),
        ({"threshold": -0.1}, "threshold -0.1"),
        ({"version": "v2", "threshold": 0.0}, "threshold 0.0"),
        ({"version": "january", "threshold": 0.2}, "january has no threshold"),
        ({"clamp": 0.0}, "clamp 0.0"),
    ],
)
def test_bad_input(change, message):
    good = {"logits": torch.ones(2, 3, 4, 5), "flow": torch.ones(2, 2, 4, 5)}
    flow_consistency_loss(**good)
    with pytest.raises(UserError, match=message) as info:
        flow_consistency_loss(**good | change)
    assert "\n" not in str(info.value)


def test_one_bad_value_at_a_valid_pixel_is_refused():
    logits, flow, valid = small()
    flow[0, 1, 3, 4], valid[0, 3, 4] = float("nan"), True
    with pytest.raises(UserError, match="mark them as invalid"):
        flow_consistency_loss(logits, flow, valid=valid)


def test_benchmark_compares_what_it_measures():
    rows = benchmark.run(1, (1, 5, 32, 64), rounds=1)
    assert len(rows) == 2 and all(row.ratio > 0 and row.agreement for row in rows)
    assert benchmark.share_of_pairs(benchmark.street_flow(2, 512, 1024)) == pytest.approx(0.08, abs=0.005)
    assert benchmark.share_of_pairs(benchmark.random_flow(2, 64, 64)) > 0.98


# Cross entropies and metrics


def test_cross_entropy(spec):
    logits, labels = fixture_logits(), fixture_labels()
    assert int((labels != VOID).sum()) == 681
    weight = 0.5 + rand((19,), 4)
    smaller = 2 * randn((2, 19, 8, 12), 5)
    facts = spec["cross_entropy"]
    options = [{}, {"reduction": "mean"}, {"weight": weight}, {"weight": weight, "reduction": "mean"}, {}]
    for fact, option in zip(facts, options, strict=True):
        source = smaller if "input" in fact["args"] else logits
        value, gradient = with_gradient(lambda z, o=option: cross_entropy2d(z, labels, ignore=VOID, **o), source)
        close(value, fact["value"])
        if "grad_l2" in fact:
            close(gradient.norm(), fact["grad_l2"])


def test_other_cross_entropies(spec):
    logits, labels, smaller = fixture_logits(), fixture_labels(), 2 * randn((2, 19, 8, 12), 5)
    for fact in spec["bootstrapped"]:
        close(bootstrapped_cross_entropy(logits, labels, fact["args"]["K"], ignore=VOID), fact["value"])
    close(multi_scale_cross_entropy([logits, smaller], labels, ignore=VOID), spec["multi_scale"]["value"])


def test_bootstrapping_is_per_image_and_void_counts_0():
    logits = torch.zeros(2, 3, 2, 2)
    logits[1, 1] = 8.0
    labels = torch.zeros(2, 2, 2, dtype=torch.uint8)
    labels[1, 0] = labels[0, 1, 1] = 255
    first, second = math.log(3), 8 + math.log(1 + 2 * math.exp(-8))
    # Of the second image two pixels have labels: the third largest loss is that of a void pixel, 0.
    assert bootstrapped_cross_entropy(logits, labels, 3).item() == pytest.approx((first + 2 * second / 3) / 2)
    for k in (0, 5):
        with pytest.raises(UserError, match=f"k = {k}; an image has 1 to 4"):
            bootstrapped_cross_entropy(logits, labels, k)


def test_cross_entropy_without_labels_is_0():
    nothing = torch.full(SHAPE, VOID)
    for option in ({}, {"reduction": "mean"}, {"reduction": "mean", "weight": torch.ones(19)}):
        value, gradient = with_gradient(
            lambda z, o=option: cross_entropy2d(z, nothing, ignore=VOID, **o), fixture_logits()
        )
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("size", [(32, 48), (16, 12), (8, 24), (8, 48)])
def test_cross_entropy_refuses_sizes_that_are_not_smaller_in_both(size):
    with pytest.raises(UserError, match=r"logits of \(\d+, \d+\) for labels of \(16, 24\)"):
        cross_entropy2d(torch.zeros(2, 19, *size), fixture_labels(), ignore=VOID)
    with pytest.raises(UserError, match="unknown reduction"):
        cross_entropy2d(fixture_logits(), fixture_labels(), ignore=VOID, reduction="average")


def test_metrics_of_the_reference(spec):
    def draw(seed):
        return torch.randint(0, 19, SHAPE, generator=torch.Generator().manual_seed(seed))

    truth = draw(6)
    predicted = torch.where(rand(SHAPE, 7) < 0.35, draw(8), truth)
    truth, predicted = truth.masked_fill(truth == 17, 16), predicted.masked_fill(predicted == 17, 16)
    truth = truth.masked_fill(truth == 18, 15).masked_fill(rand(SHAPE, 9) < 0.1, VOID)
    expected = spec["metrics"]
    confusion = confusion_matrix(predicted.numpy(), truth.numpy().astype(np.uint8), 19, void=VOID)
    assert confusion.tolist() == expected["confusion"]
    result = scores(confusion, [str(c) for c in range(19)])
    ours = [result[key] for key in ("accuracy", "mean_class_accuracy", "frequency_weighted_iou", "miou")]
    theirs = [expected[key] for key in ("overall_acc", "mean_acc", "freqw_acc", "mean_iou")]
    assert ours == pytest.approx(theirs, rel=1e-12)
    for value, wanted in zip(result["iou"].values(), expected["class_iou"], strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-12))
