"""ResNets of torchvision and SE-ResNeXts (32x4d) of timm as trunks of stride 8 or 16.

Specification nvidia_segmentation.md, section 6. Both libraries give the plain networks; dilating them is done here,
because torchvision leaves the first block of a dilated layer at the dilation of the layer before, where the published
networks dilate every 3x3 of the layer.
"""

from torch import nn

from semivid.models.trunks.trunk import Trunk

SKIPS = {"m1": ("layer1", 256), "m2": ("layer2", 512)}
# Dilation of layer3 and layer4 by output stride; None: as it was.
DILATIONS = {8: (2, 4), 16: (None, 2)}


def resnet(name: str, output_stride: int, skip: str) -> Trunk:
    """``resnet50`` or ``resnet101`` of torchvision: its stem is ``layer0``, its maps have 256 to 2048 channels.

    Args:
        name: torchvision's name.
        output_stride: 8 (layer3 and layer4 dilated, variant D) or 16 (layer4, variant D16).
        skip: ``m1``, the map of layer1 (stride 4, 256 channels), or ``m2``, that of layer2 (stride 8, 512).
    """
    import torchvision.models as models

    net = getattr(models, name)(weights=None)
    return _trunk({"layer0": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)}, net, output_stride, skip)


def seresnext(name: str, output_stride: int, skip: str) -> Trunk:
    """``seresnext50`` or ``seresnext101``: timm's ``legacy_*_32x4d``, with the names and the stem of Cadene's weights.

    That stem's pooling is 3x3 with stride 2, ``ceil_mode`` and no padding; timm's newer SE-ResNeXts have another.

    Args:
        name: without timm's ``legacy_`` and ``_32x4d``.
        output_stride, skip: see :func:`resnet`.
    """
    import timm

    net = timm.create_model(f"legacy_{name}_32x4d", pretrained=False)
    return _trunk({"layer0": net.layer0, "pool0": net.pool0}, net, output_stride, skip)


def _trunk(stem: dict[str, nn.Module], net: nn.Module, output_stride: int, skip: str) -> Trunk:
    for layer, dilation in zip((net.layer3, net.layer4), DILATIONS[output_stride], strict=True):
        if dilation:
            _dilate(layer, dilation)
    fine, channels = SKIPS[skip]
    return Trunk(stem | {f"layer{n}": getattr(net, f"layer{n}") for n in (1, 2, 3, 4)}, fine, channels, 2048)


def _dilate(layer: nn.Module, dilation: int) -> None:
    """No stride in `layer`, the 1x1 of its shortcut included, and dilation in every 3x3."""
    for conv in layer.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
