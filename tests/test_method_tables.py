"""Tables over methods, from made-up runs with known answers."""

import csv
import importlib
import io
import json
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from semivid.errors import UserError
from semivid.evaluation import trained
from semivid.evaluation.flow_table import flow_cells, flow_csv, read_flow_runs
from semivid.evaluation.method_pages import methods_markdown, row_name, write_method_table
from semivid.evaluation.method_tables import (
    half_width,
    method_cells,
    methods_csv,
    read_method_runs,
    t_quantile,
    with_labelled_share,
)
from semivid.evaluation.tables import read_runs, runs_csv, table_cells, table_csv
from semivid.pipeline.params import read_params

ROOT = Path(__file__).parent.parent
ROWS, LABELS, SEEDS = ["classmix-random", "supervised-random", "depthmix_gt-ds_us"], [24, 12], [25, 7, 42]
PROTOCOL = {"data": "street", "network": "lite0", "encoder_weights": "package", "size": "192x96", "n_eval_frames": 48}
# mIoU by row and seed 7, 25, 42; 24 labels add 0.1. Differences to supervised: 0.03, 0.02, 0.04 and -0.02, 0, 0.02.
MIOU = {
    "supervised-random": {7: 0.30, 25: 0.32, 42: 0.34},
    "classmix-random": {7: 0.33, 25: 0.34, 42: 0.38},
    "depthmix_gt-ds_us": {7: 0.28, 25: 0.32, 42: 0.36},
}


def write_run(folder, row, labels, seed, **changes):
    method, _, selection = row.partition("-")
    content = {
        "method": method, "selection": selection, "labels": labels, "seed": seed, "iterations": 70,
        "miou": MIOU.get(row, MIOU["supervised-random"])[seed] + (0.1 if labels == 24 else 0), "best_miou": 0.5,
        "temporal_agreement": 0.9 + seed / 1000, "temporal_pairs": 96, "device": "cpu", "hours": seed / 100,
        "protocol": PROTOCOL, "iou": {"road": 0.9, "sky": None},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row}-{labels}-{seed}.json"
    path.write_text(json.dumps(content | changes))
    return path


def write_all(folder, rows=ROWS, labels=LABELS, seeds=SEEDS, **changes):
    return [write_run(folder, *run, **changes) for run in product(rows, labels, seeds)]


def lines_of(cells):
    return {(r["row"], int(r["labels"])): r for r in csv.DictReader(io.StringIO(methods_csv(cells)))}


@pytest.fixture
def cells(tmp_path):
    return method_cells(read_method_runs(write_all(tmp_path)), ROWS, LABELS, SEEDS)


def test_a_line_holds_the_values_computed_by_hand(cells):
    line = lines_of(cells)["classmix-random", 12]
    wanted = {
        "method": "classmix", "selection": "random", "miou": "0.350000", "miou_std": "0.026458", "n_seeds": "3",
        "std_kind": "sample (n - 1)", "seed_7": "0.330000", "seed_25": "0.340000", "seed_42": "0.380000",
        "diff_supervised": "0.030000", "diff_supervised_std": "0.010000",
        "diff_supervised_ci95": "0.024841",  # 4.302653 * 0.01 / sqrt(3)
        "temporal_agreement": "0.924667", "temporal_agreement_std": "0.017502", "temporal_pairs": "96",
        "hours": "0.246667", "device": "cpu", "best_miou": "0.500000", "iterations": "70",
        "protocol_data": "street", "protocol_network": "lite0", "protocol_n_eval_frames": "48",
    }  # fmt: skip
    assert {key: line[key] for key in wanted} == wanted
    other = lines_of(cells)["depthmix_gt-ds_us", 24]
    assert (other["diff_supervised"], other["diff_supervised_std"]) == ("0.000000", "0.020000")
    own = lines_of(cells)["supervised-random", 12]
    assert own["diff_supervised"] == own["diff_supervised_std"] == own["diff_supervised_ci95"] == ""


def test_differences_are_paired_by_seed_and_label_count(tmp_path):
    paths = write_all(tmp_path)
    write_run(tmp_path, "supervised-random", 24, 42, miou=0.9)  # this one run changes the column 24 alone
    lines = lines_of(method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS))
    assert lines["classmix-random", 12]["diff_supervised"] == "0.030000"
    differences = [0.03, 0.02, 0.48 - 0.9]
    line = lines["classmix-random", 24]
    assert float(line["diff_supervised"]) == pytest.approx(np.mean(differences), abs=1e-6)
    assert float(line["diff_supervised_std"]) == pytest.approx(np.std(differences, ddof=1), abs=1e-6)


def test_confidence_intervals_are_those_of_scipy():
    for freedom, share in product([1, 2, 3, 4, 5, 10, 31, 100], [0.5, 0.9, 0.95, 0.99]):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf((1 + share) / 2, freedom), rel=1e-9)
    rng = np.random.default_rng(0)
    for n in (3, 4, 7):
        ours, theirs = rng.random(n), rng.random(n)
        low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert half_width(list(ours - theirs)) == pytest.approx((high - low) / 2)


def test_rows_and_columns_come_in_the_given_order_whatever_that_of_the_files(tmp_path, cells):
    assert list(zip(cells.row, cells.labels, strict=True)) == list(product(ROWS, LABELS))
    seeds = [name for name in cells if name.startswith("seed_")]
    assert seeds == ["seed_25", "seed_7", "seed_42"]
    shuffled = write_all(tmp_path)
    np.random.default_rng(1).shuffle(shuffled)
    again = method_cells(read_method_runs(shuffled), ROWS, LABELS, SEEDS)
    assert methods_csv(again) == methods_csv(cells)
    assert methods_markdown("T", again) == methods_markdown("T", cells)


def test_files_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all(Path("results/methods"))
    found = []
    for _ in range(2):
        write_method_table("methods", "T", ROWS, LABELS, SEEDS)
        found.append([Path(f"results/methods.{kind}").read_bytes() for kind in ("csv", "md")])
    assert found[0] == found[1] and b"\r" not in found[0][0] and found[0][1].startswith(b"# T\n")


def test_the_page_shows_all_tables(cells):
    page = methods_markdown("All methods", cells)
    first, difference, agreement, hours = re.findall(r"\| Method \| 24 labels \| 12 labels \|\n(?:\|.*\n)+", page)
    assert "| ClassMix | **45.00 ± 2.65** | **35.00 ± 2.65** |" in first
    assert "| Supervised | 42.00 ± 2.00 | 32.00 ± 2.00 |" in first and first.count("**") == 4
    assert "| ClassMix | +3.00 ± 1.00 (95 %: ± 2.48) | +3.00 ± 1.00 (95 %: ± 2.48) |" in difference
    assert "| Supervised |" not in difference
    assert "| Supervised | 92.47 ± 1.75 | 92.47 ± 1.75 |" in agreement
    assert "| Supervised | 0.247 | 0.247 |" in hours and "Training in CPU hours, mean" in page
    paragraph = page.strip().splitlines()[-1]
    for part in ("seeds 25, 7, 42", "last evaluation", "70 iterations", "size 192x96", "2 degrees of freedom"):
        assert part in paragraph
    assert "network lite0" in paragraph and "Rows differ" not in paragraph


def test_equal_values_are_equally_bold(tmp_path):
    paths = write_all(tmp_path, labels=[12], seeds=[7])
    write_run(tmp_path, "classmix-random", 12, 7, miou=0.300004)  # 30.00 in the page
    page = methods_markdown("T", method_cells(read_method_runs(paths), ROWS, [12], [7]))
    assert "| ClassMix | **30.00** |" in page and "| Supervised | **30.00** |" in page and page.count("**") == 4


def test_names():
    rows = {
        "supervised-random": "Supervised",
        "supervised-ds": "Supervised, frames by DS",
        "mean_teacher-random": "Mean teacher",
        "classmix-random": "ClassMix",
        "depthmix_gt-published_ds_us": "DepthMix (ground truth in the mix), frames by DS+US (published list)",
        "transfer_plain-random": "Transfer, no feature distance",
        "multitask_depthmix_gt-ds_us": "Multi-task + DepthMix (ground truth in the mix), frames by DS+US",
        "flow_consistency-random": "Flow consistency",
        "my_method-random": "my_method",  # a method joins without code
        "my_method-own": "my_method, frames by own",
    }
    assert {row: row_name(row) for row in rows} == rows


def test_an_unknown_method_joins_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["supervised-random", "my_method-random"]
    write_all(Path("results/methods"), rows)
    write_method_table("table1", "T", rows, LABELS, SEEDS)
    assert "| my_method | **42.00 ± 2.00** |" in Path("results/table1.md").read_text()
    assert "\nmy_method-random,my_method,random,24," in Path("results/table1.csv").read_text()


def test_all_faults_come_in_one_line(tmp_path):
    paths = write_all(tmp_path)
    by_name = {path.stem: path for path in paths}
    by_name["classmix-random-24-7"].unlink()
    by_name["classmix-random-24-25"].write_text("{")
    by_name["classmix-random-24-42"].write_text("[]")
    by_name["classmix-random-12-7"].write_text('{"method": "classmix", "protocol": {}}')
    write_run(tmp_path, "classmix-random", 12, 25, miou=None, hours="2", temporal_agreement=True)
    write_run(tmp_path, "classmix-random", 12, 42, protocol="street")
    by_name["supervised-random-12-42"].write_text(by_name["supervised-random-12-7"].read_text())
    write_run(tmp_path, "depthmix_gt-ds_us", 24, 42, iterations=90, temporal_pairs=95)
    write_run(tmp_path, "depthmix_gt-ds_us", 24, 25, protocol=PROTOCOL | {"size": "96x96", "network": "other"})
    with pytest.raises(UserError) as error:
        read_method_runs(paths)
    text = str(error.value)
    for part in [
        "classmix-random-24-7.json is missing",
        "classmix-random-24-25.json is not JSON",
        "classmix-random-24-42.json is not a run's metrics",
        "classmix-random-12-7.json lacks selection, labels, seed, miou, best_miou, temporal_agreement, hours, ",
        "classmix-random-12-25.json has no number for miou, temporal_agreement, hours",
        "classmix-random-12-42.json has no mapping for protocol",
        "supervised-random-12-7.json hold the same run",
        "different iterations cannot share a table (supervised-random-24-25: 70; depthmix_gt-ds_us-24-42: 90)",
        "different temporal_pairs",
        "different protocol.size cannot share a table (supervised-random-24-25: 192x96; depthmix_gt-ds_us-24-25: 96x",
        "different protocol.network in one row cannot share a table (depthmix_gt-ds_us-24-25: other; ",
    ]:
        assert part in text, part
    assert "\n" not in text and text.count("; ") >= 10


@pytest.mark.parametrize("key", ["data", "size", "n_eval_frames", "a_new_key"])
def test_runs_of_another_protocol_are_refused(tmp_path, key):
    paths = write_all(tmp_path)
    for labels, seed in product(LABELS, SEEDS):  # a whole row of them
        write_run(tmp_path, "classmix-random", labels, seed, protocol=PROTOCOL | {key: "other"})
    with pytest.raises(UserError, match=rf"different protocol\.{key} cannot share a table"):
        read_method_runs(paths)


def test_a_row_may_bring_its_own_network(tmp_path):
    paths = write_all(tmp_path)
    for labels, seed in product(LABELS, SEEDS):
        own = {k: v for k, v in PROTOCOL.items() if k != "encoder_weights"} | {"network": "multitask"}
        write_run(tmp_path, "depthmix_gt-ds_us", labels, seed, protocol=own)
    cells = method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS)
    lines = lines_of(cells)
    assert lines["depthmix_gt-ds_us", 12]["protocol_network"] == "multitask"
    assert lines["depthmix_gt-ds_us", 12]["protocol_encoder_weights"] == ""
    assert lines["classmix-random", 12]["protocol_network"] == "lite0"
    page = methods_markdown("T", cells)
    name = "DepthMix (ground truth in the mix), frames by DS+US"
    assert f"Rows differ in network: multitask in {name}; lite0 in all others." in page
    assert f"Rows differ in encoder_weights: none in {name}; package in all others." in page
    assert "Protocol: data street; size 192x96; n_eval_frames 48." in page


def test_runs_that_are_not_there_are_named(tmp_path):
    runs = read_method_runs(write_all(tmp_path))
    kept = runs[~((runs.row == "classmix-random") & (runs.seed == 7))]
    with pytest.raises(UserError, match=r"2 of 18 runs are missing \(classmix-random-24-7, classmix-random-12-7\)"):
        method_cells(kept, ROWS, LABELS, SEEDS)
    assert len(method_cells(kept, ["supervised-random"], [12], [7])) == 1


def test_one_seed_has_no_deviation_and_two_no_interval(tmp_path):
    runs = read_method_runs(write_all(tmp_path))
    line = lines_of(method_cells(runs, ROWS, LABELS, [7]))["classmix-random", 12]
    assert (line["miou"], line["diff_supervised"], line["n_seeds"]) == ("0.330000", "0.030000", "1")
    for key in ("miou_std", "diff_supervised_std", "diff_supervised_ci95", "temporal_agreement_std"):
        assert line[key] == ""
    page = methods_markdown("T", method_cells(runs, ROWS, LABELS, [7]))
    assert "±" not in page and "95 %" not in page and "value over the training seed 7;" in page
    two = method_cells(runs, ROWS, LABELS, [7, 42])
    assert lines_of(two)["classmix-random", 12]["diff_supervised_std"] == "0.007071"
    assert lines_of(two)["classmix-random", 12]["diff_supervised_ci95"] == ""
    assert "95 %" not in methods_markdown("T", two)


def test_temporal_agreement_may_be_unknown(tmp_path):
    paths = write_all(tmp_path, temporal_agreement=None, temporal_pairs=0)
    cells = method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS)
    assert lines_of(cells)["classmix-random", 12]["temporal_agreement"] == ""
    assert "same along the flow" not in methods_markdown("T", cells)
    paths = write_all(tmp_path)
    write_run(tmp_path, "classmix-random", 12, 7, temporal_agreement=None)  # a mean of fewer seeds would mislead
    cells = method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS)
    assert lines_of(cells)["classmix-random", 12]["temporal_agreement"] == ""
    assert "| ClassMix | 92.47 ± 1.75 | - |" in methods_markdown("T", cells)


def test_hours_of_unlike_devices_are_not_averaged(tmp_path):
    paths = write_all(tmp_path)
    for seed in SEEDS:
        write_run(tmp_path, "supervised-random", 12, seed, device="GPU X", hours=1.5)
    write_run(tmp_path, "classmix-random", 12, 7, device="GPU X")
    cells = method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS)
    lines = lines_of(cells)
    assert (lines["classmix-random", 12]["hours"], lines["classmix-random", 12]["device"]) == ("", "GPU X / cpu")
    page = methods_markdown("T", cells)
    assert "| ClassMix | 0.247 (cpu) | - (GPU X / cpu) |" in page
    assert "| Supervised | 0.247 (cpu) | 1.5 (GPU X) |" in page and "CPU hours where it says cpu" in page
    alone = cells[cells.device == "GPU X"].reset_index(drop=True)
    assert "Training in hours on GPU X, mean" in methods_markdown("T", alone)


def test_a_table_without_the_baseline_has_no_differences(tmp_path):
    runs = read_method_runs(write_all(tmp_path))
    cells = method_cells(runs, ["classmix-random"], LABELS, SEEDS)
    assert lines_of(cells)["classmix-random", 12]["diff_supervised"] == ""
    assert "Difference" not in methods_markdown("T", cells)


def test_the_share_of_labelled_frames_where_the_protocol_tells_it(tmp_path, cells):
    assert with_labelled_share(cells) is cells
    paths = write_all(tmp_path, protocol=PROTOCOL | {"n_train_frames": 192})
    with_share = with_labelled_share(method_cells(read_method_runs(paths), ROWS, LABELS, SEEDS))
    assert [lines_of(with_share)["classmix-random", n]["labelled_share"] for n in LABELS] == ["0.125000", "0.062500"]
    assert "| Method | 24 labels (12.5 %) | 12 labels (6.25 %) |" in methods_markdown("T", with_share)
    assert list(with_share)[3:6] == ["labels", "labelled_share", "miou"]


@pytest.mark.parametrize(
    ("name", "stem", "share"),
    [("methods_table", "methods", False), ("table1", "table1", True), ("table2", "table2", False)],
)
def test_the_stages_read_their_rows_and_write_their_files(tmp_path, monkeypatch, name, stem, share):
    monkeypatch.chdir(tmp_path)
    asked = []
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "remove_orphans", lambda: asked.append(sorted(Path("results").iterdir())))
    rows = ["supervised-random", "classmix-random"]
    write_all(Path("results/methods"), rows, [12], SEEDS, protocol=PROTOCOL | {"n_train_frames": 192})
    params = SimpleNamespace(compare=SimpleNamespace(labels=[12], seeds=SEEDS), **{name: SimpleNamespace(rows=rows)})
    module.main(SimpleNamespace(params=params))
    assert asked == [[Path("results/methods")]], "left-overs must go before the table is made"
    text = Path(f"results/{stem}.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == rows and ("labelled_share" in text) == share
    assert ("6.25 %" in Path(f"results/{stem}.md").read_text()) == share
    params.compare.labels = [12, 24]
    with pytest.raises(UserError, match=r"supervised-random-24-25.json is missing; .*/classmix-random-24"):
        module.main(SimpleNamespace(params=params))


# ---- the documentation


def columns_of(text):
    """Column names as docs/tables.md writes them: one for all seeds, one for all classes."""
    return {re.sub(r"^(seed_|iou_).+", r"\1*", name) for name in next(csv.reader(io.StringIO(text)))}


def test_the_documentation_explains_every_column_and_no_other(tmp_path):
    protocol = trained.protocol(read_params(ROOT / "params.yaml"), 48)
    counted = protocol | {"n_train_frames": 192}
    cells = method_cells(read_method_runs(write_all(tmp_path / "m", protocol=counted)), ROWS, LABELS, SEEDS)
    common = {"list_labels": 12, "best_iteration": 5, "accuracy": 1, "mean_class_accuracy": 1,
              "frequency_weighted_iou": 1, "protocol": protocol}  # fmt: skip
    runs = read_runs([write_run(tmp_path / "t", "supervised-random", 12, 7, **common)])
    flow = read_flow_runs([write_run(tmp_path / "f", "flow_baseline-random", 12, 7, percent=50, protocol=protocol)])
    written = {
        "table3": table_csv(table_cells(runs, "supervised", ["random"], [12], [7])),
        "runs": runs_csv(runs),
        "flow_consistency": flow_csv(flow_cells(flow, ["flow_baseline"]), flow),
        "methods": methods_csv(cells),
        "table1": methods_csv(with_labelled_share(cells)),
        "table2": methods_csv(cells),
    }
    documented = {name: set() for name in written}
    page = (ROOT / "docs/tables.md").read_text(encoding="utf-8").partition("## Columns")[2].partition("\n## ")[0]
    for names, meaning, tables in re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE):
        assert meaning
        for table in written if tables == "all" else tables.split(", "):
            documented[table] |= set(re.findall(r"`(.+?)`", names))
    for name, text in written.items():
        assert documented[name] == columns_of(text), name
