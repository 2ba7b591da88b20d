"""Confusion matrices and scores against the reference, the Cityscapes evaluator and a plain loop."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import trainId2label

from helpers import rand
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores

CITYSCAPES = [trainId2label[i].name for i in range(19)]
TO_LABEL_ID = np.array([trainId2label[i].id if i < 19 else 0 for i in range(256)], dtype=np.uint8)


def plain_confusion(prediction, label, classes, void=255):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != void:
            matrix[t, p] += 1
    return matrix


def cityscapes_scores(pairs, folder):
    """Label-id confusion matrix, {class: IoU} and mean of the official evaluator (its pure Python path)."""
    args = cityscapes.args
    args.evalInstLevelScore = args.evalPixelAccuracy = False
    args.evalLabels = []
    matrix = cityscapes.generateMatrix(args)
    for i, (prediction, label) in enumerate(pairs):
        files = [str(folder / f"{i}_{name}.png") for name in ("prediction", "gtFine_labelIds")]
        for file, ids in zip(files, (prediction, label), strict=True):
            cv2.imwrite(file, TO_LABEL_ID[ids])
        cityscapes.evaluatePair(*files, matrix, {}, {}, args)
    iou = {trainId2label[i].name: cityscapes.getIouScoreForLabel(trainId2label[i].id, matrix, args) for i in range(19)}
    return matrix, iou, cityscapes.getScoreAverage(iou, args)


def assert_agrees_with_cityscapes(pairs, folder):
    matrix, iou, mean = cityscapes_scores(pairs, folder)
    ours = sum(confusion_matrix(prediction, label, 19) for prediction, label in pairs)
    ids = TO_LABEL_ID[:19].astype(int)
    assert (ours == matrix[np.ix_(ids, ids)].astype(np.int64)).all()
    result = scores(ours, CITYSCAPES)
    for name in CITYSCAPES:
        want = None if math.isnan(iou[name]) else iou[name]
        assert result["iou"][name] == want  # to the last bit
    assert result["miou"] == mean
    return result


def random_pair(rng, shape, classes, correct=0.6, void=0.1):
    label = rng.integers(0, classes, shape).astype(np.uint8)
    noise = rng.integers(0, classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < correct, label, noise)
    label[rng.random(shape) < void] = 255
    return prediction, label


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_cityscapes_evaluator(seed, tmp_path):
    rng = np.random.default_rng(seed)
    assert_agrees_with_cityscapes([random_pair(rng, (37, 53), 19) for _ in range(4)], tmp_path)


def test_agrees_with_the_cityscapes_evaluator_where_classes_are_absent(tmp_path):
    rng = np.random.default_rng(9)
    prediction, label = random_pair(rng, (40, 40), 9)
    prediction[:3, :3] = 12  # predicted only, on pixels that may be void
    label[:3, 0] = 2
    label[30:, 30:] = 255
    prediction[30:, 30:] = 15  # predicted only where the label is void: still absent
    result = assert_agrees_with_cityscapes([(prediction, label)], tmp_path)
    assert result["iou"][CITYSCAPES[12]] == 0
    assert result["iou"][CITYSCAPES[15]] is None and result["iou"][CITYSCAPES[18]] is None


def test_agrees_with_the_cityscapes_evaluator_on_real_labels(shared, tmp_path):
    rng = np.random.default_rng(0)
    files = sorted((shared / "data" / "camvid" / "valannot").glob("*.png"))[::25]
    pairs = []
    for file in files:
        camvid = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)  # 0..10, 11 = void
        assert camvid is not None and camvid.max() <= 11
        label = np.where(camvid == 11, 255, camvid).astype(np.uint8)
        shifted = np.roll(np.where(camvid == 11, 7, camvid), (5, -9), (0, 1))
        noise = rng.integers(0, 19, camvid.shape)
        pairs.append((np.where(rng.random(camvid.shape) < 0.9, shifted, noise).astype(np.uint8), label))
    result = assert_agrees_with_cityscapes(pairs, tmp_path)
    assert 0.1 < result["miou"] < 0.9


def test_scores_as_the_reference(data_dir):
    want = json.loads((data_dir / "three_ways_depth_losses.json").read_text())["runningScore"]

    def randint(low, high, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, high, (3, 16, 24), generator=generator)

    label = randint(0, 12, 70)
    label[0, :4] = 250
    prediction = torch.where(rand((3, 16, 24), 72) < 0.6, label.clamp(max=18), randint(0, 15, 71))
    matrix = confusion_matrix(prediction.numpy(), label.numpy(), 19, void=250)
    result = scores(matrix, CITYSCAPES)
    assert list(result["iou"].values()) == [v if v is None else pytest.approx(v, 1e-12) for v in want["IoU"]]
    assert result["miou"] == pytest.approx(want["Mean IoU"], rel=1e-12)
    assert result["accuracy"] == pytest.approx(want["Overall Acc"], rel=1e-12)
    assert result["mean_class_accuracy"] == pytest.approx(want["Mean Acc"], rel=1e-12)
    assert result["frequency_weighted_iou"] == pytest.approx(want["FreqW Acc"], rel=1e-12)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_agrees_with_a_plain_loop(dtype):
    rng = np.random.default_rng(3)
    prediction, label = random_pair(rng, (2, 30, 41), 11)
    matrix = confusion_matrix(prediction.astype(dtype), label.astype(dtype), 11)
    assert matrix.dtype == np.int64 and (matrix == plain_confusion(prediction, label, 11)).all()
    halves = [confusion_matrix(prediction[i], label[i], 11) for i in range(2)]
    assert (sum(halves) == matrix).all()
    many = np.full((1, 3), 254, dtype=np.uint8)  # the largest index that 16 bits must hold
    assert confusion_matrix(many, many, 255)[254, 254] == 3


def test_bad_input_is_refused():
    ok = np.zeros((2, 2), dtype=np.uint8)
    for prediction, label, message in [
        (ok + 3, ok, r"predictions \[3\] are no classes"),
        (ok.astype(int) - 1, ok, r"predictions \[-1\] are no classes"),
        (ok, ok + 11, r"labels \[11\] are neither classes"),
        (ok, ok.astype(int) - 1, "labels run from -1 to -1"),
        (ok, ok[:1], "differ in shape"),
    ]:
        with pytest.raises(UserError, match=message):
            confusion_matrix(prediction, label, 3)
    with pytest.raises(UserError, match="not one labelled pixel"):
        scores(confusion_matrix(ok, ok + 255, 3), "abc")
    assert scores(confusion_matrix(ok, ok, 3), "abc")["miou"] == 1
    assert (confusion_matrix(ok[:0], ok[:0], 3) == 0).all()
