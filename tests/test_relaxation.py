"""Label relaxation and its relatives: the reference's values, a plain loop over pixels, extremes, and the method."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import randn
from semivid.errors import UserError
from semivid.methods.relaxation_loss import (
    LOSSES,
    ImageWeightedLoss,
    PlainLoss,
    RelaxedLoss,
    hard_targets,
    image_weighted_cross_entropy,
    relaxed_loss,
    relaxed_targets,
)
from semivid.methods.relaxed import Relaxed, build
from semivid.methods.supervised import Supervised
from semivid.pipeline.params import Block, Optimisation, Train
from semivid.training.distributed import rank, together
from semivid.training.optim import rate_factor
from semivid.training.runtime import Runtime
from small import small_params

VOID = 255


@pytest.fixture(scope="module")
def reference(data_dir):
    """(JSON, arrays) of the reference's losses."""
    return json.loads((data_dir / "nvidia_losses.json").read_text()), np.load(data_dir / "nvidia_losses.npz")


@pytest.fixture(scope="module")
def labels(reference):
    return torch.from_numpy(reference[1]["labels"])


@pytest.fixture(scope="module")
def logits():
    return 2 * randn((2, 5, 16, 24), 7)


def random_labels(shape, classes, seed, void=VOID):
    """Blobs of 3 x 3 pixels, a tenth of single pixels void."""
    g = torch.Generator().manual_seed(seed)
    count, height, width = shape
    blobs = torch.randint(0, classes, (count, -(-height // 3), -(-width // 3)), generator=g)
    ids = blobs.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].clone()
    ids[torch.rand(shape, generator=g) < 0.1] = void
    return ids.to(torch.uint8)


# ---- targets


def plain_targets(labels, classes, border, strict, void=VOID):
    out = np.zeros((len(labels), classes + 1, *labels.shape[1:]), np.uint8)
    for i, label in enumerate(labels.tolist()):
        for y, row in enumerate(label):
            for x, own in enumerate(row):
                for dy in range(-border, border + 1):
                    for dx in range(-border, border + 1):
                        inside = 0 <= y + dy < len(label) and 0 <= x + dx < len(row)
                        other = label[y + dy][x + dx] if inside else void
                        if own not in strict or (dy, dx) == (0, 0):
                            out[i, classes if other == void else other, y, x] = 1
    return out


@pytest.mark.parametrize(("name", "strict"), [("relaxed", ()), ("relaxed_strict_1_3", (1, 3))])
def test_relaxed_targets_equal_the_reference(reference, labels, name, strict):
    found = relaxed_targets(labels, 5, strict=strict)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, reference[1][name])


def test_targets_after_the_relaxation_equal_the_reference(reference, labels):
    np.testing.assert_array_equal(hard_targets(labels, 5), reference[1]["after_off"])


@pytest.mark.parametrize("border", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (2, 7), (6, 1)])
@pytest.mark.parametrize("strict", [(), (2,), (0, 1)])
def test_targets_agree_with_a_plain_loop(border, size, strict):
    ids = random_labels((2, *size), 4, seed=border)
    found = relaxed_targets(ids, 4, border=border, strict=strict)
    np.testing.assert_array_equal(found, plain_targets(ids, 4, border, strict))
    np.testing.assert_array_equal(relaxed_targets(ids.long(), 4, border=border, strict=strict), found)


def test_rows_of_the_specification():
    """Section 5.3: an inner row, before and after the end of the relaxation."""

    def inner(targets):
        return targets[0, :, 1].tolist()

    ids = torch.tensor([0, 0, 0, 1, VOID, VOID], dtype=torch.uint8).expand(1, 3, 6)
    assert inner(relaxed_targets(ids, 2)) == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1]]
    assert inner(hard_targets(ids, 2)) == [[1, 1, 2, 0, 0, 0], [0, 0, 0, 2, 0, 0], [0, 0, 0, 0, 2, 1]]
    ids = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.uint8).expand(1, 3, 6)
    assert inner(relaxed_targets(ids, 2, strict=[1]))[:2] == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]


def test_the_void_id_may_be_any_beyond_the_classes(labels):
    moved = labels.masked_fill(labels == VOID, 5)
    assert torch.equal(relaxed_targets(moved, 5, void=5), relaxed_targets(labels, 5))
    assert torch.equal(hard_targets(moved, 5, void=5), hard_targets(labels, 5))


# ---- the relaxed loss


def case(labels, name):
    """(targets, options) of a case of the fixture."""
    targets = {"strict_1_3": relaxed_targets(labels, 5, strict=(1, 3)), "after_off": hard_targets(labels, 5)}
    options = {
        "relaxed_wt6": {"bound": 6.0}, "after_off": {"hard": True}, "relaxed_batch_weighting": {"histogram": "batch"},
    }  # fmt: skip
    return targets.get(name, relaxed_targets(labels, 5)), options.get(name, {})


CASES = ["relaxed", "relaxed_wt6", "strict_1_3", "after_off", "relaxed_batch_weighting"]


@pytest.mark.parametrize("name", CASES)
def test_right_values_and_gradients(reference, labels, logits, name):
    """Each image's loss is divided by the number of its own allowed classes."""
    spec = reference[0]["relaxed_loss"][name]
    targets, options = case(labels, name)
    z = logits.clone().requires_grad_()
    loss = relaxed_loss(z, targets, **options)
    loss.backward()
    assert loss.item() == pytest.approx(spec["correct_sum"] or spec["correct_sum_batch_weights"], rel=1e-6)
    assert z.grad.abs().sum().item() == pytest.approx(spec["correct_grad_abs_sum"], rel=1e-6)
    if spec["per_image_alone"]:
        alone = [relaxed_loss(logits[i : i + 1], targets[i : i + 1], **options).item() for i in (0, 1)]
        assert alone == pytest.approx(spec["per_image_alone"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_references_error_is_an_option(reference, labels, logits, name):
    spec = reference[0]["relaxed_loss"][name]
    targets, options = case(labels, name)
    z = logits.clone().requires_grad_()
    loss = relaxed_loss(z, targets, normalisation="batch", **options)
    loss.backward()
    assert loss.item() == pytest.approx(spec["reference_batch2"], rel=1e-6)
    assert z.grad.abs().sum().item() == pytest.approx(spec["grad_abs_sum"], rel=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_an_image_does_not_depend_on_its_batch(hard):
    """The reference's does: other images' boundaries enter (option ``batch``)."""
    ids, z = random_labels((3, 10, 12), 4, 1), 3 * randn((3, 4, 10, 12), 2)
    targets = hard_targets(ids, 4) if hard else relaxed_targets(ids, 4)
    alone = [relaxed_loss(z[i : i + 1], targets[i : i + 1], hard=hard).item() for i in range(3)]
    assert relaxed_loss(z, targets, hard=hard).item() == pytest.approx(sum(alone), rel=1e-6)
    assert relaxed_loss(z, targets, hard=hard, reduction="mean").item() == pytest.approx(sum(alone) / 3, rel=1e-6)
    wrong = relaxed_loss(z, targets, hard=hard, normalisation="batch").item()
    assert abs(wrong / sum(alone) - 1) > 0.5
    one = slice(0, 1)
    assert relaxed_loss(z[one], targets[one], hard=hard, normalisation="batch").item() == pytest.approx(alone[0], 1e-6)


def plain_relaxed(z, targets, bound, histogram, normalisation, hard):
    """Section 5.4 pixel by pixel, in Python's floats."""
    z, t = z.double().numpy(), targets.numpy().astype(int)
    count, classes, height, width = z.shape
    total = 0.0
    for i in range(count):
        h = t[i].sum((1, 2)) if histogram == "image" else t.sum((0, 2, 3))
        h = h / h.sum()
        w = [1 + bound * (h[c] != 0) * (1 - h[c]) for c in range(classes)]
        loss, valid = 0.0, 0
        for y in range(height):
            for x in range(width):
                allowed = [c for c in range(classes) if t[i, c, y, x]]
                if not allowed:
                    continue
                valid += 1
                p = np.exp(z[i, :, y, x] - z[i, :, y, x].max())
                q = -math.log(p[allowed].sum() / p.sum())
                for b in range(count) if normalisation == "batch" else [i]:
                    n = max(1, t[b, :classes, y, x].sum())
                    loss += (n if hard else 1 / n) * sum(w[c] for c in allowed) * q
        total += loss / (valid + 1)
    return total


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("normalisation", ["own", "batch"])
@pytest.mark.parametrize("histogram", ["image", "batch"])
def test_agrees_with_a_plain_loop(hard, normalisation, histogram):
    ids, z = random_labels((3, 8, 11), 4, 5), 3 * randn((3, 4, 8, 11), 6)
    ids[2, :, :6] = VOID
    targets = hard_targets(ids, 4) if hard else relaxed_targets(ids, 4, border=2, strict=(1,))
    options = {"bound": 2.5, "histogram": histogram, "normalisation": normalisation, "hard": hard}
    expected = plain_relaxed(z, targets, **options)
    assert relaxed_loss(z, targets, **options).item() == pytest.approx(expected, rel=1e-5)
    assert relaxed_loss(z.double(), targets, **options).item() == pytest.approx(expected, rel=1e-12)


def test_extreme_logits():
    """One pixel that must be class 0: the reference gives not-a-number and infinity here (5.4, e)."""
    target = relaxed_targets(torch.zeros(1, 1, 1, dtype=torch.uint8), 3, strict=[0])
    for z, expected in [((120, 0, 0), 0.0), ((-120, 1, 0), (121 + math.log(1 + math.exp(-1))) / 2)]:
        z = torch.tensor(z, dtype=torch.float32).view(1, 3, 1, 1).requires_grad_()
        loss = relaxed_loss(z, target)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert z.grad.isfinite().all()
        assert z.grad.flatten()[0] == pytest.approx(0 if expected == 0 else -0.5, abs=1e-6)
    assert expected == pytest.approx(60.6566, abs=1e-4)


@pytest.mark.parametrize("scale", [120.0, 1e4, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite(labels, logits, name, scale):
    z = (logits.sign() * scale).requires_grad_()
    for step in (0, 1):
        loss = LOSSES[name](**({"relax_steps": 1} if name == "relaxed" else {}))(z, labels, step)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 0


def test_half_precision_is_computed_in_float32(labels, logits):
    z = logits.bfloat16()
    found = RelaxedLoss()(z, labels, 0)
    assert found.dtype == torch.float32
    assert found.item() == RelaxedLoss()(z.float(), labels, 0).item()


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_labelled_pixel_there_is_no_loss(reference, logits, name):
    assert reference[0]["relaxed_loss"]["all_void"]["reference"] == 0
    void = torch.full((2, 16, 24), VOID, dtype=torch.uint8)
    for step in (0, 1):
        z = logits.clone().requires_grad_()
        loss = LOSSES[name](**({"relax_steps": 1} if name == "relaxed" else {}))(z, void, step)
        loss.backward()
        assert loss.item() == 0 and (z.grad == 0).all()


def test_void_pixels_have_no_gradient_and_their_neighbours_any_of_their_classes():
    """What relaxation is for: at a boundary both answers cost nothing, in the inner part one does."""
    ids = torch.zeros(1, 5, 6, dtype=torch.uint8)
    ids[..., 3:] = 1
    z = torch.full((1, 3, 5, 6), -40.0)
    z[:, 0, :, :2], z[:, 1, :, 4:] = 40, 40
    z[:, 0, 1::2, 2:4], z[:, 1, ::2, 2:4] = 40, 40  # the boundary's columns: one answer in odd rows, one in even rows
    assert relaxed_loss(z, relaxed_targets(ids, 3)).item() == pytest.approx(0, abs=1e-5)
    assert relaxed_loss(z, hard_targets(ids, 3), hard=True).item() > 10


# ---- when relaxation ends


def test_the_end_of_the_relaxation_is_a_step(labels, logits):
    loss = RelaxedLoss(strict=(1, 3), relax_steps=4)
    before = relaxed_loss(logits, relaxed_targets(labels, 5, strict=(1, 3))).item()
    after = relaxed_loss(logits, hard_targets(labels, 5), hard=True).item()
    assert [loss(logits, labels, step).item() for step in (0, 3, 4, 99)] == [before, before, after, after]
    assert RelaxedLoss(strict=(1, 3))(logits, labels, 10**9).item() == before


def test_hard_boundaries_count_twice(labels, logits):
    """Cross entropy of each image over (its labelled pixels + 1), boundary pixels twice."""
    edges = hard_targets(labels, 5)[:, :-1].sum(1)
    assert edges.unique().tolist() == [0, 1, 2]
    per_pixel = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="none")
    expected = ((edges * per_pixel).sum((1, 2)) / ((labels != VOID).sum((1, 2)) + 1)).sum()
    found = RelaxedLoss(relax_steps=0, bound=0.0)(logits, labels, 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


# ---- image-weighted and plain cross entropy


@pytest.mark.parametrize("bound", [1.0, 6.0])
@pytest.mark.parametrize("histogram", ["image", "batch"])
def test_image_weighted_cross_entropy_equals_the_reference(reference, labels, logits, bound, histogram):
    spec = reference[0]["image_weighted_ce"][f"wt{bound}_batchweight{histogram == 'batch'}"]
    found = image_weighted_cross_entropy(logits, labels, bound=bound, histogram=histogram)
    assert found.item() == pytest.approx(spec["value"], rel=1e-6)
    weights = torch.tensor(spec["weights_image0" if histogram == "image" else "weights_batch"])
    alone = slice(0, 1) if histogram == "image" else slice(None)
    expected = sum(
        F.cross_entropy(z, y, weights, ignore_index=VOID)
        for z, y in zip(logits[alone, None], labels[alone, None].long(), strict=True)
    )
    found = image_weighted_cross_entropy(logits[alone], labels[alone], bound=bound, histogram=histogram)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_void_id_next_to_the_classes_counts_as_no_class(reference, labels, logits):
    spec = reference[0]["image_weighted_ce"]
    found = image_weighted_cross_entropy(logits, labels.masked_fill(labels == VOID, 5), void=5).item()
    assert found == pytest.approx(spec["wt1.0_batchweightFalse"]["value"], rel=1e-6)
    assert abs(found - spec["ignore_equals_C(5)"]["reference_value"]) > 1e-3


def test_image_weights_with_a_void_image(labels, logits):
    """It adds nothing; the reference's value is not a number."""
    mixed = labels.clone()
    mixed[1] = VOID
    alone = image_weighted_cross_entropy(logits[:1], labels[:1]).item()
    assert image_weighted_cross_entropy(logits, mixed).item() == pytest.approx(alone, rel=1e-6)
    assert image_weighted_cross_entropy(logits, mixed, reduction="mean").item() == pytest.approx(alone / 2, rel=1e-6)
    assert ImageWeightedLoss(reduction="mean")(logits, mixed, 3).item() == pytest.approx(alone / 2, rel=1e-6)


def test_plain_cross_entropy_equals_the_reference(reference, labels, logits):
    assert PlainLoss()(logits, labels, 0).item() == pytest.approx(reference[0]["plain_ce"], rel=1e-6)
    assert PlainLoss(void=5)(logits, labels.masked_fill(labels == VOID, 5), 0).item() == pytest.approx(
        reference[0]["plain_ce"], rel=1e-6
    )


# ---- bad input


ZEROS = torch.zeros(2, 4, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relaxed_targets(ZEROS, 3, void=2), "void id 2 is not in 3..255"),
        (lambda: hard_targets(ZEROS, 3, void=256), "void id 256 is not in 3..255"),
        (lambda: image_weighted_cross_entropy(torch.zeros(2, 3, 4, 6), ZEROS, void=-1), "void id -1 is not in 3..255"),
        (lambda: PlainLoss(void=0)(torch.zeros(2, 3, 4, 6), ZEROS, 0), "void id 0 is not in 3..255"),
        (lambda: relaxed_targets(ZEROS + 3, 3), r"label 3 is neither a class \(0..2\) nor void \(255\)"),
        (lambda: hard_targets(ZEROS.long() - 1, 3), "label -1 is neither a class"),
        (lambda: ImageWeightedLoss()(torch.zeros(2, 3, 4, 6), ZEROS + 7, 0), "label 7 is neither a class"),
        (lambda: relaxed_targets(ZEROS, 3, strict=[1, 3]), "strict class 3 is none of 0..2"),
        (lambda: RelaxedLoss(strict=(-1,), relax_steps=0)(torch.zeros(2, 3, 4, 6), ZEROS, 0), "strict class -1"),
        (lambda: RelaxedLoss()(torch.zeros(2, 3, 4, 5), ZEROS, 0), r"labels \(2, 4, 6\) for logits \(2, 3, 4, 5\)"),
        (lambda: ImageWeightedLoss()(torch.zeros(1, 3, 4, 6), ZEROS, 0), r"labels \(2, 4, 6\) for logits"),
        (lambda: PlainLoss()(torch.zeros(2, 3, 2, 3), ZEROS, 0), r"labels \(2, 4, 6\) for logits"),
        (lambda: relaxed_loss(torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 6)), "one channel more, for void"),
        (lambda: RelaxedLoss(normalisation="all"), "no normalisation 'all'; take own or batch"),
        (lambda: relaxed_loss(torch.zeros(2, 3, 4, 6), torch.zeros(2, 4, 4, 6), normalisation="all"), "normalisation"),
        (lambda: RelaxedLoss(histogram="tile"), "no histogram 'tile'; take image or batch"),
        (lambda: ImageWeightedLoss(reduction="max"), "no reduction 'max'; take sum or mean"),
        (lambda: ImageWeightedLoss(bound=-1), "bound -1 of the class weights"),
        (lambda: ImageWeightedLoss(bound=math.nan), "bound nan of the class weights"),
        (lambda: RelaxedLoss(border=-1), "border -1"),
        (lambda: RelaxedLoss(relax_steps=-5), "relax_steps -5"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---- learning rates


def test_learning_rates_equal_the_reference(reference):
    (factors,) = reference[0]["lr_factors"].values()
    options = {"power": 1.0, "restart": 100, "restart_power": 1.5, "rescale": 1.0}
    for epoch, factor in factors.items():
        assert rate_factor("scl_poly", int(epoch), 175, **options) == pytest.approx(factor, rel=1e-12)


def test_learning_rates_of_a_restart():
    options = {"power": 2.0, "restart": 60, "restart_power": 0.5, "rescale": 0.3}
    found = [rate_factor("scl_poly", step, 100, **options) for step in (0, 59, 60, 84, 99)]
    assert found == pytest.approx([1, 0.41**2, 0.3, 0.3 * 0.4**0.5, 0.3 * (1 / 40) ** 0.5])
    assert rate_factor("poly", 50, 100, power=2.0) == 0.25
    assert rate_factor("poly", 50, 100) == pytest.approx(0.5**0.9)
    for restart in (0, 100, -1):
        with pytest.raises(UserError, match=rf"restart {restart} is not in 1..99"):
            rate_factor("scl_poly", 0, 100, restart=restart)


# ---- the method


class Options(Optimisation):
    """What params.yaml gives the method: `Optimisation`, the schedule's numbers and the loss."""

    schedule: str
    momentum: float
    power: float
    restart: int
    restart_power: float
    rescale: float
    loss: Block


class RelaxedOptions(Block):
    kind: str
    strict: list[int]
    relax_steps: int | None


class PlainOptions(Block):
    kind: str


OPTIMISATION = {
    "optimizer": "sgd", "lr": 0.1, "encoder_lr": 0.05, "weight_decay": 1e-4, "schedule": "scl_poly", "milestones": [],
    "clip": 0.0, "momentum": 0.5, "power": 1.0, "restart": 2, "restart_power": 1.5, "rescale": 1.0,
}  # fmt: skip


def options(loss, **changes):
    return Options.model_construct(**(OPTIMISATION | changes), loss=loss)


def training(**changes):
    return Train(**(small_params()["train"] | {"iterations": 4} | changes))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.encoder(x)))

    def parameter_groups(self, encoder_lr, lr):
        return [
            {"params": list(self.encoder.parameters()), "lr": encoder_lr},
            {"params": list(self.head.parameters()), "lr": lr},
        ]


def batch(count=2, seed=3):
    image = torch.randint(0, 256, (count, 3, 9, 12), generator=torch.Generator().manual_seed(seed))
    return {"labelled": {"image": image.to(torch.uint8), "label": random_labels((count, 9, 12), 4, seed)}}


CPU = Runtime(1, device="cpu")


def test_training_is_what_the_paper_says():
    """Four steps by hand: each step's loss, SGD with momentum, the restart of the rate, the end of the relaxation."""
    net, data = Network(), batch()
    x, y = data["labelled"]["image"] / 255, data["labelled"]["label"]
    optimizer = torch.optim.SGD(net.parameter_groups(0.05, 0.1), momentum=0.5, weight_decay=1e-4)
    expected = []
    for step, factor in enumerate([1, 0.75, 1, 0.5**1.5]):
        for group, rate in zip(optimizer.param_groups, (0.05, 0.1), strict=True):
            group["lr"] = rate * factor
        targets = hard_targets(y, 4) if step == 3 else relaxed_targets(y, 4, strict=(1,))
        loss = relaxed_loss(net(x), targets, hard=step == 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    settings = options(RelaxedOptions(kind="relaxed", strict=[1], relax_steps=3))
    method = build(Network(), settings, training(), CPU).train()
    found = []
    for step in range(4):
        for group in method.optimizer.param_groups:
            group["lr"] = group["base_lr"] * method.rate(step)
        logged = method.training_step(data, step)
        assert not logged["loss"].requires_grad
        found.append(logged["loss"].item())
    assert found == pytest.approx(expected, rel=1e-5)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(method.student.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    image = batch(1)["labelled"]["image"] / 255
    torch.testing.assert_close(method.eval().predict(image), net(image), rtol=1e-5, atol=1e-5)


def test_with_the_plain_loss_it_is_the_supervised_method():
    settings = options(PlainOptions(kind="plain"), schedule="constant", momentum=0.9, clip=0.1)
    ours, theirs = (make(Network(), settings, training(), CPU) for make in (build, Supervised))
    for step in range(3):
        assert ours.rate(step) == theirs.rate(step) == 1
        losses = [next(iter(m.training_step(batch(seed=step), step).values())).item() for m in (ours, theirs)]
        assert losses[0] == losses[1]
    for a, b in zip(ours.student.parameters(), theirs.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_restart_outside_the_training_is_told_at_once():
    with pytest.raises(UserError, match=r"restart 4 is not in 1\.\.3"):
        build(Network(), options(PlainOptions(kind="plain"), restart=4), training(), CPU)


# ---- several processes


OF_TWO = {
    "plain": PlainLoss(),
    "image_weighted, batch": ImageWeightedLoss(histogram="batch"),
    "image_weighted, mean": ImageWeightedLoss(reduction="mean"),
    "relaxed": RelaxedLoss(),
    "relaxed, batch": RelaxedLoss(histogram="batch", reduction="mean"),
    "relaxed, reference": RelaxedLoss(normalisation="batch"),
    "hard, reference": RelaxedLoss(normalisation="batch", relax_steps=0),
}


def in_half(folder):
    """One step of every loss on this process's half of a batch of 4."""
    torch.set_num_threads(1)
    data = batch(4)["labelled"]
    half = slice(2 * rank(), 2 * rank() + 2)
    for name, loss in OF_TWO.items():
        method = Relaxed(Network(), loss, options(None, schedule="constant"), training(), CPU)
        value = method.training_step({"labelled": {k: v[half] for k, v in data.items()}}, 0)["loss"]
        state = [value, *method.student.parameters()]
        torch.save([v.detach() for v in state], folder / f"{name}-{rank()}.pt")


def test_two_processes_compute_what_one_does(tmp_path):
    with together(2, in_half, tmp_path):
        in_half(tmp_path)
    for name, loss in OF_TWO.items():
        method = Relaxed(Network(), loss, options(None, schedule="constant"), training(), CPU)
        expected = [method.training_step(batch(4), 0)["loss"], *method.student.parameters()]
        for number in (0, 1):
            found = torch.load(tmp_path / f"{name}-{number}.pt", weights_only=True)
            torch.testing.assert_close(found, [v.detach() for v in expected], rtol=1e-5, atol=1e-7, msg=name)
