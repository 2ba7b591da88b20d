"""The plain way of doing what semivid does: straightforward code with the same result, to measure against.

Nothing here is slow on purpose. It is what one writes first, and what the research code that semivid unites
does: decode the source pictures again for every sample, one float tensor per sample, contiguous networks with
every decoder level and head, a number read back after every step, one term of the formula after the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from semivid.models.encoder_decoder import SegmentationNet
from semivid.models.multitask import MultitaskNet
from semivid.pipeline.params import MultitaskMethod, Optimisation, PseudoLabel

Lap = Callable[[str], None]

VOID = 255
MEAN, STD = 0.45, 0.225


# Loading


def sample(
    image: Path, mask: Path, size: tuple[int, int], window: tuple[int, int, int, int], flip: bool, ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """One training sample from the source files: (image float (3, h, w), normalised; label int64 (h, w)).

    size: (width, height) to resize to; window: (left, top, right, bottom) of the crop; ids: the raw id of each
    class, in the order of the train ids.
    """
    picture = Image.open(image).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    label = Image.open(mask).resize(size, Image.Resampling.NEAREST)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture, label = picture.crop(window), label.crop(window)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    raw = np.array(label)
    train = np.full(raw.shape, VOID, np.int64)
    for train_id, raw_id in enumerate(ids):
        train[raw == raw_id] = train_id
    return (tensor - MEAN) / STD, torch.from_numpy(train)


# Networks


def logits(network: SegmentationNet, image: Tensor) -> Tensor:
    """Class logits, with all levels and disparities of the decoder computed, as the depth network would."""
    decoder, size = network.segmentation, image.shape[-2:]
    maps = network.encoder(image)
    features = decoder.unet_dec(maps, size, scales=(0, 1, 2, 3), levels=(0, 1, 2, 3, 4))["features"]
    inner = [-(-side // decoder.output_stride) for side in size]
    chosen = [features[9 - layer] if layer >= 5 else maps[layer] for layer in decoder.layers]
    projected = [
        F.interpolate(decoder.project[f"seg{layer}"](x), size=inner, mode="bilinear", align_corners=False)
        for layer, x in zip(decoder.layers, chosen, strict=True)
    ]
    return F.interpolate(decoder.head(torch.cat(projected, 1)), size=size, mode="bilinear", align_corners=False)


def optimizer(network: SegmentationNet, options: Optimisation) -> torch.optim.Optimizer:
    """The optimiser as torch makes it, the encoder at its own rate."""
    groups = network.parameter_groups(options.encoder_lr, options.lr)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    return kind(groups, weight_decay=options.weight_decay)


def training_step(
    network: SegmentationNet,
    optimizer: torch.optim.Optimizer,
    clip: float,
    precision: str,
    image: Tensor,
    label: Tensor,
) -> float:
    """Cross entropy of uint8 images (B, 3, H, W) and labels (B, H, W), one update, the loss as a number."""
    optimizer.zero_grad()
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = F.cross_entropy(logits(network, image.float() / 255), label.long(), ignore_index=VOID)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.item()


# Pseudo labels on mixed frames


@dataclass(frozen=True)
class Draws:
    """What is drawn at random in one step.

    mask: for ClassMix, a uniform number per image and class; the classes with the smallest ones are pasted.
    jitter, blur: whether the batch is jittered, blurred. order: of the four operations of the jitter. factors: (B, 4),
    what each image's brightness, contrast, saturation and hue changes by. sigma: of the blur, pixels.
    """

    mask: np.ndarray
    jitter: bool
    blur: bool
    order: Sequence[int]
    factors: np.ndarray
    sigma: float


def rgb_to_hsv(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to the hexcone's hue in turns, saturation, value."""
    red, green, blue = image.unbind(1)
    value, least = image.max(1).values, image.min(1).values
    chroma = value - least
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(value == blue, 4 + (red - green) / divisor, torch.zeros_like(value))
    hue = torch.where(value == green, 2 + (blue - red) / divisor, hue)
    hue = torch.where(value == red, (green - blue) / divisor, hue)
    saturation = torch.where(value == 0, torch.zeros_like(value), chroma / torch.where(value == 0, 1, value))
    return torch.stack([hue / 6 % 1, saturation, value], 1)


def hsv_to_rgb(image: Tensor) -> Tensor:
    """The other way, sector by sector."""
    hue, saturation, value = image.unbind(1)
    sector = torch.floor(hue * 6)
    rest = hue * 6 - sector
    p, q, t = value * (1 - saturation), value * (1 - rest * saturation), value * (1 - (1 - rest) * saturation)
    result = torch.zeros_like(image)
    sectors = ((value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q))
    for number, channels in enumerate(sectors):
        result = torch.where((sector % 6 == number).unsqueeze(1), torch.stack(channels, 1), result)
    return result


def strong_augmentation(image: Tensor, draws: Draws) -> Tensor:
    """Colour jitter and Gaussian blur of a batch (B, 3, H, W) in [0, 1]."""
    if draws.jitter:
        factors = torch.from_numpy(draws.factors).to(image)[..., None, None, None]
        brightness, contrast, saturation, hue = factors.unbind(1)
        for operation in draws.order:
            if operation == 0:
                image = image + brightness
            elif operation == 1:
                image = image * (1 + contrast)
            else:
                h, s, v = rgb_to_hsv(image).split(1, 1)
                if operation == 2:
                    s = (s * (1 + saturation)).clamp(0, 1)
                else:
                    h = (h + hue) % 1
                image = hsv_to_rgb(torch.cat([h, s, v], 1))
            image = image.clamp(0, 1)
    if draws.blur:
        height, width = image.shape[-2:]
        sizes = [math.floor(math.ceil(0.1 * n) - 0.5 + math.ceil(0.1 * n) % 2) for n in (width, height)]
        image = gaussian_blur(image, sizes, [draws.sigma, draws.sigma])
    return image


def masks(options: PseudoLabel, p: Tensor, disparity: Tensor, draws: Draws) -> Tensor:
    """1 where an image of the batch keeps its pixel, float (B, 1, H, W); p: probabilities (B, C, H, W)."""
    result = []
    for i in range(len(p)):
        if options.mask == "class":
            label = p[i].argmax(0)
            classes = label.unique().tolist()
            classes.sort(key=lambda c, i=i: draws.mask[i, c])
            mask = torch.zeros_like(label)
            for c in classes[: (len(classes) - len(classes) % 2) // 2]:
                mask[label == c] = 1
        elif options.mask == "depthmix":
            other = disparity[(i + 1) % len(p)]
            mask = (disparity[i] >= other - options.margin) & (disparity[i] >= options.foreground[0])
        else:
            mask = torch.ones_like(p[i, 0])
        result.append(mask.float())
    return torch.stack(result).unsqueeze(1)


def mixed(values: Tensor, mask: Tensor) -> Tensor:
    """Each of the batch's images with the next one: M_i x_i + (1 - M_i) x_j."""
    count = len(values)
    return torch.stack([mask[i] * values[i] + (1 - mask[i]) * values[(i + 1) % count] for i in range(count)])


def autocast(image: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def pseudo_labelled_mix(
    probabilities: Tensor, options: PseudoLabel, image: Tensor, unlabelled: Mapping[str, Tensor], draws: Draws, lap: Lap
) -> tuple[Tensor, Tensor, float]:
    """What the student sees and learns: (images (B, 3, H, W), labels (B, H, W), weight of the loss).

    probabilities: the teacher's, (B, C, H, W); image: (B, 3, H, W) in [0, 1].
    """
    p = probabilities
    if options.ground_truth:
        for i in range(len(p)):
            if unlabelled["labelled"][i]:
                label = unlabelled["label"][i].long()
                p[i] = torch.stack([(label == c).float() for c in range(p.shape[1])])
    mask = masks(options, p, unlabelled["disparity"], draws)
    image, p = mixed(image, mask), mixed(p, mask)
    confidence, label = p.max(1)
    label[confidence == 0] = VOID
    weight = float((confidence >= options.confidence).sum()) / label.numel()
    lap("pseudo labels, masks, mixing")
    image = strong_augmentation(image, draws)
    lap("strong augmentation")
    return image, label, weight


def update(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: PseudoLabel,
    step: int,
    lap: Lap,
) -> None:
    """Clip, step, and average; `step` counts from 0."""
    nn.utils.clip_grad_norm_(student.parameters(), options.clip)
    optimizer.step()
    lap("clipping and optimiser")
    a = min(1 - 1 / (step + 2), options.ema_decay)
    new = dict(student.named_parameters())
    for name, old in teacher.named_parameters():
        old.data = a * old.data + (1 - a) * new[name].data
    lap("moving average")


def pseudo_label_step(
    student: SegmentationNet,
    teacher: SegmentationNet,
    optimizer: torch.optim.Optimizer,
    options: PseudoLabel,
    precision: str,
    batch: Mapping[str, Mapping[str, Tensor]],
    step: int,
    draws: Draws,
    lap: Lap,
) -> dict[str, float]:
    """One iteration of Three Ways as the specification has it (three_ways.md, sections 8 and 9); the losses.

    batch: labelled {image uint8 (B, 3, H, W), label (B, H, W)} and unlabelled {image, disparity (B, H, W) in [0, 1],
    label, labelled bool (B,)}. lap: called with its name after each part of the step.
    """
    labelled, unlabelled = batch["labelled"], batch["unlabelled"]
    dtype = next(student.parameters()).dtype
    optimizer.zero_grad()
    image = labelled["image"].to(dtype) / 255
    with autocast(image, precision):
        found = logits(student, image)
    supervised = F.cross_entropy(found.float(), labelled["label"].long(), ignore_index=VOID)
    supervised.backward()
    lap("labelled batch, forward and backward")

    image = unlabelled["image"].to(dtype) / 255
    with torch.no_grad():
        with autocast(image, precision):
            p = logits(teacher, image)
        lap("teacher")
        image, label, weight = pseudo_labelled_mix(p.float().softmax(1), options, image, unlabelled, draws, lap)
    with autocast(image, precision):
        found = logits(student, image)
    losses = F.cross_entropy(found.float(), label, ignore_index=VOID, reduction="none")
    loss = options.consistency_weight * (weight * losses).mean()
    loss.backward()
    lap("mixed batch, forward and backward")
    update(student, teacher, optimizer, options, step, lap)
    return {"cross_entropy": supervised.item(), "pseudo_label": loss.item(), "confident": weight}


def multitask_step(
    student: MultitaskNet,
    teacher: MultitaskNet,
    optimizer: torch.optim.Optimizer,
    options: MultitaskMethod,
    precision: str,
    batch: Mapping[str, Mapping[str, Tensor]],
    step: int,
    draws: Draws,
    noise: Mapping[str, torch.Generator],
    lap: Lap,
) -> dict[str, float]:
    """The same with depth (section 10): four backward calls, and the whole network in every pass.

    batch: of both streams {image, neighbours uint8 (B, 2, 3, H, W), k (B, 3, 3), label}, of unlabelled also
    {labelled}. noise: of the auto-mask, by stream.
    """
    dtype, losses = next(student.parameters()).dtype, {}
    optimizer.zero_grad()
    for stream in ("labelled", "unlabelled"):
        data = batch[stream]
        image = data["image"].to(dtype) / 255
        neighbours = {o: data["neighbours"][:, i].to(dtype) / 255 for i, o in enumerate((-1, 1))}
        with autocast(image, precision):
            output = student.outputs(image, neighbours)
        depth = monodepth_loss(output.disp, image, neighbours, output.transforms, data["k"].to(dtype), noise[stream])
        if stream == "unlabelled":
            depth.backward()
            losses["unlabelled_depth"] = depth.item()
            continue
        depth.backward(retain_graph=True)
        label = data["label"].long()
        side = F.interpolate(output.side_logits, size=label.shape[-2:], mode="bilinear", align_corners=True)
        segmentation = sum(F.cross_entropy(x, label, ignore_index=VOID) for x in (output.logits, side)) / 2
        segmentation.backward()
        losses |= {"cross_entropy": segmentation.item(), "depth": depth.item()}
    disparity = output.disp[0].detach().float().squeeze(1)
    disparity = torch.stack([(d - d.min()) / (d.max() - d.min()) for d in disparity])
    del output, side, depth, segmentation
    lap("clean batches, forward and backward")

    with torch.no_grad():
        with autocast(image, precision):
            p = teacher.outputs(image).logits
        lap("teacher")
        unlabelled = {**batch["unlabelled"], "disparity": disparity}
        image, label, weight = pseudo_labelled_mix(p.float().softmax(1), options, image, unlabelled, draws, lap)
    with autocast(image, precision):
        found = student.outputs(image, neighbours).logits
    loss = (weight * F.cross_entropy(found.float(), label, ignore_index=VOID, reduction="none")).mean()
    loss = options.consistency_weight * loss
    loss.backward()
    lap("mixed batch, forward and backward")
    update(student, teacher, optimizer, options, step, lap)
    return losses | {"pseudo_label": loss.item(), "confident": weight}


# Depth


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """clamp((1 - SSIM) / 2, 0, 1) over 3x3 windows, (B, C, H, W)."""
    a, b = F.pad(a, (1, 1, 1, 1), mode="reflect"), F.pad(b, (1, 1, 1, 1), mode="reflect")
    mean_a, mean_b = F.avg_pool2d(a, 3, 1), F.avg_pool2d(b, 3, 1)
    variance_a = F.avg_pool2d(a * a, 3, 1) - mean_a**2
    variance_b = F.avg_pool2d(b * b, 3, 1) - mean_b**2
    covariance = F.avg_pool2d(a * b, 3, 1) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    denominator = (mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2)
    return ((1 - numerator / denominator) / 2).clamp(0, 1)


def photometric(a: Tensor, b: Tensor) -> Tensor:
    """0.85 SSIM distance + 0.15 absolute difference, (B, 1, H, W)."""
    return 0.85 * ssim(a, b).mean(1, True) + 0.15 * (a - b).abs().mean(1, True)


def warp(image: Tensor, depth: Tensor, k: Tensor, transform: Tensor) -> Tensor:
    """The image seen through depth: back-project each pixel, move it, project it, look it up."""
    batch, _, height, width = depth.shape
    like = {"dtype": depth.dtype, "device": depth.device}
    y, x = torch.meshgrid(torch.arange(height, **like), torch.arange(width, **like), indexing="ij")
    pixels = torch.stack([x.flatten(), y.flatten(), torch.ones(height * width, **like)])
    points = depth.view(batch, 1, -1) * (torch.linalg.pinv(k) @ pixels)
    points = torch.cat([points, torch.ones(batch, 1, height * width, **like)], 1)
    projected = k @ transform[:, :3] @ points
    uv = (projected[:, :2] / (projected[:, 2:] + 1e-7)).view(batch, 2, height, width).permute(0, 2, 3, 1)
    grid = torch.stack([(uv[..., 0] / (width - 1) - 0.5) * 2, (uv[..., 1] / (height - 1) - 0.5) * 2], -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def monodepth_loss(
    disparities: dict[int, Tensor],
    target: Tensor,
    sources: dict[int, Tensor],
    transforms: dict[int, Tensor],
    k: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The depth loss of Three Ways, term by term and scale by scale (section 5 of the reference's description).

    disparities: scale -> (B, 1, h, w); target, sources: (B, 3, H, W) in [0, 1]; transforms: (B, 4, 4); k: (3, 3).
    """
    total = 0.0
    for scale, disparity in disparities.items():
        full = F.interpolate(disparity, size=target.shape[-2:], mode="bilinear", align_corners=False)
        depth = 1 / (1 / 100 + (1 / 0.1 - 1 / 100) * full)
        warped = [photometric(warp(sources[o], depth, k, transforms[o]), target) for o in sources]
        identity = torch.cat([photometric(sources[o], target) for o in sources], 1)
        noise = torch.randn(identity.shape, generator=generator, device=generator.device, dtype=identity.dtype)
        identity = identity + 1e-5 * noise.to(identity.device)
        reprojection = torch.cat([identity, *warped], 1).min(1).values.mean()

        image = F.interpolate(target, size=disparity.shape[-2:], mode="area")
        normalised = disparity / (disparity.mean((2, 3), True) + 1e-7)
        smooth_x = (normalised[..., :-1] - normalised[..., 1:]).abs()
        smooth_y = (normalised[..., :-1, :] - normalised[..., 1:, :]).abs()
        smooth_x = smooth_x * torch.exp(-(image[..., :-1] - image[..., 1:]).abs().mean(1, True))
        smooth_y = smooth_y * torch.exp(-(image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, True))
        total = total + reprojection + 1e-3 / 2**scale * (smooth_x.mean() + smooth_y.mean())
    return total / len(disparities)


# Selection


def distances(features: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """Euclidean distances of the frames `rows` to all frames, (len(rows), N): the double loop."""
    result = np.zeros((len(rows), len(features)))
    for i, row in enumerate(rows):
        for j in range(len(features)):
            result[i, j] = np.linalg.norm(features[row] - features[j])
    return result


def farthest_point(distance: np.ndarray, chosen: Sequence[int], add: int) -> list[int]:
    """`add` frames, each the one farthest from all chosen before it; every round looks at all of them again."""
    chosen = list(chosen)
    for _ in range(add):
        nearest = distance[chosen].min(0)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return chosen[-add:]


# Evaluation


def confusion_matrix(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """int64 (C, C), rows = true class: class by class."""
    result = np.zeros((classes, classes), np.int64)
    for true in range(classes):
        predicted = prediction[label == true]
        for guess in range(classes):
            result[true, guess] = (predicted == guess).sum()
    return result


def evaluate(
    network: SegmentationNet, files: Sequence[tuple[Path, Path]], classes: int, device: torch.device
) -> np.ndarray:
    """Confusion matrix of the network on (image, label) files, frame by frame."""
    total = np.zeros((classes, classes), np.int64)
    with torch.no_grad():
        for image, label in files:
            picture = np.array(Image.open(image).convert("RGB"))
            tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            predicted = logits(network, tensor[None].contiguous().to(device)).argmax(1)[0].cpu().numpy()
            total += confusion_matrix(predicted, np.array(Image.open(label)), classes)
    return total
