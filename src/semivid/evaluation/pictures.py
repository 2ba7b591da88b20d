"""Pictures for people: label overlays, disparity colours, sheets of frames. RGB uint8 throughout."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semivid.data.classes import VOID, Classes
from semivid.errors import UserError
from semivid.pipeline.artifacts import replacing


def read_rgb(path: Path, width: int | None = None) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3), RGB, shrunk to `width` if it is wider. UserError if unreadable."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"cannot read the picture {path}: run the stage that writes it again")
    return fit(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), width)


def read_labels(path: Path, width: int | None = None) -> np.ndarray:
    """Read train ids as uint8 (H, W), shrunk to `width` by nearest neighbour. UserError if unreadable."""
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise UserError(f"cannot read the mask {path} (8-bit, one channel): run the stage that writes it again")
    return fit(labels, width)


def fit(picture: np.ndarray, width: int | None) -> np.ndarray:
    """Shrink to `width` pixels, keeping proportions: colours by area, train ids (2-D arrays) by nearest."""
    if width is None or picture.shape[1] <= width:
        return picture
    size = (width, max(1, round(picture.shape[0] * width / picture.shape[1])))
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_AREA)


def write_rgb(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3), RGB, as .jpg (quality 90) or .png by the name's ending; atomic."""
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise UserError(f"cannot write {path}: the name must end in .jpg or .png")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def overlay(image: np.ndarray, labels: np.ndarray, classes: Classes, alpha: float = 0.55) -> np.ndarray:
    """Lay the classes' colours over a picture.

    Args:
        image: uint8 (H, W, 3).
        labels: uint8 (H, W), train ids; void shows the picture alone, darkened.
        classes: names and colours; `classes.paint` gives the colours without the picture.
        alpha: share of the colours, 0..1.

    Returns:
        uint8 (H, W, 3).
    """
    if image.shape[:2] != labels.shape:
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    mixed = (1 - alpha) * image + alpha * classes.paint(labels)
    return np.where((labels == VOID)[..., None], 0.5 * image, mixed).round().astype(np.uint8)


def disparity_colours(disparity: np.ndarray) -> np.ndarray:
    """Disparity (H, W) in [0, 1] to colours, uint8 (H, W, 3): dark = far, bright = near."""
    values = np.rint(np.clip(disparity, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(values, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def contact_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int, width: int = 240, gap: int = 6
) -> np.ndarray:
    """Pictures in a grid, each over its caption, on white.

    Args:
        pictures: uint8 (H, W, 3) each; brought to `width`, the tallest one sets the height of a row's cell.
        captions: one line each; cut where it is wider than the picture.
        columns: pictures per row.
        width: width of a picture in pixels.
        gap: space between pictures in pixels.

    Returns:
        uint8 (H, W, 3).
    """
    if len(pictures) != len(captions) or not pictures:
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions")
    resized = [
        cv2.resize(p, (width, max(1, round(p.shape[0] * width / p.shape[1]))), interpolation=cv2.INTER_AREA)
        for p in pictures
    ]
    font = ImageFont.load_default(13)
    height, line = max(p.shape[0] for p in resized), 18
    columns = min(columns, len(resized))
    rows = -(-len(resized) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(resized, captions, strict=True)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        sheet.paste(Image.fromarray(picture), (x, y))
        while caption and draw.textlength(caption, font=font) > width:
            caption = caption[:-1]
        draw.text((x, y + height + 1), caption, fill="black", font=font)
    return np.asarray(sheet)
