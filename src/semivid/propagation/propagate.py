"""From a labelled frame to its neighbours: motion between frames, ways to use it, and the files of the result."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from semivid.data.classes import VOID
from semivid.data.index import Frame, Index
from semivid.data.store import FrameStore
from semivid.errors import UserError
from semivid.flow.estimators import Estimator
from semivid.flow.files import check_flow, read_flow, resize_flow, resize_valid
from semivid.flow.store import FlowStore
from semivid.propagation.compose import Carried, Motion, carry, checked, compose
from semivid.propagation.reference import carry_once

WAYS = ("composed", "direct", "reference")
STEPS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)
# RGB uint8 (H, W, 3): [the frame before the source, source, target] in the direction of the propagation -> float
# (H, W, 2) pixels, on the target, leading to the source
Network = Callable[[Sequence[np.ndarray]], np.ndarray]


class MotionSource(Protocol):
    """Motion between two frames of a video."""

    def missing(self, target: Frame, source: Frame, past: Frame | None = None) -> str:
        """What the motion from `target` to `source` lacks, for a message; empty if it can be had."""

    def flow(self, target: Frame, source: Frame, past: Frame | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (H, W, 2) on the pixels of `target`, leading to `source`; bool (H, W) where it holds).

        past: the frame that a network sees before `source`; None: its own choice. Flow has no need of one.
        """


class _Kept:
    """The last few flows, since neighbouring targets share their steps."""

    def __init__(self, count: int) -> None:
        self._count, self._flows = count, OrderedDict()

    def get(self, key: tuple, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        if key not in self._flows:
            self._flows[key] = make()
            if len(self._flows) > self._count:
                self._flows.popitem(last=False)
        self._flows.move_to_end(key)
        return self._flows[key]


class EstimatedMotion:
    """Flow computed when it is asked for, between any two frames. estimate: of `build_estimator`. keep: flows kept."""

    def __init__(self, store: FrameStore, estimate: Estimator, keep: int = 32) -> None:
        self.store, self.estimate, self._kept = store, estimate, _Kept(keep)

    def missing(self, target: Frame, source: Frame, past: Frame | None = None) -> str:
        return ""

    def flow(self, target: Frame, source: Frame, past: Frame | None = None) -> tuple[np.ndarray, np.ndarray]:
        def make() -> tuple[np.ndarray, np.ndarray]:
            images = self.store.image(target), self.store.image(source)
            _same_size(target, source, *images)
            flow = self.estimate(*images)
            return flow, np.ones(flow.shape[:2], bool)

        return self._kept.get((target.frame, source.frame), make)


class StoredMotion:
    """The flow files of the stage flow: neighbours only, both directions (`flow.backward: true`)."""

    def __init__(self, store: FlowStore, keep: int = 32) -> None:
        self.store, self._kept = store, _Kept(keep)

    def _path(self, target: Frame, source: Frame) -> str:
        pairs = self.store.pairs
        if target.frame in pairs and pairs[target.frame].next == source.frame:
            return pairs[target.frame].forward
        if source.frame in pairs and pairs[source.frame].next == target.frame:
            return pairs[source.frame].backward
        return ""

    def missing(self, target: Frame, source: Frame, past: Frame | None = None) -> str:
        return "" if self._path(target, source) else f"no flow file from {target.frame} to {source.frame}"

    def flow(self, target: Frame, source: Frame, past: Frame | None = None) -> tuple[np.ndarray, np.ndarray]:
        path = self._path(target, source)
        if not path:
            raise UserError(
                f"{target.frame}: no flow to {source.frame} in {self.store.folder / 'index.csv'}; set `flow.frames: "
                "all` and `flow.backward: true`, and run the stage flow"
            )

        def make() -> tuple[np.ndarray, np.ndarray]:
            flow, valid = read_flow(path)
            size = self.store.image(target).shape[1::-1]
            return (flow, valid) if flow.shape[1::-1] == size else (resize_flow(flow, size), resize_valid(valid, size))

        return self._kept.get((target.frame, source.frame), make)


class NetworkMotion:
    """Motion of a network that sees three frames: the one before the source, the source and the target."""

    def __init__(self, store: FrameStore, index: Index, network: Network, keep: int = 32) -> None:
        self.store, self.index, self.network, self._kept = store, index, network, _Kept(keep)

    def _past(self, target: Frame, source: Frame) -> Frame | None:
        return self.index.neighbour(source, source.position - target.position)

    def missing(self, target: Frame, source: Frame, past: Frame | None = None) -> str:
        if past or self._past(target, source):
            return ""
        place = 2 * source.position - target.position
        return f"no frame {place} of {source.sequence}, which the network sees before {source.frame}"

    def flow(self, target: Frame, source: Frame, past: Frame | None = None) -> tuple[np.ndarray, np.ndarray]:
        past = past or self._past(target, source)
        if past is None:
            raise UserError(f"{self.missing(target, source)}; leave this pair out")

        def make() -> tuple[np.ndarray, np.ndarray]:
            images = [self.store.image(f) for f in (past, source, target)]
            _same_size(target, source, images[2], images[1])
            _same_size(target, past, images[2], images[0])
            flow = check_flow(self.network(images), f"motion of {target.frame}").astype(np.float32, copy=False)
            if flow.shape[:2] != images[2].shape[:2] or not np.isfinite(flow).all():
                raise UserError(
                    f"motion of {target.frame}: the network gave {flow.shape} for a picture of {images[2].shape}, or "
                    "values that are not finite; give another checkpoint"
                )
            return flow, np.ones(flow.shape[:2], bool)

        return self._kept.get((target.frame, source.frame, past.frame), make)


def _same_size(one: Frame, other: Frame, image: np.ndarray, second: np.ndarray) -> None:
    if image.shape != second.shape:
        (h, w), (h2, w2) = image.shape[:2], second.shape[:2]
        raise UserError(
            f"{one.frame} is {w}x{h}, {other.frame} {w2}x{h2}: bring the frames of a video to one size (`frames.size`)"
        )


@dataclass(frozen=True)
class Settings:
    """How labels are carried.

    way: composed (flows between neighbours, followed to one motion), direct (one flow from the target to the source),
    reference (the published chain: every step warps the map of the step before, through 8-bit files).
    check: forward-backward check; not of the reference. least: confidence below which a pixel is void, 0 to 1.
    """

    way: str = "composed"
    check: bool = True
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise UserError(f"way of propagation is {self.way!r}: give one of {', '.join(WAYS)}")
        if not 0 <= self.least <= 1:
            raise UserError(f"least confidence of propagation is {self.least}: give 0 to 1")


@dataclass(frozen=True)
class Propagated:
    """What one labelled frame gives one of its neighbours, `step` frames later (negative: earlier)."""

    source: Frame
    target: Frame
    step: int
    carried: Carried


def check_steps(steps: Sequence[int]) -> list[int]:
    """The steps in order of their distance. UserError unless they are different whole numbers other than 0."""
    if not steps or any(isinstance(s, bool) or not isinstance(s, int) or s == 0 for s in steps):
        raise UserError(f"steps of propagation are {list(steps)}: give whole numbers other than 0, e.g. [-2, -1, 1, 2]")
    if len(set(steps)) < len(steps):
        raise UserError(f"steps of propagation are {list(steps)}: give each once")
    return sorted(steps, key=lambda s: (abs(s), -s))


def propagate(
    index: Index,
    store: FrameStore,
    motion: MotionSource,
    source: Frame,
    steps: Sequence[int] = STEPS,
    settings: Settings = Settings(),
    faults: list[str] | None = None,
) -> Iterator[Propagated]:
    """Carry the label of one frame to its neighbours, nearest first.

    Args:
        source: a frame with a label.
        steps: how many frames later (negative: earlier) the targets are.
        faults: gets a line for every step that cannot be made, since a frame or its motion is missing; the others
            are made nevertheless.

    Yields:
        One result per step that can be made.

    Raises:
        UserError: no label, labels or frames of different sizes, or bad steps.
    """
    steps = check_steps(steps)
    label, image = store.label(source), store.image(source)
    if label.shape != image.shape[:2]:
        (h, w), (h2, w2) = label.shape, image.shape[:2]
        raise UserError(f"{source.frame}: its label is {w}x{h}, its picture {w2}x{h2}; run the stage masks again")
    chains: dict[int, _Chain] = {}
    for step in steps:
        path = [index.neighbour(source, np.sign(step).item() * i) for i in range(abs(step) + 1)]
        lack = _lack(index, motion, source, step, path, settings)
        if lack:
            if faults is not None:
                faults.append(f"{source.frame}, step {step:+d}: {lack}")
            continue
        target = path[-1]
        if settings.way == "reference":
            chain = chains.setdefault(np.sign(step).item(), _Chain(label, image))
            carried = chain.reach(index, motion, path)
        else:
            carried = carry(label, image, _motion(motion, path, settings), store.image(target), settings.least)
        yield Propagated(source, target, step, carried)


def _pairs(path: Sequence[Frame], way: str) -> list[tuple[Frame, Frame]]:
    """(newer, older) in the order in which the motion is followed: from the target to the source."""
    return [(path[-1], path[0])] if way == "direct" else [(path[i], path[i - 1]) for i in range(len(path) - 1, 0, -1)]


def _lack(
    index: Index, motion: MotionSource, source: Frame, step: int, path: Sequence[Frame | None], settings: Settings
) -> str:
    needed = [path[-1]] if settings.way == "direct" else path
    if None in needed:
        place = source.position + (step if path[-1] is None else np.sign(step).item() * path.index(None))
        return f"{source.sequence} ({source.split}) has no frame {place}"
    for target, older in _pairs(path, settings.way):
        past = _reference_past(index, path, older) if settings.way == "reference" else None
        lack = motion.missing(target, older, past)
        if not lack and settings.check and settings.way != "reference":
            lack = motion.missing(older, target)
        if lack:
            return lack
    return ""


def _motion(motion: MotionSource, path: Sequence[Frame], settings: Settings) -> Motion:
    steps = []
    for target, older in _pairs(path, settings.way):
        flow, valid = motion.flow(target, older)
        back = None
        if settings.check:
            back, holds = motion.flow(older, target)
            # where the flow back does not hold there is nothing to check with: far off, so that it disagrees
            back = np.where(holds[..., None], back, np.float32(1e6))
        steps.append(checked(flow, back, valid))
    return compose(steps)


def _reference_past(index: Index, path: Sequence[Frame], older: Frame) -> Frame | None:
    """What the reference's network sees first: the frame before the labelled one, from the second step on the
    labelled one itself (specification, 5)."""
    return path[0] if older is not path[0] else index.neighbour(path[0], path[0].position - path[1].position)


class _Chain:
    """The reference's chain in one direction, as far as it has come."""

    def __init__(self, label: np.ndarray, image: np.ndarray) -> None:
        self.label, self.image, self.done = label, image, 0

    def reach(self, index: Index, motion: MotionSource, path: Sequence[Frame]) -> Carried:
        for step in range(self.done + 1, len(path)):
            flow, _ = motion.flow(path[step], path[step - 1], _reference_past(index, path, path[step - 1]))
            self.label, self.image = (
                carry_once(self.label, flow, smooth=False),
                carry_once(self.image, flow, smooth=step == 1),
            )
        self.done = len(path) - 1
        known = np.ones(self.label.shape, bool)
        return Carried(self.label, (self.label != VOID).astype(np.float32), self.image, known)
