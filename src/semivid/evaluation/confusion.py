"""Confusion matrices and the scores made from them.

The rules are those of the Cityscapes evaluator and of Three Ways: void pixels do not count; a class that is
only predicted has IoU 0 and enters the mean; a class that is neither in the truth nor predicted does not.
"""

from collections.abc import Sequence

import numpy as np

from semivid.errors import UserError


def confusion_matrix(prediction: np.ndarray, label: np.ndarray, classes: int, void: int = 255) -> np.ndarray:
    """Count pixels by true and predicted class; matrices of several batches add up.

    Args:
        prediction: integer array of any shape (an image or a batch), values 0 .. classes - 1.
        label: integer array of the same shape, train ids 0 .. classes - 1 or `void`.
        classes: number of classes C, at most 255.
        void: label value of pixels that do not count, not below C.

    Returns:
        int64 array (C, C), rows = true class, columns = predicted class.

    Raises:
        UserError: the shapes differ, a prediction is not a class, or a label is neither a class nor void.
    """
    if prediction.shape != label.shape:
        raise UserError(
            f"prediction {prediction.shape} and label {label.shape} differ in shape: evaluate at the labels' size"
        )
    if prediction.size == 0:
        return np.zeros((classes, classes), dtype=np.int64)
    if prediction.min() < 0 or prediction.max() >= classes:
        wrong = np.unique(prediction[(prediction < 0) | (prediction >= classes)])
        raise UserError(
            f"predictions {wrong[:5].tolist()} are no classes: values from 0 to {classes - 1} are expected; "
            "was the network trained for other classes?"
        )
    if label.dtype != np.uint8 and (label.min() < 0 or label.max() > 255):
        raise UserError(f"labels run from {label.min()} to {label.max()}: train ids and void lie in 0..255")
    # One row for each of the 256 values a label can take: void and wrong labels are told apart after
    # counting, which is faster than masking every pixel first. Every index fits: 255 * 255 + 254 < 2**16.
    index = label.astype(np.uint16) * np.uint16(classes) + prediction.astype(np.uint16)
    counts = np.bincount(index.ravel(), minlength=256 * classes).reshape(256, classes)
    rows = counts.sum(axis=1)
    wrong = [value for value in np.flatnonzero(rows).tolist() if value >= classes and value != void]
    if wrong:
        raise UserError(
            f"labels {wrong[:5]} are neither classes (0 to {classes - 1}) nor void ({void}): "
            "do the masks and classes.json belong together?"
        )
    return counts[:classes].astype(np.int64)


def scores(confusion: np.ndarray, names: Sequence[str]) -> dict:
    """Scores of a confusion matrix, ready for JSON.

    Args:
        confusion: integer array (C, C), rows = true class.
        names: the C classes' names.

    Returns:
        Fractions in [0, 1]:
        ``iou``: {name: diagonal / (row + column - diagonal), or None for a class absent from both};
        ``miou``: mean of the IoUs that are not None;
        ``accuracy``: diagonal sum / all pixels;
        ``mean_class_accuracy``: mean over the classes with true pixels of diagonal / row;
        ``frequency_weighted_iou``: sum over these classes of row share * IoU.

    Raises:
        UserError: the matrix is empty (not one labelled pixel).
    """
    if confusion.shape != (len(names), len(names)):
        raise ValueError(f"a matrix {confusion.shape} does not belong to {len(names)} classes")
    diagonal = np.diag(confusion).tolist()
    rows, columns = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    total = sum(rows)
    if total == 0:
        raise UserError("not one labelled pixel to evaluate on: are there masks for the evaluated frames?")
    unions = [row + column - hit for row, column, hit in zip(rows, columns, diagonal, strict=True)]
    iou = [hit / union if union else None for hit, union in zip(diagonal, unions, strict=True)]
    recalls = [hit / row for hit, row in zip(diagonal, rows, strict=True) if row]
    return {
        "miou": _mean([value for value in iou if value is not None]),
        "accuracy": sum(diagonal) / total,
        "mean_class_accuracy": _mean(recalls),
        "frequency_weighted_iou": sum(
            row / total * value for row, value in zip(rows, iou, strict=True) if value is not None
        ),
        "iou": dict(zip(names, iou, strict=True)),
    }


def _mean(values: list[float]) -> float:
    # Added up in class order, as the Cityscapes evaluator does, so that both agree to the last bit.
    return sum(values) / len(values)
