"""Methods of optical flow behind one function: ``build_estimator(method, options)(first, second) -> flow``.

Each method imports what it needs when it is built: a pipeline of ``dis`` starts without torch, one of ``raft`` without
numba. An estimator is deterministic and works on one thread of the CPU (``raft``: on torch's threads or a GPU); many
pairs go to several processes, one thread each, since OpenCV's number of threads belongs to the process.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np

from semivid.errors import UserError
from semivid.flow.checks import check_pair

Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]

PYFLOW = {"alpha": 0.012, "ratio": 0.75, "min_width": 20, "outer": 7, "inner": 1, "sor": 30, "colour": "rgb"}
DIS = {"preset": "medium", "finest_scale": None}
BEST = {"alpha": 12.0, "delta": 20.0, "gamma": 5.0, "iterations": 3, "most_gain": 2.0}  # no options: its settings
RAFT = {"network": "raft_large", "weights": None, "updates": 12}
_COLOURS = ("rgb", "bgr", "grey")
_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_NETWORKS = ("raft_small", "raft_large")
# RAFT works on an eighth of the size and halves that three times for its correlations, to 2 x 2 at least
_RAFT_STEP, _RAFT_LEAST = 8, 128


def build_estimator(method: str, options: Mapping[str, Any] | None = None) -> Estimator:
    """A function from two images to the flow between them.

    Args:
        method: ``pyflow`` (coarse-to-fine of Ce Liu, this project's own implementation; the reference's flow), ``dis``
            (Dense Inverse Search of OpenCV; Kroeger et al., ECCV 2016), ``raft`` (Teed and Deng, ECCV 2020, from
            torchvision) or ``best`` (the recommended setting; see docs/flow.md for how it was found).
        options: keys left out have the values in brackets.
            pyflow: alpha (0.012), ratio (0.75), min_width (20), outer (7), inner (1), sor (30), colour (rgb; bgr as
            the reference feeds it; grey).
            dis: preset (medium; fast, ultrafast), finest_scale (None = the preset's own; 0 = full size).
            raft: network (raft_large; raft_small), weights (a file; must be given), updates (12).
            best: none.

    Returns:
        A function of (first, second), images uint8 RGB (H, W, 3) of one size, that gives the flow from the first to
        the second: float32 (H, W, 2), u to the right and v down, in pixels, on the pixels of the first.
        It raises UserError if the images do not match or are too small, or if its result is not finite.

    Raises:
        UserError: unknown method or option, a value out of range, or a weights file that is missing or does not fit.
    """
    builders = {"pyflow": (_pyflow, PYFLOW), "dis": (_dis, DIS), "raft": (_raft, RAFT), "best": (_best, {})}
    if method not in builders:
        raise UserError(f"flow method is {method!r}{_near(method, builders)}: give one of {', '.join(builders)}")
    build, defaults = builders[method]
    options = dict(options or {})
    for key in options:
        if key not in defaults:
            known = f"it takes {', '.join(defaults)}" if defaults else "it takes none"
            raise UserError(f"flow method {method} has no option {key!r}{_near(key, defaults)}: {known}")
    calculate = build(**(defaults | options))

    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        check_pair(first, second)
        flow = np.ascontiguousarray(calculate(first, second), dtype=np.float32)
        if not np.isfinite(flow).all():
            raise UserError(
                f"flow method {method} gave values that are infinite or not a number: look at the two images of this "
                "pair, or choose another method"
            )
        return flow

    return estimate


def _near(name: object, known: Mapping) -> str:
    found = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _one_of(key: str, value: object, known: Mapping | tuple) -> None:
    if value not in list(known):
        raise UserError(f"{key} is {value!r}: give one of {', '.join(known)}")


def _number(key: str, value: object, least: float, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        raise UserError(f"{key} is {value!r}: give a {'whole ' if whole else ''}number of at least {least}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV on one thread, so that workers on many pairs do not take each other's cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _at_least(image: np.ndarray, least: int, side: str, what: str) -> None:
    height, width = image.shape[:2]
    size = width if side == "width" else min(width, height)
    if size < least:
        raise UserError(
            f"images of {width}x{height} are too small for {what}, which needs a {side} of at least {least} pixels: "
            "take larger frames or another flow method"
        )


def _pyflow(alpha, ratio, min_width, outer, inner, sor, colour) -> Estimator:
    _number("alpha of pyflow", alpha, 0)
    _number("ratio of pyflow", ratio, 0)
    if not 0 < ratio < 1 or not alpha > 0:
        raise UserError(f"alpha, ratio of pyflow are {alpha}, {ratio}: give alpha above 0 and ratio between 0 and 1")
    for key, value in (("min_width", min_width), ("outer", outer), ("inner", inner), ("sor", sor)):
        _number(f"{key} of pyflow", value, 1, whole=True)
    _one_of("colour of pyflow", colour, _COLOURS)
    from pyflow import coarse2fine_flow

    # one level at least: trunc(log(min_width / width) / log(ratio)) >= 1, with the pyramid's own ratio
    step = ratio if 0.4 <= ratio <= 0.98 else 0.75
    least = int(np.ceil(min_width / step - 1e-9))

    def calculate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        _at_least(first, least, "width", f"pyflow with min_width {min_width} and ratio {ratio}")
        images = [_for_pyflow(image, colour) for image in (first, second)]
        grey = 1 if colour == "grey" else 0
        u, v, _ = coarse2fine_flow(*images, alpha, ratio, min_width, outer, inner, sor, grey)
        return np.dstack([u, v])

    return calculate


def _for_pyflow(image: np.ndarray, colour: str) -> np.ndarray:
    """float64 (H, W, C) in [0, 1], contiguous; grey = 0.299 R + 0.587 G + 0.114 B."""
    image = image.astype(np.float64) / 255
    if colour == "grey":
        return np.ascontiguousarray((image @ [0.299, 0.587, 0.114])[..., None])
    return np.ascontiguousarray(image if colour == "rgb" else image[..., ::-1])


def _dis(preset: str, finest_scale: int | None) -> Estimator:
    _one_of("preset of dis", preset, _PRESETS)
    if finest_scale is not None:
        _number("finest_scale of dis", finest_scale, 0, whole=True)

    def make() -> cv2.DISOpticalFlow:
        dis = cv2.DISOpticalFlow_create(_PRESETS[preset])
        if finest_scale is not None:
            dis.setFinestScale(finest_scale)
        return dis

    return lambda first, second: _run_dis(make(), _luma(first), _luma(second), "dis")


def _run_dis(dis: cv2.DISOpticalFlow, first: np.ndarray, second: np.ndarray, name: str) -> np.ndarray:
    """The flow between two uint8 (H, W). `dis` must be new: small images change its settings for those that follow.

    OpenCV ends the process with a segmentation fault where a patch does not fit into its finest scale.
    """
    scale = dis.getFinestScale()
    _at_least(first, max(12, dis.getPatchSize() * 2**scale), "shorter side", f"{name} with finest scale {scale}")
    with _one_thread():
        return dis.calc(first, second, None)


def _luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _best() -> Estimator:
    """DIS at full size with a stronger data term, on square roots of luma, the second image exposed like the first.

    See docs/flow.md for what each choice gave. The square root makes the noise of dark and bright pixels alike. The
    weights lean on brightness (delta) more than OpenCV's do, which a change of exposure would spoil; hence the match.
    """

    def make() -> cv2.DISOpticalFlow:
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        dis.setFinestScale(0)
        dis.setVariationalRefinementAlpha(BEST["alpha"])
        dis.setVariationalRefinementDelta(BEST["delta"])
        dis.setVariationalRefinementGamma(BEST["gamma"])
        dis.setVariationalRefinementIterations(BEST["iterations"])
        return dis

    return lambda first, second: _run_dis(make(), *_exposed_alike(_luma(first), _luma(second)), "best")


def _exposed_alike(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square roots of two uint8 images, as uint8, the second with the mean and deviation of the first."""
    (mean, deviation), (other_mean, other_deviation) = (
        [float(m[0, 0]) for m in cv2.meanStdDev(i)] for i in (first, second)
    )
    # beyond that it is no change of exposure but another picture, or one without any texture
    gain = float(np.clip(deviation / max(other_deviation, 1e-3), 1 / BEST["most_gain"], BEST["most_gain"]))
    levels = np.arange(256.0)
    matched = np.clip(mean + gain * (levels - other_mean), 0, 255)
    first, second = (
        cv2.LUT(image, np.rint(np.sqrt(255 * table)).astype(np.uint8))
        for image, table in ((first, levels), (second, matched))
    )
    return first, second


def _raft(network: str, weights: str | None, updates: int) -> Estimator:
    _one_of("network of raft", network, _NETWORKS)
    _number("updates of raft", updates, 1, whole=True)
    if not weights:
        raise UserError(
            f"raft needs weights: give the path of torchvision's file of {network} (none is downloaded), or take the "
            "flow method best"
        )
    import torch
    import torch.nn.functional as F
    from torchvision.models import optical_flow

    from semivid.models.checkpoints import load_strictly, read_state

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = getattr(optical_flow, network)(weights=None, progress=False)
    load_strictly(net, read_state(weights), str(weights))
    net.to(device).eval()

    def prepare(image: np.ndarray, padding: list[int]) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        pixels = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
        return F.pad(pixels, padding, mode="replicate")

    @torch.no_grad()
    def calculate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        (left, right), (top, bottom) = _padding(width), _padding(height)
        padding = [left, right, top, bottom]
        flow = net(prepare(first, padding), prepare(second, padding), num_flow_updates=updates)[-1][0]
        return flow[:, top : top + height, left : left + width].permute(1, 2, 0).float().cpu().numpy()

    return calculate


def _padding(length: int) -> tuple[int, int]:
    """Pixels to put before and after, up to a multiple of 8 of at least 128."""
    more = max(-(-length // _RAFT_STEP) * _RAFT_STEP, _RAFT_LEAST) - length
    return more // 2, more - more // 2
