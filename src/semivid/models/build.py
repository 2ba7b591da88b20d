"""The segmentation network that params.yaml asks for, whatever its architecture."""

from __future__ import annotations

import importlib

from torch import nn

from semivid.pipeline.params import EncoderDecoder, FCN8s


def build_network(num_classes: int, options: EncoderDecoder | FCN8s, trained: bool = False) -> nn.Module:
    """A network of the file in semivid.models that `options.architecture` names.

    It maps RGB frames float (B, 3, H, W) in [0, 1] to class logits float32 (B, num_classes, H, W), and has
    `parameter_groups(encoder_lr, lr)`. trained: its weights are about to be loaded, so leave out `options.weights`.
    Raises UserError if the weights file is absent or does not fit.
    """
    arguments = options.arguments() | ({"weights": "none"} if trained else {})
    return importlib.import_module(f"semivid.models.{options.architecture}").build(num_classes, **arguments)
