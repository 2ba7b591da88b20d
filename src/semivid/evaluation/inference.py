"""Whole frames through a network in order: batches, and the confusion matrix of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from semivid.data.index import Frame
from semivid.data.store import FrameStore
from semivid.evaluation.confusion import confusion_matrix
from semivid.training.runtime import Runtime, as_float


def whole_frames(
    frames: Sequence[Frame], store: FrameStore, batch_size: int, runtime: Runtime
) -> Iterator[tuple[list[Frame], torch.Tensor]]:
    """(frames, images float (B, 3, H, W) in [0, 1] on the device) in order, without crop or flip."""
    for start in range(0, len(frames), batch_size):
        chunk = list(frames[start : start + batch_size])
        images = torch.stack([torch.from_numpy(store.image(f).transpose(2, 0, 1).copy()) for f in chunk])
        yield chunk, as_float(images.to(runtime.device))


def flip_averaged(predict: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A `predict` that averages the logits of the images and of their mirror images, mirrored back.

    Logits, not probabilities, as flow-consistency's ``--eval_flip`` does (flow_consistency.md, section 10).
    """

    def averaged(images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W)."""
        return (predict(images) + predict(images.flip(-1)).flip(-1)) / 2

    return averaged


def segment(
    predict: Callable[[torch.Tensor], torch.Tensor],
    frames: Sequence[Frame],
    store: FrameStore,
    batch_size: int,
    runtime: Runtime,
) -> Iterator[tuple[Frame, np.ndarray]]:
    """(frame, predicted train ids uint8 (H, W)) of every frame; `predict` gives logits (B, C, H, W)."""
    with torch.no_grad():
        for chunk, images in whole_frames(frames, store, batch_size, runtime):
            classes = predict(images).argmax(1).to(torch.uint8).cpu().numpy()
            yield from zip(chunk, classes, strict=True)


def split_confusion(
    predict: Callable[[torch.Tensor], torch.Tensor],
    frames: Sequence[Frame],
    store: FrameStore,
    num_classes: int,
    batch_size: int,
    runtime: Runtime,
) -> np.ndarray:
    """Confusion matrix int64 (C, C), rows = ground truth, over all `frames` at the prepared size (section 13)."""
    total = np.zeros((num_classes, num_classes), np.int64)
    for frame, predicted in segment(predict, frames, store, batch_size, runtime):
        total += confusion_matrix(predicted, store.label(frame), num_classes)
    return total
