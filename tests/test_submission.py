"""What is kept of an evaluation: the table against the official evaluator, the pictures, and the benchmarks' zips."""

import csv
import io
import json
import math
import zipfile

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import trainId2label

from semivid.data.classes import Classes, read_class_file
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.submission import (
    PROTOCOLS,
    Result,
    class_metrics,
    metrics_csv,
    submission_ids,
    write_evaluation,
    write_zip,
)
from small import ROOT

VOID = 255
PRESETS = ROOT / "presets/classes"


def read(path):
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if picture.ndim == 3 else picture


def frame(name, seed, classes=19, size=(20, 30), labelled=True):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size).astype(np.uint8)
    predicted = np.where(rng.random(size) < 0.6, label, rng.integers(0, classes, size)).astype(np.uint8)
    label[rng.random(size) < 0.1] = VOID
    picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return Result(name, picture, predicted, label if labelled else None)


@pytest.fixture
def street():
    classes, code = read_class_file(PRESETS / "cityscapes19.yaml")
    return classes, submission_ids(classes, code)


# ---- the table


def test_the_references_example(data_dir):
    spec = json.loads((data_dir / "nvidia_sliding.json").read_text())["miou"]
    truth = torch.randint(0, 6, (40, 50), generator=torch.Generator().manual_seed(1)).numpy()
    truth[truth == 5] = VOID
    predicted = torch.randint(0, 4, (40, 50), generator=torch.Generator().manual_seed(2)).numpy()
    confusion = confusion_matrix(predicted, truth, 6)
    assert confusion.tolist() == spec["hist_rows_gt"]
    rows = class_metrics(confusion, "abcdef")
    assert [row["iou"] for row in rows] == [v if v is None else pytest.approx(v, rel=1e-12) for v in spec["iou"]]
    table = list(csv.DictReader(io.StringIO(metrics_csv(confusion, "abcdef", range(6)))))
    assert float(table[-1]["iou"]) == pytest.approx(spec["mean_nanmean"], abs=1e-6)
    assert scores(confusion, "abcdef")["miou"] == pytest.approx(spec["mean_nanmean"], rel=1e-12)


def test_counts_are_those_of_a_plain_loop():
    """Precision and recall the right way round: the reference swaps them."""
    result = frame("x", 3, classes=5)
    predicted, label = result.predicted.ravel().tolist(), result.label.ravel().tolist()
    rows = class_metrics(confusion_matrix(result.predicted, result.label, 5), "abcde")
    for c, row in enumerate(rows):
        pairs = [(p, t) for p, t in zip(predicted, label, strict=True) if t != VOID]
        tp = sum(p == c and t == c for p, t in pairs)
        fp, fn = sum(p == c and t != c for p, t in pairs), sum(p != c and t == c for p, t in pairs)
        assert (row["tp"], row["fp"], row["fn"]) == (tp, fp, fn) and fp != fn
        assert row["precision"] == tp / sum(p == c for p, _ in pairs)
        assert row["recall"] == tp / sum(t == c for _, t in pairs)
        assert row["iou"] == tp / (tp + fp + fn)


def test_the_table_of_a_class_that_is_absent():
    confusion = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    text = metrics_csv(confusion, ["a", "b, c", "d", "e"], [7, 8, 11, 12])
    assert text.splitlines() == [
        "class,id,iou,precision,recall,tp,fp,fn",
        "a,7,0.500000,0.600000,0.750000,3,2,1",
        '"b, c",8,0.000000,0.000000,,0,1,0',
        "d,11,0.000000,,0.000000,0,0,2",
        "e,12,,,,0,0,0",
        "mean,,0.166667,0.300000,0.375000,,,",
    ]


# ---- ids


def test_ids_are_the_official_ones(street):
    assert street[1] == tuple(trainId2label[i].id for i in range(19))
    assert set(street[1]) == set(PROTOCOLS["cityscapes"].ids)
    classes, code = read_class_file(PRESETS / "camvid11_segnet.yaml")
    assert submission_ids(classes, code) == tuple(range(11)) == PROTOCOLS["camvid"].ids


def test_a_class_with_several_ids_has_the_lowest(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text(
        "- {name: a, colour: [1, 2, 3], ids: [9, 4]}\n- {name: b, colour: [3, 2, 1], ids: [6]}\n- void: [0]\n"
    )
    assert submission_ids(*read_class_file(file)) == (4, 6)


# ---- folders


def test_the_official_evaluator_reads_what_is_written(street, tmp_path):
    """The Cityscapes evaluator finds our files by its own rule and gives our scores."""
    classes, ids = street
    results = [frame(f"ulm_000{n:03}_000019_leftImg8bit", n) for n in range(3)]
    confusion = write_evaluation(tmp_path / "val", results, classes, ids)
    args = cityscapes.args
    args.evalInstLevelScore = args.evalPixelAccuracy = False
    args.evalLabels, args.predictionPath, args.predictionWalk = [], str(tmp_path / "val/pred"), None
    matrix = cityscapes.generateMatrix(args)
    of_train = np.array([trainId2label[i].id if i < 19 else 0 for i in range(256)], np.uint8)
    for result in results:
        truth = tmp_path / result.name.replace("leftImg8bit", "gtFine_labelIds.png")
        cv2.imwrite(str(truth), of_train[result.label])
        cityscapes.evaluatePair(cityscapes.getPrediction(args, str(truth)), str(truth), matrix, {}, {}, args)
    args.predictionPath = args.predictionWalk = None
    for row, id_ in zip(class_metrics(confusion, classes.names), ids, strict=True):
        expected = cityscapes.getIouScoreForLabel(id_, matrix, args)
        assert row["iou"] == expected or (row["iou"] is None and math.isnan(expected))
    table = list(csv.DictReader((tmp_path / "val/metrics.csv").open()))
    assert [int(row["id"]) for row in table[:-1]] == list(ids)
    assert float(table[-1]["iou"]) == pytest.approx(scores(confusion, classes.names)["miou"], abs=1e-6)


def test_pictures(street, tmp_path):
    classes, ids = street
    results = [frame("a", 1), frame("b", 2, size=(7, 11), labelled=False)]
    write_evaluation(tmp_path / "out", iter(results), classes, ids)
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert found == [
        "compose/a_compose.png", "compose/b_compose.png", "diff/a_diff.png", "metrics.csv", "pred/a.png", "pred/b.png",
        "rgb/a_color.png", "rgb/b_color.png",
    ]  # fmt: skip
    for result in results:
        pred, rgb = (read(tmp_path / f"out/{n}.png") for n in (f"pred/{result.name}", f"rgb/{result.name}_color"))
        compose = read(tmp_path / f"out/compose/{result.name}_compose.png")
        assert pred.dtype == np.uint8 and pred.shape == result.predicted.shape
        for y in range(pred.shape[0]):
            for x in range(pred.shape[1]):
                train = result.predicted[y, x]
                assert pred[y, x] == trainId2label[int(train)].id
                assert (rgb[y, x] == classes.colours[train]).all()
                half = (result.picture[y, x].astype(int) + classes.colours[train]) // 2
                assert (compose[y, x] == half).all()
    diff, compose = read(tmp_path / "out/diff/a_diff.png"), read(tmp_path / "out/compose/a_compose.png")
    wrong = (results[0].predicted != results[0].label) & (results[0].label != VOID)
    assert 0 < wrong.sum() < wrong.size and (results[0].label == VOID).any()
    assert (diff[wrong] == compose[wrong]).all() and (diff[~wrong] == 255).all()


def test_without_labels_there_is_no_table(street, tmp_path):
    confusion = write_evaluation(tmp_path / "test", [frame("a", 1, labelled=False)], *street)
    assert not confusion.any() and not (tmp_path / "test/metrics.csv").exists()
    assert list((tmp_path / "test/diff").iterdir()) == []


def test_a_void_id_of_the_data_s_own(street, tmp_path):
    result = frame("a", 1)
    own = Result(
        "a", result.picture, result.predicted, np.where(result.label == VOID, 19, result.label).astype(np.uint8)
    )
    a, b = (write_evaluation(tmp_path / "out", [r], *street, void=v) for r, v in ((result, VOID), (own, 19)))
    assert (a == b).all()


def test_a_failure_leaves_what_was_there(street, tmp_path):
    write_evaluation(tmp_path / "out", [frame("a", 1)], *street)
    with pytest.raises(UserError, match="b: predictions"):
        write_evaluation(tmp_path / "out", [frame("a", 2), frame("b", 2, classes=40, labelled=False)], *street)
    assert (read(tmp_path / "out/rgb/a_color.png") == street[0].paint(frame("a", 1).predicted)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# ---- zips


def label_picture(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), ids)


def test_a_zip_for_cityscapes(tmp_path):
    ids = np.full((1024, 2048), 7, np.uint8)
    ids[:500] = 33
    for name in ("ulm_000001_000019", "berlin_000000_000019"):
        label_picture(tmp_path / f"pred/{name}.png", ids)
    assert write_zip(tmp_path / "a.zip", tmp_path / "pred", "cityscapes") == 2
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["berlin_000000_000019.png", "ulm_000001_000019.png"]
        data = np.frombuffer(archive.read("ulm_000001_000019.png"), np.uint8)
        assert (cv2.imdecode(data, cv2.IMREAD_UNCHANGED) == ids).all()
    label_picture(tmp_path / "pred/ulm_000001_000019.png", ids)  # written anew, at another time
    write_zip(tmp_path / "b.zip", tmp_path / "pred", "cityscapes")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_zips_for_kitti_and_camvid(street, tmp_path):
    """KITTI's images have sizes of their own, and keep them."""
    results = [frame("000000_10", 1, size=(37, 124)), frame("000001_10", 2, size=(37, 122), labelled=False)]
    write_evaluation(tmp_path / "kitti", results, *street)
    write_zip(tmp_path / "kitti.zip", tmp_path / "kitti/pred", "kitti")
    with zipfile.ZipFile(tmp_path / "kitti.zip") as archive:
        assert archive.namelist() == ["semantic/000000_10.png", "semantic/000001_10.png"]
        for name, result in zip(archive.namelist(), results, strict=True):
            found = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            assert (found == np.array(street[1])[result.predicted]).all()
    classes, code = read_class_file(PRESETS / "camvid11_segnet.yaml")
    names = ["0001TP_008550", "0006R0_f00930", "Seq05VD_f00000"]
    ids = submission_ids(classes, code)
    write_evaluation(tmp_path / "camvid", [frame(n, 1, classes=11) for n in names], classes, ids)
    assert write_zip(tmp_path / "camvid.zip", tmp_path / "camvid/pred", "camvid") == 3


def test_every_file_that_would_be_refused_is_told(tmp_path):
    good, pred = np.full((1024, 2048), 7, np.uint8), tmp_path / "pred"
    label_picture(pred / "ulm_000000_000019.png", good)
    label_picture(pred / "ulm_000001_000019.png", good[:512])
    label_picture(pred / "ulm_000002_000019.png", good - 7)
    label_picture(pred / "ulm_000003_000019.png", np.zeros((1024, 2048, 3), np.uint8))
    label_picture(pred / "frame4.png", good)
    (pred / "ulm_000005_000019.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        write_zip(tmp_path / "a.zip", pred, "cityscapes")
    lines = str(error.value).splitlines()
    for line, message in zip(
        lines,
        [
            "frame4.png: the name is not as cityscapes has it",
            "ulm_000001_000019.png: 2048x512 pixels, but cityscapes takes 2048x1024",
            "ulm_000002_000019.png: id 0 is none of cityscapes's",
            "ulm_000003_000019.png: not a picture of 8 bits and one channel",
            "ulm_000005_000019.png: not a picture of 8 bits and one channel",
        ],
        strict=True,
    ):
        assert message in line
    assert not (tmp_path / "a.zip").exists()


# ---- bad input


def evaluation(tmp_path, result, classes=3, ids=(0, 1, 2), **options):
    colours = np.zeros((classes, 3), np.uint8)
    return write_evaluation(tmp_path / "out", result, Classes(tuple("abcdefgh"[:classes]), colours), ids, **options)


SMALL = frame("x", 1, classes=3)


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([SMALL], {"void": 2}, r"void id 2 is not in 3\.\.255"),
        ([SMALL], {"void": 256}, r"void id 256 is not in 3\.\.255"),
        ([SMALL], {"ids": (0, 1)}, r"2 ids \[0, 1\] for 3 classes"),
        ([SMALL], {"ids": (0, 1, 256)}, "for 3 classes; give each one from 0 to 255"),
        ([], {}, "not one frame to write"),
        ([SMALL, SMALL], {}, "frame 'x' comes twice"),
        ([Result("a/b", SMALL.picture, SMALL.predicted)], {}, "frame 'a/b' comes twice or is no file name"),
        ([Result("x", SMALL.picture, SMALL.predicted, SMALL.label[:5])], {}, "x: a label of 30x5 for a prediction"),
        ([Result("x", SMALL.picture[:, :9], SMALL.predicted)], {}, "x: a picture of 9x20 for a prediction of 30x20"),
        ([Result("x", SMALL.picture, SMALL.predicted + 2)], {}, r"x: predictions \[3, 4\] are no classes"),
        ([Result("x", SMALL.picture, SMALL.predicted, SMALL.predicted + 9)], {}, "x: labels .* are neither"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(tmp_path, results, options, message):
    with pytest.raises(UserError, match=message) as error:
        evaluation(tmp_path, results, **options)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_unknown_classes_protocols_and_folders_are_told(tmp_path):
    with pytest.raises(UserError, match="the classes file lists colours"):
        submission_ids(*read_class_file(PRESETS / "camvid11_original.yaml"))
    classes, code = read_class_file(PRESETS / "camvid11_segnet.yaml")
    more = Classes((*classes.names, "tram"), np.zeros((12, 3), np.uint8))
    with pytest.raises(UserError, match="unknown class 'tram'"):
        submission_ids(more, code)
    with pytest.raises(UserError, match="no protocol 'pascal'; take one of cityscapes, kitti, camvid"):
        write_zip(tmp_path / "a.zip", tmp_path, "pascal")
    with pytest.raises(UserError, match=r"no label pictures \(\.png\) in "):
        write_zip(tmp_path / "a.zip", tmp_path / "none", "kitti")
