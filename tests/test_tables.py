"""Tables, chart, pictures and report from made-up runs."""

import csv
import io
import json
import statistics
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from semivid.data.classes import Classes
from semivid.data.index import Frame, Index
from semivid.depth.disparity import write_disparity
from semivid.errors import UserError
from semivid.evaluation import pictures
from semivid.evaluation.chart import chart_svg
from semivid.evaluation.report import build_report
from semivid.evaluation.tables import display_name, read_runs, table_cells, write_tables

SELECTIONS = ["random", "entropy", "us", "ds", "ds_us", "published_ds_us"]
LABELS, SEEDS = [25, 50], [7, 25, 42]
COLOURS = np.array([[128, 64, 128], [70, 130, 180], [0, 0, 142]], np.uint8)
CLASSES = Classes(("road", "sky, blue", "car"), COLOURS)
PROTOCOL = {
    "data": "camvid", "network": "tf_efficientnet_lite0", "encoder_weights": "package", "size": [240, 180],
    "evaluation": "last", "eval_split": "val", "n_eval_frames": 101,
}  # fmt: skip


def score(selection, labels, seed):
    return 0.40 + 0.02 * SELECTIONS.index(selection) + 0.001 * labels + {7: 0.0, 25: 0.013, 42: -0.004}[seed]


def write_run(folder, selection, labels, seed, **changes):
    miou = score(selection, labels, seed)
    content = {
        "method": "supervised", "selection": selection, "labels": labels, "list_labels": labels, "seed": seed,
        "iterations": 600, "miou": miou, "best_miou": miou + 0.01, "best_iteration": 500, "accuracy": 0.9,
        "mean_class_accuracy": 0.6, "frequency_weighted_iou": 0.8, "protocol": PROTOCOL,
        "iou": {"road": 0.9, "sky, blue": 2 * miou - 0.9, "car": None},
    }  # fmt: skip
    path = folder / f"{selection}-{labels}-{seed}.json"
    path.write_text(json.dumps(content | changes))
    return path


@pytest.fixture
def paths(tmp_path):
    return [write_run(tmp_path, s, n, seed) for s in SELECTIONS for n in LABELS for seed in SEEDS]


@pytest.fixture
def cells(paths):
    return table_cells(read_runs(paths), "supervised", SELECTIONS, LABELS, SEEDS)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_tidy_table(paths, cells, tmp_path):
    write_tables(tmp_path / "results", cells, read_runs(paths))
    rows = rows_of(tmp_path / "results" / "table3.csv")
    assert [(r["selection"], int(r["labels"])) for r in rows] == [(s, n) for s in SELECTIONS for n in LABELS]
    row = rows[SELECTIONS.index("ds") * 2 + 1]
    values = [score("ds", 50, seed) for seed in SEEDS]
    assert [row[f"seed_{seed}"] for seed in SEEDS] == [f"{v:.6f}" for v in values]
    assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-6)
    assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert row["std_kind"] == "sample (n - 1)" and row["n_seeds"] == "3"
    assert float(row["diff_random_mean"]) == pytest.approx(0.06, abs=1e-6)
    assert float(row["diff_random_std"]) == pytest.approx(0, abs=1e-6)  # paired: the seeds' own spread is gone
    assert float(row["best_mean"]) == pytest.approx(np.mean(values) + 0.01, abs=1e-6)
    assert row["protocol_size"] == "240x180" and row["protocol_evaluation"] == "last"
    assert rows[0]["diff_random_mean"] == "" and row["iterations"] == "600"


def test_table_of_runs(paths, cells, tmp_path):
    write_tables(tmp_path / "results", cells, read_runs(reversed(paths)))
    rows = rows_of(tmp_path / "results" / "runs.csv")
    assert len(rows) == len(paths)
    assert rows[0]["iou_car"] == "" and rows[0]["iou_road"] == "0.900000" and "iou_sky, blue" in rows[0]
    first = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    write_tables(tmp_path / "results", cells, read_runs(paths))  # another order of the files: the same bytes
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert sorted(first) == ["runs.csv", "table3.csv", "table3.md"]


def test_readable_table(paths, cells, tmp_path):
    write_tables(tmp_path, cells, read_runs(paths))
    text = (tmp_path / "table3.md").read_text()
    values = [score("random", 25, seed) for seed in SEEDS]
    assert f"| Random | {100 * np.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} |" in text
    best = [line for line in text.splitlines() if "**" in line]
    assert len(best) == 1 and best[0].startswith("| DS+US (published list) | **") and best[0].count("**") == 4
    assert "+2.00 ± 0.00" in text and "last evaluation" in text and "size 240x180" in text
    assert "seeds 7, 25, 42" in text and "600 iterations" in text


def test_names():
    names = [display_name(s) for s in [*SELECTIONS, "published_ent", "own"]]
    assert names == [
        "Random", "Entropy", "US", "DS", "DS+US", "DS+US (published list)", "Entropy (published list)", "own",
    ]  # fmt: skip


def test_missing_runs_are_listed(paths):
    runs = [r for r in read_runs(paths) if (r.selection, r.seed) != ("us", 25)]
    with pytest.raises(UserError, match=r"2 of 36 runs .* \(us-25-seed25, us-50-seed25\)"):
        table_cells(runs, "supervised", SELECTIONS, LABELS, SEEDS)
    assert len(table_cells(runs, "supervised", SELECTIONS, LABELS, [7, 42])) == 12
    with pytest.raises(UserError, match="36 of 36"):
        table_cells(runs, "other", SELECTIONS, LABELS, SEEDS)


def test_single_seeds_and_tables_without_random(paths, tmp_path):
    cells = table_cells(read_runs(paths), "supervised", ["ds", "us"], [25], [7])
    assert cells[0].std is None and cells[0].difference is None
    write_tables(tmp_path / "r", cells, read_runs(paths))
    assert "±" not in (tmp_path / "r" / "table3.md").read_text()
    assert rows_of(tmp_path / "r" / "table3.csv")[0]["std"] == ""
    cells = table_cells(read_runs(paths), "supervised", ["ds", "random"], [25], [7])
    assert cells[0].difference == pytest.approx(0.06) and cells[0].difference_std is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {**PROTOCOL, "size": [480, 360]}}, "different protocol.size"),
        ({"protocol": {k: v for k, v in PROTOCOL.items() if k != "data"}}, "different protocol.data"),
        ({"iterations": 900}, "different iterations"),
        ({"list_labels": 24}, "different list_labels"),
    ],
)
def test_unlike_runs_are_not_mixed(paths, tmp_path, changes, message):
    write_run(tmp_path, "ds", 25, 42, **changes)
    with pytest.raises(UserError, match=message):
        table_cells(read_runs(paths), "supervised", SELECTIONS, LABELS, SEEDS)


def test_shorter_lists_are_told(paths, tmp_path):
    for seed in SEEDS:
        write_run(tmp_path, "published_ds_us", 50, seed, list_labels=48)
    runs = read_runs(paths)
    write_tables(tmp_path / "r", table_cells(runs, "supervised", SELECTIONS, LABELS, SEEDS), runs)
    text = (tmp_path / "r" / "table3.md").read_text()
    assert "DS+US (published list), column 50: 48 frames were really used." in text


def test_bad_metrics_files_are_reported_together(paths, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "short.json").write_text('{"miou": 0.5}')
    null = write_run(tmp_path, "ds", 25, 42, miou=None)
    bad = [tmp_path / "absent.json", tmp_path / "broken.json", tmp_path / "short.json", null]
    with pytest.raises(UserError) as error:
        read_runs([*paths[:2], *bad, paths[0]])
    text = str(error.value)
    for part in [
        "absent.json is missing",
        "broken.json is not JSON",
        "short.json lacks",
        "no number for miou",
    ]:
        assert part in text
    assert "hold the same run" in text and "\n" not in text


def test_chart(cells):
    root = ET.fromstring(chart_svg(cells))
    assert len(root.findall(".//{*}polyline")) == len(SELECTIONS)
    for circle in root.findall(".//{*}circle"):
        assert 0 <= float(circle.get("cx")) <= 800 and 0 <= float(circle.get("cy")) <= 400
    ET.fromstring(chart_svg([c for c in cells if c.labels == 25]))


# ---- pictures and report


def test_overlay_and_colours():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.array([[0, 1, 255], [2, 2, 2]], np.uint8).repeat(2, 0).repeat(2, 1)
    for given in (labels, labels[::2, ::2]):  # labels of another size are brought to the picture's
        mixed = pictures.overlay(image, given, CLASSES, alpha=0.5)
        assert mixed[0, 0].tolist() == [114, 82, 114] and mixed[0, 5].tolist() == [50, 50, 50]
        assert mixed[3, 0].tolist() == [50, 50, 121]
    near, far = pictures.disparity_colours(np.array([[1.0, 0.0]]))[0].astype(int)
    assert near.sum() > 500 and far.sum() < 50


def test_picture_files(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    pictures.write_rgb(tmp_path / "a" / "p.png", image)
    assert (pictures.read_rgb(tmp_path / "a" / "p.png") == image).all()
    assert pictures.read_rgb(tmp_path / "a" / "p.png", 20).shape == (15, 20, 3)
    with pytest.raises(UserError, match="cannot read the picture"):
        pictures.read_rgb(tmp_path / "absent.png")
    with pytest.raises(UserError, match="cannot read the mask"):
        pictures.read_labels(tmp_path / "a" / "p.png")
    sheet = pictures.contact_sheet([image] * 5, ["caption"] * 4 + ["a caption that is far too long"], 3, 60, 4)
    assert sheet.shape == (2 * (45 + 18 + 4) + 4, 3 * 64 + 4, 3) and (sheet[-30:, -60:] == 255).all()


@pytest.fixture
def scene(tmp_path):
    """A small index of pictures, labels, predictions and disparities."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(8):
        split, name = ("train", "val")[i // 5], f"seq a_{i:03d}"
        labels = np.repeat(np.array([1, 2, 0], np.uint8), 20)[:, None].repeat(80, 1)
        labels[:, :4] = 255
        image = CLASSES.paint(labels) // 2 + rng.integers(0, 100, (60, 80, 3)).astype(np.uint8)
        files = [tmp_path / kind / split / f"{name}.png" for kind in ("images", "labels")]
        pictures.write_rgb(files[0], image)
        files[1].parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(files[1]), labels)
        if split == "val":
            cv2.imwrite(str(tmp_path / f"{name}.png"), np.roll(labels, i, 0) % 3)
        write_disparity(tmp_path / "disparity" / split / f"{name}.png", np.linspace(0, 1, 4800).reshape(60, 80))
        frames.append(Frame(name, split, "seq a", i, files[0], "", files[1]))
    names = [f.frame for f in frames if f.split == "train"]
    predictions = {
        ("random", 25, 7): tmp_path,
        ("ds_us", 25, 7): {f.frame: np.zeros((60, 80), np.uint8) for f in frames if f.split == "val"},
    }
    return {
        "index": Index(frames), "classes": CLASSES, "predictions": predictions, "seed": 7,
        "disparities": tmp_path / "disparity", "selections": {"random": names, "ds_us": names[::-1][:4]},
    }  # fmt: skip


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]


def test_report(paths, cells, scene, tmp_path):
    out = tmp_path / "report"
    build_report(out, cells, read_runs(paths), **scene)
    text = (out / "index.html").read_text()
    sources = Links(text).sources
    assert len(sources) == 3 * 4 + 4 * 2 + 5 + 4  # predictions, disparities, selected frames
    for source in sources:
        assert not source.startswith(("/", "http")) and (out / unquote(source)).is_file()
    assert {(out / unquote(s)).name for s in sources} == {file.name for file in (out / "pictures").iterdir()}
    for part in ["DS+US (published list)", "<svg", "sky, blue", "last evaluation", "Frames in common"]:
        assert part in text
    assert (out / "overview.jpg").is_file() and (out / "chart.svg").is_file()

    before = {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    (out / "stale.txt").write_text("")
    build_report(out, cells, read_runs(paths), **scene)
    assert before == {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}

    scene["selections"] = {"random": ["absent"]}
    with pytest.raises(UserError, match="not in the index"):
        build_report(out, cells, read_runs(paths), **scene)
    assert before == {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def test_report_without_pictures(paths, cells, scene, tmp_path):
    scene |= {"predictions": {}, "disparities": None, "selections": {}}
    build_report(tmp_path / "report", cells, read_runs(paths), **scene)
    text = (tmp_path / "report" / "index.html").read_text()
    assert "IoU per class" in text and "Selected frames" not in text
    scene["predictions"] = {("random", 25, 7): {}}
    with pytest.raises(UserError, match="no labelled frame has predictions"):
        build_report(tmp_path / "report", cells, read_runs(paths), **scene)
