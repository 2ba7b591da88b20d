"""The benchmarks' plain versions give the same results as semivid, and `python -m benchmarks --quick` runs through.

No times are tested here: they belong to the machine.
"""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT
from helpers import rand

sys.path.insert(0, str(ROOT))

from benchmarks import cases, depth, harness, loading, plain, pseudo_label, training

from semivid.depth.losses import monodepth_loss
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.selection.diversity import distance_matrix, farthest_point


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """results.json and results.md of one run."""
    out = tmp_path_factory.mktemp("benchmarks")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    return json.loads((out / "results.json").read_text()), (out / "results.md").read_text()


def test_quick_run_measures_every_group(quick):
    content, page = quick
    rows = content["rows"]
    assert {r["group"] for r in rows} == {
        "Decode and augment",
        "Training step",
        "Pseudo-label step",
        "Parts of a pseudo-label step",
        "Depth loss",
        "Selection",
        "Evaluation",
        "Flow consistency loss",
    }
    assert all(r["plain"] > 0 and r["semivid"] > 0 and r["low"] <= r["ratio"] <= r["high"] for r in rows)
    # Every row but those of memory and of parts compares the results (the run ends with an error where they differ).
    assert all(r["agreement"] for r in rows if r["unit"] != "MB of memory" and not r["group"].startswith("Parts"))
    assert all(f"| {r['case']} | {r['unit']} |" in page for r in rows)


def test_results_name_no_machine(quick):
    text = json.dumps(quick[0]) + quick[1]
    assert os.uname().nodename not in text
    assert str(ROOT) not in text


def test_loaders_make_the_same_batches(tmp_path):
    """Exactly, where no JPEG lies between source and sample; labels always."""
    loading.generate("street", tmp_path, image_format="png")
    loaders = loading.Loaders("street", tmp_path)
    assert loaders.grey_levels(3) < 1e-4
    labels = torch.stack([label for _, label in loaders.plain(3)])
    assert len(labels.unique()) > 3


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_training_loops_learn_alike(precision):
    ours, plainly = (
        training.Loop(version, "street", precision, threads=1).small_steps() for version in ("semivid", harness.PLAIN)
    )
    assert ours == pytest.approx(plainly, rel=training.LIMITS[precision])
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("street", {}),
        ("cityscapes", {"encoder": "resnet50", "channels": [8, 8, 8, 8, 8]}),  # resnet101 takes too long here
    ],
)
def test_networks_have_equal_gradients(preset, changes):
    """In double precision: in single, batch normalisation over few pixels magnifies the rounding."""
    torch.manual_seed(0)
    network = build_segmentation_net(5, **cases.network_arguments(cases.settings(preset)) | changes).double()
    image, label = rand((2, 3, 64, 64), 1).double(), (5 * rand((2, 64, 64), 2)).long()
    results = []
    for logits in (network, partial(plain.logits, network)):
        loss = F.cross_entropy(logits(image), label)
        used = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in used], allow_unused=True)
        results.append({n: g for (n, _), g in zip(used, gradients, strict=True) if g is not None})
        network.to(memory_format=torch.channels_last)
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-7, atol=1e-9, msg=name)


def test_depth_losses_have_equal_values_and_gradients():
    inputs = depth.Inputs(2, 64, 48, torch.float64)
    assert inputs.difference() < 1e-9
    single = depth.Inputs(2, 64, 48)
    assert single.semivid().item() == pytest.approx(single.plain().item(), rel=1e-5)


def test_depth_difference_sees_a_wrong_loss(monkeypatch):
    """The comparison is no formality: a little more smoothness shows."""

    def other(*args, **kwargs):
        result = monodepth_loss(*args, **kwargs)
        return {"loss": result["loss"] + 1e-4 * args[0][0].diff().abs().mean()}

    monkeypatch.setattr(depth, "monodepth_loss", other)
    assert depth.Inputs(2, 64, 48, torch.float64).difference() > depth.LIMIT


@pytest.mark.parametrize(
    ("method", "steps", "changes"),
    [
        ("mean teacher", (1, 2), {}),
        ("ClassMix", (1, 2), {"frames": "all", "ground_truth": True}),
        (pseudo_label.MULTITASK, (1,), {}),
    ],
)
def test_pseudo_label_steps_are_the_specification_s(method, steps, changes):
    """Losses, and how student and teacher move; two steps, so that momentum counts. The quick run compares DepthMix."""
    assert pseudo_label.difference("street", method, steps, **changes) < 1e-6


def test_pseudo_label_difference_sees_a_wrong_average(monkeypatch):
    """The comparison is no formality: a teacher that is one step behind shows."""
    monkeypatch.setattr("semivid.training.ema.ema_decay", lambda step, limit: min(1 - 1 / step, limit))
    assert pseudo_label.difference("street", "mean teacher", (5,)) > 0.1


def test_parts_are_the_whole_step():
    """Both versions name the same parts, and nothing of the step lies outside of them."""
    parts = []
    for version in (harness.PLAIN, "semivid"):
        loop = pseudo_label.Loop(version, "street", pseudo_label.METHODS["DepthMix"], "float32", threads=1)
        loop.batch = loop.small_batch()
        loop.step()
        start = harness.clock()
        parts.append(loop.parts())
        total = (harness.clock() - start) / 2  # of two steps
        assert 0.8 * total < sum(parts[-1].values()) <= total
    assert list(parts[0]) == list(parts[1])
    assert all(seconds > 0 for one in parts for seconds in one.values())


def test_plain_selection_agrees():
    features = np.random.default_rng(3).standard_normal((30, 2, 4, 8)).astype(np.float32)
    distance = distance_matrix(features)
    flat = features.reshape(30, -1)
    np.testing.assert_allclose(plain.distances(flat, range(30)), distance, atol=1e-5)
    assert plain.farthest_point(distance, [4, 7], 10) == farthest_point(distance, [4, 7], 10)[0]


def test_a_difference_ends_the_run():
    assert harness.require(0.0, 1e-5, "x") == "equal"
    with pytest.raises(AssertionError, match=r"differ by 0\.1"):
        harness.require(0.1, 1e-5, "x")
    with pytest.raises(AssertionError):
        harness.require(float("nan"), 1e-5, "x")


def test_rows_are_medians_and_ratios_of_rounds():
    row = harness.lower_is_better("g", "c", "s", [2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert (row.plain, row.semivid, row.ratio, row.low, row.high) == (4.0, 1.0, 3.0, 2.0, 4.0)
    row = harness.rate("g", "c", [2.0], 10, [1.0], 40)
    assert (row.plain, row.semivid, row.ratio) == (5.0, 40.0, 8.0)
