"""Losses of the multi-task network (Three Ways, specification three_ways.md section 10)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from semivid.data.classes import VOID
from semivid.depth.losses import feature_distance, monodepth_loss
from semivid.geometry.camera import MAX_DEPTH, MIN_DEPTH
from semivid.models.multitask import Outputs
from semivid.training.losses import cross_entropy


def segmentation_loss(logits: Tensor, side_logits: Tensor, labels: Tensor, ignore: int = VOID) -> Tensor:
    """Half the sum of the two classifiers' cross entropies, each the mean over the labelled pixels.

    Args:
        logits: ``(B, C, H, W)``.
        side_logits: ``(B, C, h, w)``, resized bilinearly to the labels with align_corners **True** (every resize
            inside of the networks has False; section 8).
        labels: ``(B, H, W)``, class numbers or `ignore`.
        ignore: the label of pixels without one.

    Returns:
        A scalar, 0 without a labelled pixel.
    """
    return (cross_entropy(logits, labels, ignore=ignore) + cross_entropy(side_logits, labels, ignore=ignore)) / 2


def multitask_losses(
    output: Outputs,
    frames: Mapping[int, Tensor] | None = None,
    k: Tensor | None = None,
    labels: Tensor | None = None,
    reference: Tensor | None = None,
    *,
    depth_weight: float = 1.0,
    segmentation_weight: float = 1.0,
    feature_weight: float = 0.0,
    automask: bool = True,
    generator: torch.Generator | None = None,
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
) -> dict[str, Tensor]:
    """The weighted losses of one clean pass, by name, each with its gradient.

    A labelled batch has all of them; the clean pass of an unlabelled batch has no `labels`. The losses are apart so
    that each can be logged and stepped on by itself; the sum of their gradients is that of their sum.

    Args:
        output: of the pass, with the transforms to all neighbours where `frames` are given.
        frames: offset -> ``(B, 3, H, W)`` RGB in [0, 1] without colour augmentation, 0 the frame itself; None for no
            depth loss.
        k: intrinsics in pixels of the frames, ``(3, 3)`` or with a leading batch.
        labels: ``(B, H, W)``, 255 = void; None for no segmentation loss.
        reference: last map of a frozen ImageNet encoder on the same input, for the feature distance; None without.
        depth_weight, segmentation_weight, feature_weight: what the losses are multiplied by; published 1, 1 and 0
            (1e-2 in depth pretraining). A loss of weight 0 is left out.
        automask, generator, min_depth, max_depth: see :func:`semivid.depth.losses.monodepth_loss`.

    Returns:
        Those of ``depth``, ``segmentation`` and ``feature_distance`` that can be computed; scalars.
    """
    losses = {}
    if frames is not None and depth_weight:
        sources = {offset: frame for offset, frame in frames.items() if offset != 0}
        result = monodepth_loss(
            output.disp, frames[0], sources, output.transforms, k, automask, generator, min_depth, max_depth
        )
        losses["depth"] = depth_weight * result["loss"]
    if labels is not None and segmentation_weight:
        losses["segmentation"] = segmentation_weight * segmentation_loss(output.logits, output.side_logits, labels)
    if reference is not None and feature_weight:
        losses["feature_distance"] = feature_weight * feature_distance(output.encoder[-1], reference)
    return losses
