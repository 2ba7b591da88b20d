"""Start a network from self-supervised depth (Three Ways, section 3.2; specification three_ways.md section 12)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from semivid.errors import UserError
from semivid.models.checkpoints import load_strictly, read_parts
from semivid.models.encoder_decoder import SegmentationNet
from semivid.models.multitask import MultitaskNet


def transfer_depth(
    network: nn.Module, source: Path | str, *, encoder: bool = True, decoder: bool = True, pose: bool = True
) -> list[str]:
    """Fill a network's body with the weights of a depth model, in place.

    All tensors of a part are copied, its batch-norm statistics and disparity heads included. What a depth model does
    not have (projections, classifiers, gates) stays as it is: random.

    Args:
        network: a :class:`SegmentationNet`, whose U-Net takes the depth decoder, or a :class:`MultitaskNet`, of which
            both decoders take it.
        source: a folder or zip of ``encoder``, ``depth`` and, for a multi-task network, ``pose_encoder`` and
            ``pose`` as ``.pth`` (published) or ``.safetensors`` (``models/depth_finetune``), or a whole model's file
            (``best_model.pkl``). "Without feature distance" is another source: the published ``.._fd0_..``, or one
            trained with ``depth_finetune.feature_distance: 0``.
        encoder, decoder: what to copy.
        pose: copy the pose network too, where the network has one.

    Returns:
        The names of the copied parts: of ``encoder``, ``depth``, ``pose_encoder``, ``pose``.

    Raises:
        UserError: the network has another layout, nothing is to be copied, the source lacks a part or cannot be
            read, or a part has other sizes.
    """
    targets = _targets(network)
    wanted = {"encoder": encoder, "depth": decoder, "pose_encoder": pose, "pose": pose}
    names = [name for name in targets if wanted[name]]
    if not names:
        raise UserError(f"{source}: nothing to transfer; set encoder or decoder to true, or leave the transfer out")
    for name, where, state in read_parts(source, names):
        for module in targets[name]:
            load_strictly(module, state, where)
    return names


def _targets(network: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules that take each part of a depth model."""
    if isinstance(network, SegmentationNet):
        return {"encoder": [network.encoder], "depth": [network.segmentation.unet_dec]}
    if isinstance(network, MultitaskNet):
        targets = {
            "encoder": [network.encoder],
            "depth": [network.mtl_decoder.depth_dec, network.mtl_decoder.seg_dec],
        }
        if network.pose_net is not None:
            targets |= {"pose_encoder": [network.pose_net.pose_encoder], "pose": [network.pose_net.pose]}
        return targets
    raise UserError(
        f"depth weights do not fit a {type(network).__name__}: set network.architecture to "
        "encoder_decoder, or leave the transfer out"
    )
