"""Pinhole cameras: reading them, and what resizing, cropping and flipping do to them.

Pixel coordinates are those of Three Ways and monodepth2: scaling a picture by s scales cx and cy by s, and a
flip sends cx to W - cx. (Where pixel *centres* sit on integers, the exact flip is W - 1 - cx; the half pixel
does not matter to learned depth, and the published depth weights were trained with W - cx.)
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from semivid.errors import UserError

CITYSCAPES_SIZE = (2048, 1024)


@dataclass(frozen=True)
class Camera:
    """Intrinsics in pixels of a `width` x `height` picture; ``source_*``: as read, for the source's size."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    source_fx: float
    source_fy: float
    source_cx: float
    source_cy: float
    source_width: int
    source_height: int

    @classmethod
    def of_source(cls, fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> "Camera":
        """A camera at its own size: source and current values are equal."""
        return cls(fx, fy, cx, cy, width, height, fx, fy, cx, cy, width, height)

    def resized(self, width: int, height: int) -> "Camera":
        """The camera of the same picture resized to `width` x `height` (axes scale apart)."""
        x, y = width / self.width, height / self.height
        return replace(self, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y, width=width, height=height)

    def crop(self, x: int, y: int, width: int | None = None, height: int | None = None) -> "Camera":
        """The camera of the window with the top left pixel (x, y); its size defaults to all that remains."""
        return replace(
            self,
            cx=self.cx - x,
            cy=self.cy - y,
            width=self.width - x if width is None else width,
            height=self.height - y if height is None else height,
        )

    def flip(self) -> "Camera":
        """The camera of the left-right mirrored picture: cx -> W - cx, cy unchanged."""
        return replace(self, cx=self.width - self.cx)

    def reference(self, x: int, y: int, width: int, height: int, flip: bool) -> "Camera":
        """The camera that Three Ways' released code uses for a window, with its two known errors.

        The intrinsics stay those of the source size although the picture is smaller, and a flip mirrors cy
        too. Only for runs that must repeat the published depth training.
        """
        cx = self.source_width - self.source_cx if flip else self.source_cx
        cy = self.source_height - self.source_cy if flip else self.source_cy
        return replace(self, fx=self.source_fx, fy=self.source_fy, cx=cx - x, cy=cy - y, width=width, height=height)

    def window(
        self, x: int, y: int, width: int, height: int, flip: bool = False, intrinsics: str = "correct"
    ) -> "Camera":
        """The camera of a sample: picture flipped first, then cropped (the order of Three Ways' loader).

        intrinsics: "correct", or "reference" for the released code's erroneous values.
        """
        if intrinsics == "reference":
            return self.reference(x, y, width, height, flip)
        if intrinsics != "correct":
            raise UserError(f"intrinsics: {intrinsics!r} is unknown; write correct or reference")
        return (self.flip() if flip else self).crop(x, y, width, height)

    def matrix(self, scale: int = 0) -> np.ndarray:
        """K, (3, 3) float64, at pyramid level `scale`: rows 0 and 1 divided by 2^scale."""
        k = np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)
        k[:2] /= 2**scale
        return k


def read_camera_json(path: str | Path, size: tuple[int, int], default_size: tuple[int, int] | None) -> Camera:
    """Read one camera file for source pictures of `size` (width, height).

    Two forms: ``{"intrinsic": {"fx", "fy", "u0", "v0"}, "width", "height"}`` (Cityscapes' camera files, which
    hold no size: `default_size` says it, None means `size`), or ``{"fov_x": degrees}``, an estimate with
    square pixels and the principal point at the picture's centre. The camera is returned for `size`.
    UserError if the file is unreadable, or made for pictures of another aspect ratio.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "fov_x" in content:
            fov = float(content["fov_x"])
            if not 0 < fov < 180:
                raise ValueError("fov_x must lie between 0 and 180 degrees")
            focal = size[0] / 2 / math.tan(math.radians(fov) / 2)
            return Camera.of_source(focal, focal, size[0] / 2, size[1] / 2, *size)
        k = content["intrinsic"]
        width = int(content.get("width", (default_size or size)[0]))
        height = int(content.get("height", (default_size or size)[1]))
        values = [float(k[n]) for n in ("fx", "fy", "u0", "v0")]
        if not all(map(math.isfinite, values)) or min(values[0], values[1], width, height) <= 0:
            raise ValueError("fx, fy, width and height must be positive numbers")
        camera = Camera.of_source(*values, width, height)
    except OSError as error:
        raise UserError(f"data.camera: cannot read {path} ({error.strerror}); correct the path") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        form = '{"intrinsic": {"fx", "fy", "u0", "v0"}, "width", "height"} or {"fov_x": degrees}'
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no camera file ({reason}); write {form}") from None
    if abs(width * size[1] / (height * size[0]) - 1) > 0.02:
        raise UserError(
            f"{path} is for {width}x{height}, but the frames are {size[0]}x{size[1]}, another aspect ratio; "
            "give the width and height that the intrinsics belong to"
        )
    return camera.resized(*size)


def write_cameras(path: str | Path, cameras: dict[str, Camera]) -> None:
    """Write ``cameras.json``: name -> fx, fy, cx, cy, width, height, and the same six under ``source``."""
    content = {}
    for name, camera in sorted(cameras.items()):
        values = asdict(camera)
        source = {key: values.pop(f"source_{key}") for key in ("fx", "fy", "cx", "cy", "width", "height")}
        content[name] = values | {"source": source}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_cameras(path: str | Path) -> dict[str, Camera]:
    """Read the prepared ``cameras.json``; UserError if it is missing or broken."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            name: Camera(**{k: v for k, v in c.items() if k != "source"},
                         **{f"source_{k}": v for k, v in c["source"].items()})
            for name, c in content.items()
        }  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"no file {path}; run the stage frames first") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no cameras.json ({error}); run the stage frames again") from None
