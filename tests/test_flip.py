"""Flip averaging: of logits, over the image and its mirror image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import rand
from semivid.data.index import Frame
from semivid.evaluation.inference import flip_averaged, segment, split_confusion
from semivid.training.runtime import Runtime


@pytest.fixture
def network():
    """Convolutions of random weights, which are not mirror-symmetric."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    ).requires_grad_(False)


def mirrored(array):
    """By NumPy, column by column from the right."""
    return torch.from_numpy(np.ascontiguousarray(array.numpy()[:, :, :, ::-1]))


def test_mean_of_both_logits(network):
    images = rand((2, 3, 7, 9), 0)
    expected = 0.5 * network(images) + 0.5 * mirrored(network(mirrored(images)))
    result = flip_averaged(network)(images)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert (result - network(images)).abs().max() > 0.05


def test_the_mirror_image_gets_the_mirrored_answer(network):
    """Which is what averaging is for, and what the network alone does not give."""
    images, predict = rand((2, 3, 7, 9), 0), flip_averaged(network)
    torch.testing.assert_close(predict(mirrored(images)), mirrored(predict(images)), rtol=1e-6, atol=1e-6)
    assert (network(mirrored(images)) - mirrored(network(images))).abs().max() > 0.05


def test_logits_and_not_probabilities():
    """Two views that agree on their second choice: it wins the mean of logits, not that of probabilities."""
    sure, contrary = torch.tensor([10.0, 0.0, 9.0]), torch.tensor([0.0, 6.0, 5.5])

    def predict(images):
        first = (images[:, :1, :, :1] > 0.5).float()
        logits = first * sure.view(1, 3, 1, 1) + (1 - first) * contrary.view(1, 3, 1, 1)
        return logits.expand(-1, -1, 1, 2)

    image = torch.zeros(1, 3, 1, 2)
    image[..., 0] = 1
    logits = flip_averaged(predict)(image)
    assert logits.argmax(1).unique().tolist() == [2]
    both = (predict(image).softmax(1) + predict(image.flip(-1)).softmax(1)) / 2
    assert both.argmax(1).unique().tolist() == [0]


class Store:
    """Random frames in memory; a frame's position is its seed."""

    def image(self, frame):
        return (255 * rand((6, 8, 3), frame.position)).numpy().astype(np.uint8)

    def label(self, frame):
        return (4 * rand((6, 8), 50 + frame.position)).numpy().astype(np.uint8)


def test_evaluation_with_flips(network):
    """Classes and confusion matrix of a split are those of the averaged logits."""
    frames = [Frame(f"f{n}", "val", "s", n, Path("x"), "", Path("y")) for n in range(3)]
    store, runtime = Store(), Runtime(1, device="cpu")
    predict = flip_averaged(network)
    counts = np.zeros((4, 4), np.int64)
    changed = 0
    for frame, classes in segment(predict, frames, store, 2, runtime):
        image = torch.from_numpy(store.image(frame)).permute(2, 0, 1)[None] / 255
        logits = network(image)
        expected = (logits + mirrored(network(mirrored(image)))).argmax(1)[0].numpy()
        np.testing.assert_array_equal(classes, expected)
        changed += (logits.argmax(1)[0].numpy() != expected).sum()
        np.add.at(counts, (store.label(frame), expected), 1)
    assert changed > 0
    np.testing.assert_array_equal(split_confusion(predict, frames, store, 4, 2, runtime), counts)
