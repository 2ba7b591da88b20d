"""Compare the methods of optical flow, on one thread in one run: python -m benchmarks.flow_methods

On snippets of the renderer, whose true flow is known: end-point error. On neighbouring frames of CamVid's validation
video, where labels are known but no flow: warping error, time per pair, and how well labels carried along the flow
agree with those drawn by hand. All methods work on a pair before the next pair comes, so that a busy machine hits all
alike; seconds are processor time of the one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# NumPy's and numba's threads are counted when they are imported.
os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}

import cv2
import numpy as np

from semivid.data.street.render import Renderer
from semivid.data.street.scene import draw_lots, make_scene
from semivid.data.street.textures import build_bank
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix
from semivid.flow.checks import VOID, carry_labels, chain, end_point_error, targets, warping_error
from semivid.flow.estimators import Estimator, build_estimator
from semivid.flow.files import resize_flow, resize_valid

SIZE, HALF, FPS, FRAMES = (384, 192), (192, 96), 17.0, 5  # the default data, and the size they are prepared at
CLASSES = 11
# 12 starts; those of the search were the multiples of 4 up to 44, those that confirmed it 50, 54, ... 94
STARTS = range(3, 98, 8)
PUBLISHED = 2.26  # seconds of the reference's C++ for one pair of 480x360, measured on another machine


def _farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
    return cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 5, 15, 3, 5, 1.2, 0)


def methods() -> dict[str, Estimator]:
    """Every method that needs no weights file, by its name in the table."""
    return {
        "none (no motion)": lambda first, second: np.zeros((*first.shape[:2], 2), np.float32),
        "pyflow": build_estimator("pyflow"),
        "dis ultrafast": build_estimator("dis", {"preset": "ultrafast"}),
        "dis fast": build_estimator("dis", {"preset": "fast"}),
        "dis medium": build_estimator("dis", {"preset": "medium"}),
        "dis medium, finest scale 0": build_estimator("dis", {"preset": "medium", "finest_scale": 0}),
        "Farneback (OpenCV)": _farneback,
        "best": build_estimator("best"),
    }


def render(seed: int, split: str, snippets: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of the embedded data as (first, second, true flow, seen) at 384x192.

    The flow is that of every pixel, occluded ones included, nan where its point leaves the image; seen: bool, visible
    in the second image too (what the renderer's flow files call valid).
    """
    bank = build_bank(seed)
    key = zlib.crc32(split.encode())
    for number in range(snippets):
        rng = np.random.default_rng(np.random.SeedSequence([seed, key, number]))
        scene = make_scene(rng, draw_lots(seed, key, number), bank, size=SIZE, frames=FRAMES, fps=FPS)
        renderer = Renderer(scene, bank)
        buffers = [renderer.visible(frame) for frame in range(FRAMES)]
        images = [renderer.image(buffer, frame, rng) for frame, buffer in enumerate(buffers)]
        for frame in range(FRAMES - 1):
            flow, seen = renderer.flow(buffers[frame], frame, buffers[frame + 1])
            flow = flow.astype(np.float32)
            flow[~targets(flow)[2] & ~seen] = np.nan
            yield images[frame], images[frame + 1], flow, seen


def brighter(image: np.ndarray) -> np.ndarray:
    """The image as a camera would take it with a longer exposure."""
    return cv2.convertScaleAbs(image, alpha=1.1, beta=5)


def on_street(pairs: list, half: bool) -> list[list[str]]:
    """Rows of the table of end-point errors at full or at half size."""
    found: dict[str, dict[str, list]] = {name: {"flow": [], "brighter": [], "s": []} for name in methods()}
    truth, seen = [], []
    estimators = methods()
    for first, second, flow, visible in pairs:
        if half:
            first, second = (cv2.resize(image, HALF, interpolation=cv2.INTER_AREA) for image in (first, second))
            flow, visible = resize_flow(flow, HALF), resize_valid(visible, HALF)
        truth.append(flow)
        seen.append(visible)
        for name, estimate in estimators.items():
            result, seconds = timed(estimate, first, second)
            found[name]["s"].append(seconds)
            found[name]["flow"].append(result)
            found[name]["brighter"].append(estimate(first, brighter(second)))
    true, visible = np.stack(truth), np.stack(seen)
    inside = np.isfinite(true).all(-1)
    rows = []
    for name, result in found.items():
        flow = np.stack(result["flow"])
        error = end_point_error(flow, true, visible)
        everywhere = end_point_error(flow, true, inside)["mean"]
        other = end_point_error(np.stack(result["brighter"]), true, visible)["mean"]
        milliseconds = 1000 * statistics.median(result["s"])
        distances = [f"{value:.3f}" for value in (error["mean"], error["median"], everywhere, other)]
        rows.append([name, *distances[:2], f"{100 * error['outliers']:.2f}", *distances[2:], f"{milliseconds:.1f}"])
    return rows


def timed(estimate: Estimator, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """The flow, and the seconds of processor time it took."""
    start = time.process_time()
    flow = estimate(first, second)
    return flow, time.process_time() - start


class Carried:
    """mIoU of carried labels over all pairs, where neither they nor the drawn ones are void."""

    def __init__(self) -> None:
        self.counts = np.zeros((CLASSES, CLASSES), np.int64)

    def add(self, carried: np.ndarray, drawn: np.ndarray) -> None:
        drawn = np.where(carried == VOID, VOID, drawn).astype(np.uint8)
        self.counts += confusion_matrix(np.where(carried == VOID, 0, carried).astype(np.uint8), drawn, CLASSES)

    def miou(self) -> float:
        hits, union = np.diag(self.counts), self.counts.sum(0) + self.counts.sum(1) - np.diag(self.counts)
        return float((hits[union > 0] / union[union > 0]).mean())


def on_camvid(folder: Path) -> tuple[list[list[str]], int]:
    """Rows of the table of CamVid, and the number of pairs."""
    paths = sorted((folder / "val").glob("*.jpg")) or sorted((folder / "val").glob("*.png"))
    if len(paths) < STARTS[-1] + 4:
        raise UserError(f"{folder}: no val/ with CamVid's 101 validation frames in SegNet's layout; correct --camvid")
    images = {}
    labels = {}
    for start in STARTS:
        for k in range(start, start + 4):
            images[k] = cv2.cvtColor(cv2.imread(str(paths[k])), cv2.COLOR_BGR2RGB)
            drawn = cv2.imread(str(folder / "valannot" / f"{paths[k].stem}.png"), cv2.IMREAD_UNCHANGED)
            if drawn is None:
                raise UserError(f"{folder}/valannot/{paths[k].stem}.png: no such mask; give CamVid in SegNet's layout")
            labels[k] = np.where(drawn < CLASSES, drawn, VOID).astype(np.uint8)
    estimators = methods()
    found = {
        name: {"s": [], "error": [], "one": Carried(), "three": Carried(), "chain": Carried()} for name in estimators
    }
    for t in STARTS:
        for name, estimate in estimators.items():
            result = found[name]
            flow, seconds = timed(estimate, images[t], images[t + 1])
            result["s"].append(seconds)
            result["error"].append(warping_error(images[t], images[t + 1], flow))
            back = [estimate(images[k + 1], images[k]) for k in range(t, t + 3)]
            result["one"].add(carry_labels(labels[t], back[0]), labels[t + 1])
            result["three"].add(carry_labels(labels[t], estimate(images[t + 3], images[t])), labels[t + 3])
            chained = chain(chain(back[2], back[1]), back[0])
            result["chain"].add(carry_labels(labels[t], chained), labels[t + 3])
    pyflow = found["pyflow"]["s"]
    rows = []
    for name, result in found.items():
        every, inside = np.mean(result["error"], axis=0)
        seconds = statistics.median(result["s"])
        idle = name.startswith("none")
        ratio = statistics.median(p / s for p, s in zip(pyflow, result["s"], strict=True)) if not idle else 0
        rows.append(
            [name, f"{every:.2f}", f"{inside:.2f}"]
            + [f"{100 * result[key].miou():.2f}" for key in ("one", "three", "chain")]
            + (["", "", ""] if idle else [f"{seconds:.4f}", f"{ratio:.1f}", f"{PUBLISHED / seconds:.1f}"])
        )
    return rows, len(STARTS)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right; the row best in bold."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    lines += [[f"**{cell}**" if cell and row[0] == "best" else cell for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page(camvid: Path | None, seed: int, snippets: int, say: Callable[[str], None]) -> str:
    """The whole page; measures."""
    cv2.setNumThreads(1)
    say("render")
    pairs = list(render(seed, "val", snippets))
    for estimate in methods().values():
        estimate(*pairs[0][:2])  # compiles
    head = ["method", "mean", "median", "Fl %", "mean, occluded too", "mean, exposure changed", "ms"]
    facts = (
        f"{platform.machine()}, Python {platform.python_version()}, OpenCV {cv2.__version__}, NumPy {np.__version__}"
    )
    text = [
        "# Methods of optical flow",
        "",
        f"Written by `python -m benchmarks.flow_methods{' --camvid PATH' if camvid else ''}`: every method in one run, "
        "on one thread, in turns pair by pair; times are processor time (medians), and only their ratios carry over to "
        "other machines. What the methods are, and how `best` was found: docs/flow.md. RAFT is not here, for want of "
        "its weights.",
        "",
        f"{facts}, load before the run {os.getloadavg()[0]:.1f}",
        "",
        f"## End-point error on the embedded data (street, seed {seed}, val, {len(pairs)} pairs)",
        "",
        "Pixels between the estimated and the true flow, over the pixels that are seen in both images; Fl: share of "
        "errors above 3 pixels and 5 %. Occluded too: also over pixels that something covers in the second image. "
        "Exposure changed: the second image brightened (1.1 times, plus 5 grey levels).",
        "",
    ]
    for half, (width, height) in ((True, HALF), (False, SIZE)):
        say(f"street {width}x{height}")
        text += [f"{width}x{height}:", "", table(head, on_street(pairs, half))]
    if camvid:
        say("camvid")
        rows, count = on_camvid(camvid)
        head = ["method", "warping error", "inside", "1 on", "3 on", "3 on, chained", "s per pair"]
        text += [
            f"## CamVid, {count} pairs of neighbouring validation frames, 480x360",
            "",
            "Warping error: mean absolute difference in grey levels, over all pixels and over those whose target lies "
            "inside the image. 1 on, 3 on: mIoU in percent of hand-drawn labels carried along the flow to the next "
            "frame and to the third one (flow between these two frames directly; chained: over the frames between). "
            f"Speed against pyflow of this run, and against {PUBLISHED} s, the time of the reference's C++ on another "
            "machine.",
            "",
            table([*head, "times faster than pyflow", f"than {PUBLISHED} s"], rows),
        ]
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_methods", description=__doc__.partition(":")[0])
    parser.add_argument("--camvid", type=Path, help="CamVid in SegNet's layout (val/, valannot/); left out without it")
    parser.add_argument("--seed", type=int, default=1, help="of the renderer (default 1, the embedded data)")
    parser.add_argument("--snippets", type=int, default=8, help="rendered snippets of four pairs (default 8)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="the page to write")
    args = parser.parse_args()
    try:
        text = page(args.camvid, args.seed, args.snippets, lambda what: print(what, flush=True))
    except UserError as error:
        parser.exit(2, f"{error}\n")
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
