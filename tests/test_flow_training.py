"""Flow in the pipeline: precomputed in parallel, moved with the pixels, trained on, evaluated, tabled."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from flow import main as flow_main
from semivid.data.index import VOID, Index
from semivid.data.store import FrameStore
from semivid.data.streams import UnlabelledSamples, Window
from semivid.data.street.truth import read_flow as read_true_flow
from semivid.data.street.write import render_dataset
from semivid.errors import UserError
from semivid.evaluation.flow_table import flow_cells, flow_csv, flow_markdown, read_flow_runs
from semivid.evaluation.temporal import TemporalAgreement, carried_back
from semivid.evaluation.visualise import loss_weights, neighbour_similarity
from semivid.flow import precompute as precomputing
from semivid.flow.checks import warping_error
from semivid.flow.files import flow_path, read_flow, write_flow
from semivid.flow.index import FlowPair, read_flow_index, write_flow_index
from semivid.flow.precompute import FlowSettings, pairs_to_compute, precompute
from semivid.flow.samples import FlowSamples, move_flow
from semivid.flow.store import FlowStore
from semivid.flow.unlabelled import unlabelled_frames
from semivid.methods.flow_consistency import build
from semivid.methods.flow_consistency_loss import flow_consistency_loss
from semivid.pipeline.params import Flow, FlowBaseline, FlowConsistency, Train
from semivid.pipeline.stage import Stage
from semivid.training.optim import set_rates
from semivid.training.runtime import Runtime
from small import small_params, write_prepared

DIS = {"preset": "ultrafast", "finest_scale": None}
SETTINGS = FlowSettings("dis", DIS, backward=True, kind="png", pictures=True)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def index(tmp_path):
    return write_prepared(tmp_path, train=(4, 3), val=(3,), unlabelled=2)


# ---- precompute


def test_pairs_are_neighbours_of_one_video_and_split(index):
    pairs = [(a.frame, b.frame) for a, b in pairs_to_compute(index, annotated=False)]
    videos = (("train0", 4), ("train1", 3), ("val0", 3))
    expected = [(f"{v}_{i:02d}", f"{v}_{i + 1:02d}") for v, n in videos for i in range(n - 1)]
    assert pairs == expected
    # train1_01 has no mask; train1_00 has one, and leads to a frame without
    assert [a.frame for a, _ in pairs_to_compute(index, annotated=True)] == [a for a, _ in expected if a != "train1_01"]


def test_frames_without_neighbours_are_told(index):
    lonely = Index([f for f in index.frames if f.position != 1 and f.position != 3])
    with pytest.raises(UserError, match="no frame has a next one in its video"):
        pairs_to_compute(lonely, annotated=False)
    with pytest.raises(UserError, match="none of 4 training frames has a next one"):
        unlabelled_frames(lonely, "all")


def test_processes_change_no_byte(index, tmp_path, monkeypatch):
    monkeypatch.setattr(precomputing, "RUN", 2)
    pairs = pairs_to_compute(index, annotated=False)
    one = precompute(pairs, SETTINGS, tmp_path / "one", workers=1)
    two = precompute(pairs, SETTINGS, tmp_path / "two", workers=2)
    assert one == two and [p.frame for p in one] == [a.frame for a, _ in pairs]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    kinds = {name.split("/")[0] for name in files(tmp_path / "one")}
    assert kinds == {"forward", "backward", "consistent", "pictures", "runs"}


def test_the_index_says_what_the_files_hold(index, tmp_path):
    (pair, *_) = precompute(pairs_to_compute(index, annotated=True), SETTINGS, tmp_path / "flow", workers=1)
    first, second = (FrameStore().image(index.by_name[n]) for n in (pair.frame, pair.next))
    flow, valid = read_flow(tmp_path / "flow" / pair.forward)
    assert valid.all()
    assert (pair.error, pair.error_inside) == pytest.approx(warping_error(first, second, flow), abs=0.05)
    assert pair.error_still == pytest.approx(np.abs(first.astype(float) - second).mean())
    assert pair.motion == pytest.approx(np.hypot(flow[..., 0], flow[..., 1]).mean(), abs=0.02)
    write_flow_index(tmp_path / "flow/index.csv", [pair])
    back = read_flow_index(tmp_path / "flow/index.csv")[pair.frame]
    assert back.forward == str(tmp_path / "flow" / pair.forward)
    assert back.motion == pytest.approx(pair.motion, abs=1e-4)


def test_finished_runs_are_not_computed_again(index, tmp_path, monkeypatch):
    monkeypatch.setattr(precomputing, "RUN", 2)
    pairs = pairs_to_compute(index, annotated=False)
    precompute(pairs, SETTINGS, tmp_path / "flow", workers=1)
    whole = files(tmp_path / "flow")
    (tmp_path / "flow/runs/train-s0-1.json").unlink()
    computed, real = [], precomputing._pair

    def counted(estimate, store, first, *args):
        computed.append(first.frame)
        return real(estimate, store, first, *args)

    monkeypatch.setattr(precomputing, "_pair", counted)
    precompute(pairs, SETTINGS, tmp_path / "flow", workers=1)
    assert computed == ["train0_02"]
    assert files(tmp_path / "flow") == whole


def test_every_fault_is_reported(index, tmp_path):
    for name in ("train0_02", "val0_01"):
        index.by_name[name].image.write_bytes(b"no picture")
    small = index.by_name["train1_01"].image
    cv2.imwrite(str(small), cv2.imread(str(small))[::2, ::2])
    with pytest.raises(UserError) as error:
        precompute(pairs_to_compute(index, annotated=False), SETTINGS, tmp_path / "flow", workers=1)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(any(n in line for line in lines) for n in ("train0_02", "val0_01", "train1_01"))


# ---- reading


@pytest.fixture
def flow_folder(index, tmp_path):
    pairs = precompute(pairs_to_compute(index, annotated=False), SETTINGS, tmp_path / "flow", workers=1)
    write_flow_index(tmp_path / "flow/index.csv", pairs)
    return tmp_path / "flow"


def test_flow_of_another_resolution_is_rescaled_in_value_too(index, flow_folder):
    frame = index.by_name["train0_00"]
    flow = np.full((16, 16, 2), (4.0, -2.0), np.float32)  # a quarter of 64 wide, half of 32 high
    known = np.ones((16, 16), bool)
    known[:8] = False
    write_flow(flow_path(flow_folder, frame, "forward"), flow, known)
    read, valid = FlowStore(flow_folder).flow(frame)
    assert read.shape == (32, 64, 2) and valid.shape == (32, 64)
    np.testing.assert_allclose(read[20:], np.full((12, 64, 2), (16.0, -4.0)), atol=0.05)
    assert valid[18:].all() and not valid[:15].any()


def test_what_is_missing_is_named(index, flow_folder, tmp_path):
    store = FlowStore(flow_folder)
    with pytest.raises(UserError, match="train0_03: no flow"):
        store.flow(index.by_name["train0_03"])
    broken = index.by_name["train0_01"]
    flow_path(flow_folder, broken, "forward").write_bytes(b"x")
    with pytest.raises(UserError, match=r"train0_01\.png"):
        store.flow(broken)
    store.pairs["train0_02"] = FlowPair(*list(store.pairs["train0_02"].__dict__.values())[:6], "", 0, 0, 0, 0, None)
    with pytest.raises(UserError, match=r"set `flow\.backward: true`"):
        store.consistent(index.by_name["train0_02"])
    with pytest.raises(UserError, match="run the stage flow first"):
        FlowStore(tmp_path / "nowhere")
    (flow_folder / "index.csv").write_text("frame,split\nx,train\n")
    with pytest.raises(UserError, match="malformed"):
        FlowStore(flow_folder)


# ---- samples


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """(first frame, second frame, true flow, where it is known) of a rendered pair with motion."""
    raw = tmp_path_factory.mktemp("street") / "raw"
    render_dataset(raw, seed=3, size=(192, 96), snippets={"train": 2, "val": 1}, frames_per_snippet=2,
                   annotated=(0,), fps=7.0)  # fmt: skip
    found = []
    for path in sorted((raw / "truth/flow").rglob("*.png")):
        flow, known = read_true_flow(path)
        if not known.any():
            continue
        name = path.name.replace("_flow.png", "")
        city, snippet, number = name.split("_")[:3]
        images = [
            next((raw / "leftImg8bit_sequence").rglob(f"{city}_{snippet}_{int(number) + k:06d}_*")) for k in (0, 1)
        ]
        first, second = (cv2.cvtColor(cv2.imread(str(i)), cv2.COLOR_BGR2RGB) for i in images)
        found.append((np.hypot(flow[..., 0], flow[..., 1])[known].mean(), (first, second, flow, known)))
    return max(found, key=lambda item: item[0])[1]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (1.7, 1.7)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_true_flow_still_explains_the_pair_in_any_window(street, scale, flip):
    first, second, flow, known = street
    flow = np.where(known[..., None], flow, 0)

    def error(one, two, field, where):
        y, x = np.mgrid[: one.shape[0], : one.shape[1]].astype(np.float32)
        warped = cv2.remap(two, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.abs(one.astype(float) - warped)[where].mean()

    window = Window((192, 96), (150, 48), np.random.default_rng(5), flip, scale)
    one, two = np.ascontiguousarray(window(first)), np.ascontiguousarray(window(second))
    where = window(known.view(np.uint8), nearest=True).astype(bool)
    moved = move_flow(window, flow)
    whole = error(first, second, flow, known)
    assert whole < 0.5 * error(first, second, 0 * flow, known)
    got = error(one, two, moved, where)
    assert got < 1.6 * whole + 1
    for wrong in (window(flow) if flip or scale != (1.0, 1.0) else -moved, 0 * moved):
        assert got < 0.75 * error(one, two, wrong, where)


def test_samples_with_flow_have_the_windows_of_those_without(index, flow_folder):
    frame, store = index.by_name["train0_01"], FlowStore(flow_folder)
    options = (48, 24), 0.5, (0.8, 1.5)
    plain, with_flow = UnlabelledSamples(store, *options), FlowSamples(store, *options)
    for seed in range(4):
        a, b = (s(frame, np.random.default_rng(seed)) for s in (plain, with_flow))
        assert np.array_equal(a["image"], b["image"])
        assert b["flow"].shape == (2, 24, 48) and b["flow"].dtype == np.float32 and b["valid"].shape == (24, 48)


def test_discarded_and_inconsistent_pixels_are_not_valid(index, flow_folder):
    frame, store = index.by_name["train0_01"], FlowStore(flow_folder)
    whole = (64, 32), 0.0
    rng = np.random.default_rng(0)
    valid = FlowSamples(store, *whole, discard_bottom=0.25)(frame, rng)["valid"]
    assert valid[:24].all() and not valid[24:].any()
    agree = store.consistent(frame)
    assert agree.any() and not agree.all()
    assert np.array_equal(FlowSamples(store, *whole, consistent_only=True)(frame, rng)["valid"], agree)
    assert store.flow(frame)[1].all(), "the kept mask was written into"
    smaller = FlowSamples(store, (64, 32), 0.0, (0.5, 0.5))(frame, rng)
    assert smaller["valid"][:16, :32].all() and not smaller["valid"][16:].any() and not smaller["flow"][:, 16:].any()


# ---- the method


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.encoder(x)))

    def parameter_groups(self, encoder_lr, lr):
        return [
            {"params": list(self.encoder.parameters()), "lr": encoder_lr},
            {"params": list(self.head.parameters()), "lr": lr},
        ]


STEPS = small_params()["methods"]["flow_baseline"] | {
    "optimizer": "sgd", "lr": 0.1, "encoder_lr": 0.05, "momentum": 0.7, "weight_decay": 0.01, "schedule": "constant",
    "clip": 0.0,
}  # fmt: skip
LOSS = small_params()["methods"]["flow_consistency"] | {"weight": 3.0, "discard_bottom": 0.0}


def batch():
    torch.manual_seed(5)
    labels = torch.randint(0, 3, (2, 8, 10), dtype=torch.uint8)
    labels[:, :2] = VOID
    valid = torch.ones(3, 8, 10, dtype=torch.bool)
    valid[:, 6:] = False
    return {
        "labelled": {"image": torch.randint(0, 256, (2, 3, 8, 10), dtype=torch.uint8), "label": labels},
        "unlabelled": {
            "image": torch.randint(0, 256, (3, 3, 8, 10), dtype=torch.uint8),
            "flow": 2 * torch.randn(3, 2, 8, 10),
            "valid": valid,
        },
    }


def take_steps(steps, loss, count=3, data=None):
    network = Tiny()
    options, runtime = FlowBaseline(**(STEPS | steps)), Runtime(1, device="cpu")
    loss = None if loss is None else FlowConsistency(**(LOSS | loss))
    method = build(network, options, loss, Train(**small_params()["train"]), runtime)
    logged = []
    for step in range(count):
        set_rates(method.optimizer, method.rate(step))
        logged.append(method.training_step(data or batch(), step))
    return network, logged


def by_hand(network, losses, count):
    """SGD with momentum and weight decay, written out; `losses`: what each update of an iteration minimises."""
    rates = [0.05] * 2 + [0.1] * 2
    momenta = [torch.zeros_like(p) for p in network.parameters()]
    for _ in range(count):
        for loss in losses:
            gradients = torch.autograd.grad(loss(network), list(network.parameters()))
            for p, g, m, rate in zip(network.parameters(), gradients, momenta, rates, strict=True):
                m.mul_(0.7).add_(g + 0.01 * p.detach())
                p.data -= rate * m
    return network


def entropy(network, reduction="mean"):
    data = batch()["labelled"]
    return nn.functional.cross_entropy(
        network(data["image"] / 255), data["label"].long(), ignore_index=VOID, reduction=reduction
    )


def repulsion(network, reduction="mean", valid=True):
    data = batch()["unlabelled"]
    flow = data["flow"] if valid else data["flow"] * data["valid"][:, None]
    mask = data["valid"] if valid else None
    return 3 * flow_consistency_loss(network(data["image"] / 255), flow, valid=mask, reduction=reduction)


def same(a, b):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_two_updates_share_momentum():
    network, logged = take_steps({}, {})
    same(network, by_hand(Tiny(), [entropy, repulsion], 3))
    assert logged[0].keys() == {"cross_entropy", "flow_consistency"} and logged[0]["flow_consistency"] < 0


def test_one_update_of_both_losses():
    network, _ = take_steps({"structure": "one_step"}, {})
    same(network, by_hand(Tiny(), [lambda n: entropy(n) + repulsion(n)], 3))


def test_the_baseline_takes_the_second_update_without_its_gradient():
    """Momentum and weight decay act in it (section 8), so that both rows of a table have the same steps."""
    data = batch()
    for key in ("flow", "valid"):
        del data["unlabelled"][key]
    network, logged = take_steps({}, None, data=data)
    same(network, by_hand(Tiny(), [entropy, lambda n: 0 * sum(p.sum() for p in n.parameters())], 3))
    assert float(logged[-1]["flow_consistency"]) == 0
    plain = by_hand(Tiny(), [entropy], 3)
    assert not torch.allclose(network.head.weight, plain.head.weight, rtol=1e-3)


def test_without_unlabelled_frames_one_update_is_taken():
    data = batch()
    del data["unlabelled"]
    network, logged = take_steps({"unlabelled_batch_size": 0}, None, data=data)
    same(network, by_hand(Tiny(), [entropy], 3))
    assert logged[0].keys() == {"cross_entropy"}


def test_unlabelled_frames_can_start_later():
    network, logged = take_steps({"start": 2}, {}, count=2)
    same(network, by_hand(Tiny(), [entropy], 2))
    assert "flow_consistency" not in logged[1]


def test_sums_are_sums_and_the_seam_is_the_references():
    steps = {"reduction": "sum", "lr": 1e-6, "encoder_lr": 1e-6}
    (_, (reference,)), (_, (masked,)) = (take_steps(steps, {"seam": seam}, 1) for seam in ("reference", "masked"))
    start = Tiny()
    with torch.no_grad():
        assert float(reference["cross_entropy"]) == pytest.approx(float(entropy(start, "sum")), rel=1e-5)
        # after the first update; hardly later than `start`
        expected = float(repulsion(start, "sum", valid=False)), float(repulsion(start, "sum"))
    assert (float(reference["flow_consistency"]), float(masked["flow_consistency"])) == pytest.approx(
        expected, rel=1e-2
    )
    assert abs(expected[0] - expected[1]) > 0.05 * abs(expected[1])


# ---- evaluation


def test_classes_are_carried_back_along_the_flow():
    following = np.arange(12, dtype=np.uint8).reshape(3, 4)
    flow = np.zeros((3, 4, 2), np.float32)
    flow[..., 0], flow[1, :, 1] = 1.4, -1.0
    carried, inside = carried_back(following, flow)
    for y in range(3):
        for x in range(4):
            tx, ty = x + 1, y - (y == 1)
            assert inside[y, x] == (tx < 4)
            if tx < 4:
                assert carried[y, x] == following[ty, tx]


@pytest.mark.parametrize("order", [1, -1])
def test_temporal_agreement_counts_consistent_pixels_of_every_pair(index, flow_folder, order):
    store = FlowStore(flow_folder)
    rng = np.random.default_rng(0)
    frames = index.select("train")
    predicted = {f.frame: rng.integers(0, 3, (32, 64)).astype(np.uint8) for f in frames}
    agreement = TemporalAgreement(store)
    agreement.start(frames)
    for frame in frames[::order]:
        agreement.add(frame, predicted[frame.frame])
    agree = total = 0
    for first, second in pairs_to_compute(Index(frames), annotated=False):
        flow, _ = store.flow(first)
        consistent = store.consistent(first)
        for y, x in zip(*np.nonzero(consistent), strict=True):
            tx, ty = np.rint(x + flow[y, x, 0]), np.rint(y + flow[y, x, 1])
            if 0 <= tx < 64 and 0 <= ty < 32:
                total += 1
                agree += predicted[first.frame][y, x] == predicted[second.frame][int(ty), int(tx)]
    assert agreement.pairs == 5 and agreement.counted == total
    assert agreement.share == pytest.approx(agree / total)
    assert not agreement._waiting, "predictions are kept for ever"


def test_agreement_of_no_pair_is_none(index, flow_folder):
    agreement = TemporalAgreement(FlowStore(flow_folder))
    agreement.start([index.by_name["val0_00"]])
    agreement.add(index.by_name["val0_00"], np.zeros((32, 64), np.uint8))
    assert agreement.share is None


def write_runs(folder, **changes):
    paths = []
    for m, method in enumerate(("flow_baseline", "flow_consistency")):
        for percent in (100, 10):
            for seed in (7, 25):
                paths.append(folder / f"{method}-{percent}-{seed}.json")
                run = {
                    "method": method, "percent": percent, "seed": seed, "labels": percent, "iterations": 5,
                    "miou": 0.3 + 0.1 * m + 0.001 * seed + percent / 1000, "best_miou": 0.5,
                    "temporal_agreement": 0.9, "protocol": {"data": "x"},
                }  # fmt: skip
                paths[-1].write_text(json.dumps(run | (changes if (m, seed) == (1, 25) else {})))
    return paths


def test_the_table_pairs_runs_by_seed(tmp_path):
    runs = read_flow_runs(write_runs(tmp_path, miou=0.6))
    cells = flow_cells(runs, ["flow_baseline", "flow_consistency"])
    found = cells.set_index(["method", "percent"])
    assert found.loc[("flow_baseline", 100), "miou"] == pytest.approx((0.407 + 0.425) / 2)
    assert np.isnan(found.loc[("flow_baseline", 100), "difference"])
    cell = found.loc[("flow_consistency", 10)]
    differences = [0.1, 0.6 - 0.335]
    assert cell["difference"] == pytest.approx(np.mean(differences))
    assert cell["difference_std"] == pytest.approx(np.std(differences, ddof=1))
    text = flow_csv(cells, runs)
    again = pd.read_csv(pd.io.common.StringIO(text))
    assert list(again.protocol_data) == ["x"] * 4 and list(again.n_seeds) == [2] * 4
    page = flow_markdown(cells, runs)
    assert "| Cross entropy | 41.60 ± 1.27 | 32.60 ± 1.27 |" in page
    assert "| + flow consistency loss | +13.75" in page


def test_a_table_of_unlike_or_missing_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="different protocol"):
        read_flow_runs(write_runs(tmp_path, protocol={"data": "y"}))
    with pytest.raises(UserError, match="different iterations"):
        read_flow_runs(write_runs(tmp_path, iterations=6))
    paths = write_runs(tmp_path)
    paths[0].unlink()
    paths[1].write_text("{}")
    with pytest.raises(UserError, match=r"flow_baseline-100-7.json is missing; .*-100-25.json is not a run"):
        read_flow_runs(paths)


def test_agreement_may_be_unknown(tmp_path):
    runs = read_flow_runs(write_runs(tmp_path, temporal_agreement=None))
    cells = flow_cells(runs, ["flow_baseline", "flow_consistency"])
    assert "90.00" in flow_markdown(cells, runs)


# ---- pictures


def test_similarity_is_the_mean_over_the_neighbours():
    torch.manual_seed(0)
    p = torch.randn(3, 4, 5).softmax(0)
    found = neighbour_similarity(p)
    for y in range(4):
        for x in range(5):
            near = [
                float((p[:, y, x] * p[:, y + a, x + b]).sum())
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if (a, b) != (0, 0) and 0 <= y + a < 4 and 0 <= x + b < 5
            ]
            assert float(found[y, x]) == pytest.approx(np.mean(near), rel=1e-5)


def test_pictured_weights_lie_on_the_border_of_motion():
    flow = np.zeros((16, 20, 2), np.float32)
    flow[:, 10:] = (3.0, 0.0)
    valid = np.ones((16, 20), bool)
    weights = loss_weights(flow, valid, FlowConsistency(**(LOSS | {"discard_bottom": 0.25})))
    assert (weights[1:11, 9:11] > 1).all()
    assert not weights[:, :9].any() and not weights[:, 11:].any() and not weights[12:].any()


# ---- the stage


def flow_stage(**changes):
    params = small_params()["flow"] | changes
    stage = Stage("flow", SimpleNamespace(), {"flow": Flow(**params)})
    stage.workers = 1
    return stage


def test_an_interrupted_stage_goes_on_and_another_method_starts_afresh(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(precomputing, "RUN", 1)
    computed, real = [], precomputing._pair

    def stopped(estimate, store, first, *args):
        if len(computed) == stop_after:
            raise SystemExit(143)
        computed.append(first.frame)
        return real(estimate, store, first, *args)

    monkeypatch.setattr(precomputing, "_pair", stopped)
    stop_after = 3
    with pytest.raises(SystemExit):
        flow_main(flow_stage())
    assert not Path("data/flow").exists()
    stop_after = 99
    flow_main(flow_stage())
    assert len(computed) == len(set(computed)) == 7, "a pair was computed twice, or not at all"
    whole = files(Path("data/flow"))
    assert "index.csv" in whole and not any(name.startswith("runs") for name in whole)
    assert not Path(".work/flow").exists()

    computed.clear()
    stop_after = 3
    with pytest.raises(SystemExit):
        flow_main(flow_stage(method="best"))
    assert files(Path("data/flow")) == whole, "the old flow was touched"
    stop_after = 99
    flow_main(flow_stage())
    assert len(computed) == 3 + 7, "the flow of another method was taken up"
    assert files(Path("data/flow")) == whole


def test_photographs_have_no_flow_and_no_agreement(tmp_path, monkeypatch):
    """Data of single pictures (Mapillary Vistas) can be evaluated; what learns from flow says what is missing."""
    photographs = write_prepared(tmp_path, train=(1, 1, 1), val=(1, 1))
    monkeypatch.chdir(tmp_path)
    flow_main(flow_stage())
    assert list(files(Path("data/flow"))) == ["index.csv"] and read_flow_index(Path("data/flow/index.csv")) == {}
    agreement = TemporalAgreement(FlowStore(Path("data/flow")))
    agreement.start(photographs.select("val"))
    for frame in photographs.select("val"):
        agreement.add(frame, np.zeros((32, 64), np.uint8))
    assert (agreement.share, agreement.pairs) == (None, 0)
    with pytest.raises(UserError, match="none of 3 training frames has a next one"):
        unlabelled_frames(photographs, "all")
