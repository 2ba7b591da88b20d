"""Image encoders: five feature maps of growing stride from one or several RGB frames.

ResNets come from torchvision, ``tf_efficientnet_lite0`` from timm; both libraries are imported only when an
encoder is built. Inputs are RGB in [0, 1]; each encoder normalises as its ImageNet weights expect, so that
no other code has to know. State-dict keys start with ``encoder.`` as in the published depth models.
"""

from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.precision import keep_depthwise_float32_on_cpu

ENCODERS = ("resnet18", "resnet50", "resnet101", "tf_efficientnet_lite0")


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without its pooling and classifier (Three Ways, section 3.1; monodepth2).

    Args:
        name: ``resnet18``, ``resnet50`` or ``resnet101``.
        dilated: layer 4 keeps stride 16 by dilation (bottleneck ResNets only).
        in_frames: number of RGB frames concatenated on the channels (2 for pose networks).

    Attributes:
        channels: channels of the five maps.
        strides: their strides, (2, 4, 8, 16, 32) or (2, 4, 8, 16, 16) if dilated.

    Raises:
        UserError: ``dilated`` with ``resnet18``, whose blocks have no dilation.
    """

    def __init__(self, name: str, dilated: bool, in_frames: int = 1):
        super().__init__()
        if dilated and name == "resnet18":
            raise UserError("encoder resnet18 cannot be dilated: set dilated to false or take resnet50")
        import torchvision.models as models

        net = getattr(models, name)(weights=None, replace_stride_with_dilation=[False, False, dilated])
        net.avgpool = nn.Identity()
        net.fc = nn.Identity()
        if in_frames > 1:
            net.conv1 = nn.Conv2d(3 * in_frames, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.name = name
        self.encoder = net
        self.channels = (64, 64, 128, 256, 512) if name == "resnet18" else (64, 256, 512, 1024, 2048)
        self.strides = (2, 4, 8, 16, 16 if dilated else 32)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Map ``(B, 3 * in_frames, H, W)`` in [0, 1] to five maps; sizes are H and W / stride, rounded up."""
        net = self.encoder
        x = (frames - 0.45) / 0.225
        maps = [net.relu(net.bn1(net.conv1(x)))]
        maps.append(net.layer1(net.maxpool(maps[-1])))
        for layer in (net.layer2, net.layer3, net.layer4):
            maps.append(layer(maps[-1]))
        return maps


class LiteEncoder(nn.Module):
    """timm's ``tf_efficientnet_lite0`` up to its last block: small and fast on a CPU.

    Args:
        dilated: the last stage keeps stride 16 by dilation.
        in_frames: number of RGB frames concatenated on the channels.

    Attributes:
        channels: channels of the five maps, (16, 24, 40, 112, 320).
        strides: their strides, (2, 4, 8, 16, 32) or (2, 4, 8, 16, 16) if dilated.
    """

    def __init__(self, dilated: bool, in_frames: int = 1):
        super().__init__()
        import timm

        self.name = "tf_efficientnet_lite0"
        self.encoder = timm.create_model(
            self.name,
            pretrained=False,
            features_only=True,
            output_stride=16 if dilated else 32,
            in_chans=3 * in_frames,
        )
        keep_depthwise_float32_on_cpu(self.encoder)
        self.channels = tuple(self.encoder.feature_info.channels())
        self.strides = tuple(self.encoder.feature_info.reduction())

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Map ``(B, 3 * in_frames, H, W)`` in [0, 1] to five maps; sizes are H and W / stride, rounded up."""
        # The published weights take (v - 127) / 128 of pixel values v in 0..255.
        return self.encoder(frames * (255 / 128) - 127 / 128)


def build_encoder(name: str, dilated: bool, in_frames: int = 1) -> nn.Module:
    """An encoder with random weights (see :func:`semivid.models.weights.load_encoder_weights`).

    Args:
        name: one of :data:`ENCODERS`.
        dilated: keep the last map at stride 16.
        in_frames: RGB frames per sample, concatenated on the channels.

    Raises:
        UserError: the name is unknown, or that encoder cannot be dilated.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}: take one of {', '.join(ENCODERS)}")
    if name == "tf_efficientnet_lite0":
        return LiteEncoder(dilated, in_frames)
    return ResNetEncoder(name, dilated, in_frames)
