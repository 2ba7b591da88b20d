"""A trained network for pictures of any size: at the training size through the network, results at their own size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from semivid.data.classes import Classes
from semivid.data.prepare import resize_frame
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.evaluation.inference import flip_averaged
from semivid.models.build import build_network
from semivid.models.checkpoints import describe, load_parts, load_strictly, read_state
from semivid.pipeline.params import Params
from semivid.training.runtime import Runtime, as_float

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segmenter:
    """Labels, and where there is a depth network disparities, of pictures.

    logits: RGB float (B, 3, h, w) in [0, 1] to float32 (B, C, h, w). disparity: the same to float32 (B, h, w), large =
    near; None without depth. depth_source: where that is from. size: (width, height) of the training frames, at which
    both networks work.
    """

    logits: Function
    disparity: Function | None
    depth_source: str | None
    size: tuple[int, int]
    runtime: Runtime

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(train ids uint8 (H, W), disparity float32 (H, W) or None) of each picture uint8 (H, W, 3), at its size.

        Pictures are resized as prepared frames are (Pillow LANCZOS, whatever their shape); logits and disparity are
        resized back bilinearly, and the class is chosen after that: edges stay smooth where pictures are larger.
        """
        small = [np.asarray(resize_frame(Image.fromarray(p), self.size)) for p in pictures]
        images = torch.stack([torch.from_numpy(s.transpose(2, 0, 1).copy()) for s in small])
        images = as_float(images.to(self.runtime.device))
        logits = self.logits(images)
        labels = [labels_at(maps, p.shape[:2]) for maps, p in zip(logits, pictures, strict=True)]
        if self.disparity is None:
            return [(found, None) for found in labels]
        near = self.disparity(images).cpu().numpy()
        near = [cv2.resize(n, p.shape[1::-1]) for n, p in zip(near, pictures, strict=True)]  # bilinear
        return list(zip(labels, near, strict=True))


def labels_at(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Train ids uint8 (H, W) of logits float (C, h, w), resized bilinearly (align_corners False) to `size` (H, W).

    Class by class: all logits of a picture from a camera at once would be gigabytes.
    """
    if logits.shape[1:] == size:
        return logits.argmax(0).to(torch.uint8).cpu().numpy()
    best = torch.full(size, -torch.inf, device=logits.device)
    labels = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for train, plane in enumerate(logits):
        plane = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        better = plane > best
        best = torch.where(better, plane, best)
        labels[better] = train
    return labels.cpu().numpy()


def open_segmenter(
    weights: Path,
    params: Params,
    classes: Classes,
    flip: bool = False,
    depth: Path | None = None,
    otherwise: Path | None = None,
) -> Segmenter:
    """Networks by the blocks `network`, `depth_network`, `frames`, `evaluate` and `train.precision` of `params`.

    weights: an own or imported file of a segmentation network or of a whole Three Ways model. flip: logits averaged
    with those of the mirrored picture. depth: a folder, zip or whole model with encoder and depth decoder; None: the
    network's own depth (multi-task), or the depth model `otherwise` where it has none. Raises UserError for files that
    do not fit.
    """
    runtime = Runtime(params.evaluate.threads, params.train.precision)
    network = open_network(weights, params, classes)
    runtime.place(network).eval()

    def logits(images: Tensor) -> Tensor:
        with runtime.autocast():
            return network(images).float()

    disparity, depth_source = None, None
    if depth is None and hasattr(network, "outputs"):

        def disparity(images: Tensor) -> Tensor:
            with runtime.autocast():
                return network.outputs(images, scales=(0,)).disp[0][:, 0].float()

        depth_source = "the network's own"
    elif model := depth or otherwise:
        disparity, depth_source = _depth_network(model, params, runtime), str(model)
    return Segmenter(flip_averaged(logits) if flip else logits, disparity, depth_source, params.frames.size, runtime)


def _depth_network(source: Path, params: Params, runtime: Runtime) -> Function:
    """Scale-0 disparity by the encoder and depth decoder in `source`, in float32 as in the stage disparity."""
    model = build_depth_model(**params.depth_network.backbone() | {"weights": "none"}, pose_encoder=None)
    load_parts(model.parts(), source)
    runtime.place(model).eval()
    return lambda images: model(images, scales=(0,))["disp"][0][:, 0]


def open_network(weights: Path, params: Params, classes: Classes) -> nn.Module:
    """The network of the block `network` with the weights of a file, on the CPU.

    Of a whole Three Ways model (keys ``models.<part>.*``) the network's own parts are taken. Raises UserError for a
    file that cannot be read, has another number of classes, or belongs to another network.
    """
    options = params.network
    state = read_state(weights)
    if getattr(options, "input", "") == "imagenet" and "conv_block1.0.weight" in state and _published(weights):
        raise UserError(f"{weights}: a published FCN-8s was trained on BGR in [0, 1]; set network.input to reference")
    network = build_network(len(classes), options, trained=True)
    if hasattr(network, "without_pose"):
        network = network.without_pose()
    parts = {name for name, _ in network.named_children()}
    if any(key.startswith("models.") for key in state):
        whole = {key.removeprefix("models."): value for key, value in state.items()}
        if missing := sorted(parts - {key.partition(".")[0] for key in whole}):
            raise UserError(
                f"{weights}: holds no part {missing[0]!r} (keys models.{missing[0]}.*); it seems to be "
                f"{describe(state)}: give --params with the `network` that it was trained with"
            )
        state = {key: value for key, value in whole.items() if key.partition(".")[0] in parts}
    elif "pose_net" not in parts:
        state = {key: value for key, value in state.items() if not key.startswith("pose_net.")}
    if (found := _other_classes(network.state_dict(), state, len(classes))) is not None:
        raise UserError(
            f"{weights}: a network of {found} classes, but {len(classes)} are listed ({', '.join(classes.names[:3])}, "
            "...); give its own list with --classes (a classes.json, or a file of presets/classes)"
        )
    load_strictly(network, state, str(weights))
    return network


def _published(weights: Path) -> bool:
    return weights.suffix != ".safetensors"


def _other_classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], count: int) -> int | None:
    """How many classes `state` has, if that is all in which it differs from a network of `count` classes."""
    if not all(key in state for key in own if not key.endswith("num_batches_tracked")):
        return None
    pairs = [(own[key].shape, state[key].shape) for key in own if key in state]
    differing = [(a, b) for a, b in pairs if a != b]
    found = {b[0] for _, b in differing if len(b)}
    if len(found) != 1:
        return None
    (other,) = found
    same = all(
        len(a) == len(b) and all(x == y or (x, y) == (count, other) for x, y in zip(a, b, strict=True))
        for a, b in differing
    )
    return other if same else None
