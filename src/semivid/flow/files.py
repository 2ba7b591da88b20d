"""Flow files: one naming function, 16-bit KITTI PNG or float16 ``.npy``, and masks of consistent pixels.

A flow is float32 (H, W, 2): [..., 0] = u to the right, [..., 1] = v down, in pixels of its own grid. It leads from the
frame whose name the file bears to its neighbour, and is defined on the pixels of that frame.
"""

from pathlib import Path

import cv2
import numpy as np

from semivid.data.index import Frame
from semivid.errors import UserError, shown
from semivid.pipeline.artifacts import replacing

DIRECTIONS = ("forward", "backward")
SUFFIXES = {"png": ".png", "float16": ".npy"}
# KITTI's coding (readme of the devkit of KITTI 2015): code = 64 * flow + 32768, 16 bits, 0 = no value
_SCALE, _OFFSET, _LARGEST = 64.0, 32768.0, 65535.0


def flow_path(root: str | Path, frame: Frame, direction: str, kind: str = "png") -> Path:
    """Where the flow of a frame lies, for those who write and those who read: ROOT/DIRECTION/SPLIT/NAME.png.

    Args:
        root: folder of all flow files.
        frame: the frame on whose pixels the flow is defined.
        direction: ``forward`` (to the next frame) or ``backward`` (to the one before).
        kind: ``png`` (16-bit KITTI, .png) or ``float16`` (.npy).

    Raises:
        UserError: another direction or kind.
    """
    if direction not in DIRECTIONS:
        raise UserError(f"direction of a flow is {direction!r}: give {' or '.join(DIRECTIONS)}")
    if kind not in SUFFIXES:
        raise UserError(f"kind of flow file is {kind!r}: give {' or '.join(SUFFIXES)}")
    return Path(root) / direction / frame.split / f"{frame.frame}{SUFFIXES[kind]}"


def consistency_path(root: str | Path, frame: Frame) -> Path:
    """Where the mask of a frame's consistent pixels lies: ROOT/consistent/SPLIT/NAME.png."""
    return Path(root) / "consistent" / frame.split / f"{frame.frame}.png"


def check_flow(flow: np.ndarray, where: object = "a flow") -> np.ndarray:
    """The flow as float array (H, W, 2); UserError that begins with `where` if it has another shape or type."""
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[2] != 2 or 0 in flow.shape or not np.issubdtype(flow.dtype, np.floating):
        raise UserError(f"{where}: a flow is a float array (H, W, 2), not {flow.dtype} {flow.shape}")
    return flow


def _check_valid(valid: np.ndarray | None, flow: np.ndarray, where: object) -> np.ndarray:
    if valid is None:
        return np.ones(flow.shape[:2], bool)
    valid = np.asarray(valid)
    if valid.dtype != bool or valid.shape != flow.shape[:2]:
        raise UserError(
            f"{where}: the valid pixels are a bool array {flow.shape[:2]} like the flow, not {valid.dtype} "
            f"{valid.shape}"
        )
    return valid


def write_flow(path: str | Path, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Write a flow file; atomic. The suffix says which kind.

    Args:
        path: ``.png``: 16-bit KITTI PNG, steps of 1/64 pixel, u and v from -512 to 511.98 pixels. ``.npy``: NumPy array
            float16 (H, W, 2), relative precision 2^-11, NaN = invalid.
        flow: float (H, W, 2) pixels.
        valid: bool (H, W), None = all; what stands in the flow elsewhere is not kept.

    Raises:
        UserError: another suffix or shape, or a valid value is not finite or beyond the kind's range; names the file.
    """
    path = Path(path)
    name = shown(path)
    flow = check_flow(flow, name)
    valid = _check_valid(valid, flow, name)
    wanted = flow[valid].astype(np.float64)
    if not np.isfinite(wanted).all():
        raise UserError(
            f"{name}: the flow has values that are infinite or not a number; the estimator failed on this pair: look "
            "at its two images, or choose another flow method"
        )
    if path.suffix == ".png":
        code = np.rint(wanted * _SCALE) + _OFFSET
        if code.size and (code.min() < 0 or code.max() > _LARGEST):
            raise UserError(
                f"{name}: the flow of this pair reaches {np.abs(wanted).max():.0f} pixels, a 16-bit PNG holds -512 to "
                "511.98; write float16 instead"
            )
        coded = np.zeros((*flow.shape[:2], 3), np.uint16)
        coded[valid, 0] = 1
        coded[valid, 1:] = code[:, ::-1]  # OpenCV's order: blue = valid, green = v, red = u
        _write_png(path, coded)
    elif path.suffix == ".npy":
        half = np.full(flow.shape, np.nan, np.float16)
        with np.errstate(over="ignore"):
            half[valid] = wanted
        if not np.isfinite(half[valid]).all():
            raise UserError(
                f"{name}: the flow of this pair reaches {np.abs(wanted).max():.0f} pixels, float16 holds 65504; the "
                "estimator failed on it: look at its two images, or choose another flow method"
            )
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, half, allow_pickle=False)
    else:
        raise UserError(f"{name}: a flow file is called .png (16-bit KITTI) or .npy (float16); correct its name")


def read_flow(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a flow file of either kind; the suffix says which.

    Returns:
        flow float32 (H, W, 2) pixels, 0 where not valid; valid bool (H, W).

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    name = shown(path)
    if not path.is_file():
        raise UserError(f"no flow file {name}; run the stage flow")
    if path.suffix == ".png":
        code = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if code is None:
            raise UserError(f"{name} is damaged; remove it and run the stage flow again")
        if code.dtype != np.uint16 or code.ndim != 3 or code.shape[2] != 3:
            raise UserError(
                f"{name} is no flow: a PNG of 16 bits with 3 channels is wanted, not {code.dtype} {code.shape}"
            )
        valid = code[..., 0] > 0
        flow = (code[..., :0:-1].astype(np.float32) - np.float32(_OFFSET)) / np.float32(_SCALE)
    elif path.suffix == ".npy":
        try:
            with path.open("rb") as file:  # not mapped: DVC may replace the file while the flow is in use
                half = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError):
            raise UserError(f"{name} is damaged; remove it and run the stage flow again") from None
        if not isinstance(half, np.ndarray) or half.dtype != np.float16 or half.ndim != 3 or half.shape[2] != 2:
            found = f"{half.dtype} {half.shape}" if isinstance(half, np.ndarray) else "an archive"
            raise UserError(f"{name} is no flow: a float16 array (H, W, 2) is wanted, not {found}")
        valid = np.isfinite(half).all(-1)
        flow = half.astype(np.float32)
    else:
        raise UserError(f"{name}: a flow file is called .png (16-bit KITTI) or .npy (float16)")
    flow[~valid] = 0
    return np.ascontiguousarray(flow), valid


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A flow on another grid: bilinear per component (pixel centres at half numbers), u and v in pixels of that grid.

    Differences between neighbouring pixels at the borders of moving things shrink with the values.

    Args:
        flow: float (H, W, 2); invalid pixels take part with what stands there: see :func:`resize_valid`.
        size: (width, height) of the new grid.

    Returns:
        float32 (height, width, 2).

    Raises:
        UserError: not a flow, or a size below 1.
    """
    flow = check_flow(flow).astype(np.float32, copy=False)
    (width, height), (rows, columns) = _check_size(size), flow.shape[:2]
    if (columns, rows) == (width, height):
        return flow.copy()
    ratios = np.array([width / columns, height / rows], np.float32)
    return cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * ratios


def resize_valid(valid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The valid pixels of a flow on another grid: those for which :func:`resize_flow` mixes valid values only.

    Args:
        valid: bool (H, W).
        size: (width, height) of the new grid.

    Returns:
        bool (height, width).
    """
    share = cv2.resize(valid.astype(np.float32), _check_size(size), interpolation=cv2.INTER_LINEAR)
    return share > 1 - 1e-4


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"size of a flow is {tuple(size)}: give (width, height) of at least 1 pixel each")
    return int(size[0]), int(size[1])


def _write_png(path: Path, pixels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise UserError(f"cannot encode {shown(path)}")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a bool array (H, W) as an 8-bit PNG of 0 and 255; atomic. UserError if it is something else."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2 or not mask.size:
        raise UserError(f"{shown(path)}: a mask is a bool array (H, W), not {mask.dtype} {mask.shape}")
    _write_png(Path(path), mask.astype(np.uint8) * 255)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: bool (H, W), True where the PNG is 255.

    Raises:
        UserError: the file is missing, damaged, or no single-channel 8-bit PNG of 0 and 255.
    """
    name = shown(path)
    if not Path(path).is_file():
        raise UserError(f"no mask {name}; run the stage flow")
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UserError(f"{name} is damaged; remove it and run the stage flow again")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not np.isin(pixels, (0, 255)).all():
        raise UserError(f"{name} is no mask: a single-channel 8-bit PNG of 0 and 255 is wanted")
    return pixels == 255
