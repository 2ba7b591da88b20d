"""Flow of many frame pairs: in parallel over cores, and taken up again where it was interrupted."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from semivid.data.index import Frame, Index
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.flow.checks import consistency, warping_error
from semivid.flow.colours import flow_colours
from semivid.flow.estimators import build_estimator
from semivid.flow.files import consistency_path, flow_path, write_flow, write_mask
from semivid.flow.index import FlowPair
from semivid.pipeline.artifacts import replacing, write_json
from semivid.pipeline.process import die_with_parent
from semivid.training.progress import Progress

RUN = 32  # pairs per piece of work: what a kill can cost, times the number of processes


@dataclass(frozen=True)
class FlowSettings:
    """method, options: of `build_estimator`. backward: also from the next frame back, and masks of consistent pixels.
    kind: png or float16. pictures: colour pictures too."""

    method: str
    options: Mapping[str, Any]
    backward: bool
    kind: str
    pictures: bool


def pairs_to_compute(index: Index, annotated: bool) -> list[tuple[Frame, Frame]]:
    """(frame, next frame of its video) of all frames that have one, in order; annotated: of those with a mask alone.

    None for a collection of photographs, where every frame is a sequence of its own: such data have no flow.
    Raises UserError if there is a sequence of several frames and yet not one pair.
    """
    pairs = [(f, index.neighbour(f, 1)) for f in index.select(labelled=True if annotated else None)]
    found = [(first, second) for first, second in pairs if second is not None]
    if not found and len({(f.split, f.sequence) for f in index.frames}) < len(index.frames):
        raise UserError(
            "no frame has a next one in its video: flow needs consecutive frames (names that end in consecutive "
            "numbers; see docs/own_data.md), or set `flow.frames` to all"
        )
    return found


def _runs(pairs: Sequence[tuple[Frame, Frame]]) -> list[tuple[str, list[tuple[Frame, Frame]]]]:
    """(name, pairs): consecutive pairs of one sequence, at most RUN of them."""
    runs = []
    for (split, sequence), group in groupby(pairs, key=lambda p: (p[0].split, p[0].sequence)):
        members = list(group)
        runs += [(f"{split}-{sequence}-{i // RUN}", members[i : i + RUN]) for i in range(0, len(members), RUN)]
    return runs


def _set_up_process() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent answers it
    cv2.setNumThreads(1)  # one process per core already


def _compute(task: tuple[str, list[tuple[Frame, Frame]], FlowSettings, Path]) -> tuple[int, str]:
    """Flow of one run of pairs: (how many, fault or nothing). Its list of pairs is written last."""
    name, pairs, settings, folder = task
    estimate, store = build_estimator(settings.method, settings.options), FrameStore(budget_mb=64)
    try:
        rows = [asdict(_pair(estimate, store, first, second, settings, folder)) for first, second in pairs]
    except UserError as error:
        return 0, str(error)
    write_json(folder / "runs" / f"{name}.json", rows)
    return len(pairs), ""


def _pair(estimate, store: FrameStore, first: Frame, second: Frame, settings: FlowSettings, root: Path) -> FlowPair:
    one, two = store.image(first), store.image(second)
    if one.shape != two.shape:
        raise UserError(f"{first.frame} {one.shape[1::-1]} and {second.frame} {two.shape[1::-1]} differ in size")
    forward = estimate(one, two)
    paths = {"forward": flow_path(root, first, "forward", settings.kind)}
    write_flow(paths["forward"], forward)
    share = None
    if settings.backward:
        back = estimate(two, one)
        agree = consistency(forward, back)
        paths["backward"] = flow_path(root, second, "backward", settings.kind)
        paths["consistent"] = consistency_path(root, first)
        write_flow(paths["backward"], back)
        write_mask(paths["consistent"], agree)
        share = float(agree.mean())
    if settings.pictures:
        picture = root / "pictures" / first.split / f"{first.frame}.png"
        with replacing(picture) as temporary:
            temporary.write_bytes(cv2.imencode(".png", flow_colours(forward)[..., ::-1])[1].tobytes())
    error, inside = warping_error(one, two, forward)
    still, _ = warping_error(one, two, np.zeros_like(forward))
    relative = {
        k: paths[k].relative_to(root).as_posix() if k in paths else "" for k in ("forward", "backward", "consistent")
    }
    motion = float(np.hypot(forward[..., 0], forward[..., 1]).mean())
    return FlowPair(
        first.split, first.sequence, first.frame, second.frame, **relative, motion=motion, error_still=still,
        error=error, error_inside=inside, consistent_share=share,
    )  # fmt: skip


def precompute(
    pairs: Sequence[tuple[Frame, Frame]], settings: FlowSettings, folder: Path, workers: int, title: str = "flow"
) -> list[FlowPair]:
    """Compute the flow of `pairs` into `folder` with `workers` processes, and return the index.

    Runs of pairs that an interrupted call has finished in the same folder are not computed again; the caller sees to
    it that these were made of the same frames and settings. Raises UserError that names every run that failed.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    runs = _runs(pairs)
    todo = [(n, p, settings, folder) for n, p in runs if not (folder / "runs" / f"{n}.json").exists()]
    progress = Progress(title, len(pairs) - sum(len(t[1]) for t in todo), len(pairs))
    faults = []
    workers = min(workers, len(todo))
    # spawn: a fork of a process that has threads running (OpenCV's) may hang
    with multiprocessing.get_context("spawn").Pool(workers, _set_up_process) if workers > 1 else nullcontext() as pool:
        for count, fault in pool.imap_unordered(_compute, todo) if pool else map(_compute, todo):
            progress.advance(progress.done + count)
            faults += [fault] if fault else []
    progress.close()
    if faults:
        raise UserError("\n".join(sorted(faults)))
    rows = [row for name, _ in runs for row in json.loads((folder / "runs" / f"{name}.json").read_text())]
    return [FlowPair(**row) for row in rows]
