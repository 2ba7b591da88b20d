"""Image pyramids for the photometric loss (three_ways: each level from the one before, LANCZOS)."""

from PIL import Image


def pyramid(image: Image.Image, scales: int) -> list[Image.Image]:
    """`scales` pictures: the image itself, then each half the size of the one before (Pillow LANCZOS).

    Width and height must be divisible by 2^(scales - 1).
    """
    levels = [image]
    for _ in range(scales - 1):
        last = levels[-1]
        levels.append(last.resize((last.width // 2, last.height // 2), Image.Resampling.LANCZOS))
    return levels
