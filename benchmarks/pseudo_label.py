"""One step of pseudo-label training: seconds, peak memory and their parts, against the specification written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from statistics import median
from unittest import mock

from benchmarks import training
from benchmarks.cases import network_arguments, settings
from benchmarks.harness import PLAIN, Fresh, Row, clock, lower_is_better, require, timed

GROUP, PARTS = "Pseudo-label step", "Parts of a pseudo-label step"
CASE, QUICK_CASE = "camvid", "street"
ROUNDS, ROUNDS_MULTITASK, ROUNDS_GPU = 3, 2, 20
LIMIT = 1e-5  # largest relative difference of the losses in double precision
SEED = 3
SHARPEN = 12.0  # the random classifier's weights times this, so that the teacher is sure of some pixels
# The paper's settings (three_ways.md, sections 8, 9 and 12).
OPTIONS = {
    "method": "pseudo_label", "optimizer": "sgd", "lr": 1e-2, "encoder_lr": 1e-3, "weight_decay": 5e-4,
    "schedule": "constant", "milestones": [], "clip": 10.0, "mask": "none", "margin": None, "foreground": None,
    "frames": "unlabelled", "ground_truth": False, "consistency_weight": 1.0, "confidence": 0.968, "ema_decay": 0.99,
    "jitter": 0.8, "jitter_strength": 0.25, "blur": 0.5,
}  # fmt: skip
METHODS = {
    "mean teacher": {},
    "ClassMix": {"mask": "class"},
    "DepthMix": {"mask": "depthmix", "margin": 0.03, "foreground": [0.0, 0.0], "frames": "all", "ground_truth": True},
}
MULTITASK = "multi-task"  # DepthMix with the disparity of the same step
METHODS[MULTITASK] = METHODS["DepthMix"] | {
    "method": "multitask", "pose_lr": 1e-6, "depth_weight": 1.0, "segmentation_weight": 1.0, "min_depth": 0.1,
    "max_depth": 100.0, "auto_mask": True, "intrinsics": "correct", "mixed_pass": "full",
}  # fmt: skip
PROFILED = "DepthMix"
CHECKS = ("difference", "augmented_difference")


class Loop:
    """One network and its teacher in training, the plain or semivid's way; always the same batch.

    `changes` are those of OPTIONS. `exact`: all of the networks and their inputs in double precision; the teacher's
    probabilities and the loss on logits are in single precision, as they always are.
    """

    def __init__(
        self, version: str, case: str, changes: dict, precision: str, threads: int, exact: bool = False
    ) -> None:
        import torch

        from semivid.pipeline.params import MultitaskMethod, PseudoLabel
        from semivid.training.runtime import Runtime

        self.torch, self.train, self.precision = torch, settings(case).train, precision
        self.multitask = changes.get("method") == "multitask"
        self.options = (MultitaskMethod if self.multitask else PseudoLabel)(**OPTIONS | changes)
        self.runtime, self.float = Runtime(threads, precision), torch.float64 if exact else torch.float32
        torch.manual_seed(0)
        with ExitStack() as stack:
            if version == PLAIN:  # the encoders as the library makes them
                stack.enter_context(mock.patch("semivid.models.encoders.keep_depthwise_float32_on_cpu"))
            network = self._network(case).to(self.float)
        if version == PLAIN:
            torch.use_deterministic_algorithms(False)
            self._start_plain(network.to(self.runtime.device).train())
        else:
            self._start_semivid(network)
        self.lap: Callable[[str], None] = lambda part: None
        self.batch = self._batch(*self.train.crop)

    def _network(self, case: str):
        """With random weights, and a classifier that is sure of some pixels."""
        from semivid.models.encoder_decoder import build_segmentation_net
        from semivid.models.multitask import build_multitask_net

        arguments = network_arguments(settings(case))
        if self.multitask:
            shared = ("encoder", "dilated", "weights", "channels", "batch_norm", "aspp", "aspp_dropout")
            shared = {name: arguments[name] for name in shared}
            pose_encoder = settings(case).depth_network.pose_encoder
            network = build_multitask_net(training.CLASSES, **shared, pose_encoder=pose_encoder)
            head = network.mtl_decoder.seg_final_head[-1]
        else:
            network = build_segmentation_net(training.CLASSES, **arguments)
            head = network.segmentation.head[-1]
        with self.torch.no_grad():
            head.weight.mul_(SHARPEN)
        return network

    def _start_semivid(self, network) -> None:
        methods = [import_module(f"semivid.methods.{name}") for name in ("pseudo_label", "multitask")]
        build = methods[self.multitask].build
        self.method = build(network, self.options, self.train, self.runtime, SEED)
        self.runtime.place(self.method).train()
        self.networks = self.method.student, self.method.teacher.network
        self.watched = contextmanager(self._semivid_laps)

        def update(batch: dict, step: int) -> dict:
            return self.method.training_step(self.runtime.move(batch), step)

        def exact_update(batch: dict, step: int) -> dict:
            with ExitStack() as stack:
                for module in methods:
                    stack.enter_context(mock.patch.object(module, "as_float", lambda image: image.double() / 255))
                return update(batch, step)

        self.update = exact_update if self.float is self.torch.float64 else update

    def _start_plain(self, student) -> None:
        import copy

        from benchmarks import plain

        teacher = copy.deepcopy(student.without_pose() if self.multitask else student)
        optimizer = plain.optimizer(student, self.options)
        self.networks = student, teacher
        self.watched = contextmanager(self._plain_laps)

        def update(batch: dict, step: int) -> dict[str, float]:
            means = student, teacher, optimizer, self.options, self.precision
            batch, draws = self.runtime.move(batch), self.draws(step)
            if self.multitask:
                return plain.multitask_step(*means, batch, step, draws, self.noise(step), self.lap)
            return plain.pseudo_label_step(*means, batch, step, draws, self.lap)

        self.update = update

    def draws(self, step: int):
        """What semivid draws in `step`, as `plain.Draws`; were it to draw otherwise, the losses would differ."""
        from benchmarks.plain import Draws
        from semivid.data.strong import SIGMA
        from semivid.training.rng import generator

        o, count = self.options, self.train.batch_size
        rng = generator(SEED, "strong augmentation", step)
        u_jitter, u_blur = rng.random(2)
        order, sigma = rng.permutation(4).tolist(), rng.uniform(*SIGMA)
        factors = generator(SEED, "colour jitter", step).uniform(-o.jitter_strength, o.jitter_strength, (count, 4))
        mask = generator(SEED, "mask", step).random((count, training.CLASSES))
        return Draws(mask, u_jitter < o.jitter, u_blur < o.blur, order, factors, sigma)

    def noise(self, step: int) -> dict:
        """The auto-mask's generators of semivid in `step`, by stream."""
        from semivid.training.rng import torch_seed

        return {
            stream: self.torch.Generator().manual_seed(torch_seed(SEED, "auto-mask noise", stream, step))
            for stream in ("labelled", "unlabelled")
        }

    def _batch(self, width: int, height: int) -> dict:
        """Blobs of colour, classes and disparity with some noise, the same in every process."""
        torch, count = self.torch, self.train.batch_size
        generator = torch.Generator().manual_seed(1)

        def blobs(channels: int) -> torch.Tensor:
            coarse = torch.rand(count, channels, -(-height // 16), -(-width // 16), generator=generator)
            fine = torch.rand(count, channels, height, width, generator=generator)
            size = (height, width)
            return 0.9 * torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.1 * fine

        def images() -> torch.Tensor:
            return (256 * blobs(3)).byte()

        def labels() -> torch.Tensor:
            label = (training.CLASSES * blobs(1)[:, 0]).byte()
            label[:, : height // 10] = 255
            return label

        labelled = torch.arange(count) % 2 == 0
        truth = labels()
        truth[~labelled] = 255
        streams = {
            "labelled": {"image": images(), "label": labels()},
            "unlabelled": {"image": images(), "disparity": blobs(1)[:, 0], "label": truth, "labelled": labelled},
        }
        if self.multitask:
            k = torch.tensor([[0.6 * width, 0, width / 2], [0, 0.6 * width, height / 2], [0, 0, 1]], dtype=self.float)
            for stream in streams.values():
                stream["neighbours"] = torch.stack([stream["image"].roll(shift, -1) for shift in (-2, 2)], 1)
                stream["k"] = k.repeat(count, 1, 1)
        return streams

    def steps_with_and_without_blur(self) -> list[int]:
        """The first step whose batch is jittered alone, and the first that is blurred as well."""
        jittered = [(step, self.draws(step).blur) for step in range(50) if self.draws(step).jitter]
        return [next(step for step, blur in jittered if blur == wanted) for wanted in (False, True)]

    def small_batch(self) -> dict:
        return self._batch(training.SMALL, training.SMALL)

    def changes(self, steps: Sequence[int]) -> tuple[list[dict[str, float]], list]:
        """Losses of some steps on small images, and how the parameters of both networks moved.

        The parameters of a network are one vector.
        """

        def vectors() -> list:
            return [
                self.torch.cat([p.detach().flatten().cpu() for p in network.parameters()]) for network in self.networks
            ]

        start = vectors()
        batch = self.small_batch()
        losses = [{name: float(loss) for name, loss in self.update(batch, step).items()} for step in steps]
        return losses, [end - begin for end, begin in zip(vectors(), start, strict=True)]

    def step(self, count: int = 2) -> float:
        """Mean seconds of two steps, one without and one with blur: half of all steps have it. 1: the first alone."""
        steps = self.steps_with_and_without_blur()[:count]
        return sum(timed(partial(self.update, self.batch, step)) for step in steps) / count

    def parts(self) -> dict[str, float]:
        """Seconds of each part of such a step."""
        seconds: dict[str, float] = {}
        with self.watched():
            for step in self.steps_with_and_without_blur():
                last = clock()

                def lap(part: str) -> None:
                    nonlocal last
                    now = clock()
                    seconds[part] = seconds.get(part, 0.0) + (now - last) / 2
                    last = now

                self.lap = lap
                self.update(self.batch, step)
            self.lap = lambda part: None
        return seconds

    def _plain_laps(self) -> Iterator[None]:
        yield  # the plain step tells its parts itself

    def _semivid_laps(self) -> Iterator[None]:
        """Between two laps lies what the plain step names alike."""

        def told(function: Callable, before: str = "", after: str = "") -> Callable:
            def call(*args, **kwargs):
                if before:
                    self.lap(before)
                result = function(*args, **kwargs)
                if after:
                    self.lap(after)
                return result

            return call

        method = self.method
        module = import_module("semivid.methods.pseudo_label")
        points = [
            (method, "mixed", "labelled batch, forward and backward", "pseudo labels, masks, mixing"),
            (method.teacher, "forward", "", "teacher"),
            (module, "strong_augment", "", "strong augmentation"),
            (module, "clip_gradients", "mixed batch, forward and backward", ""),
            (method.optimizer, "step", "", "clipping and optimiser"),
            (method.teacher, "update", "", "moving average"),
        ]
        with ExitStack() as stack:
            for owner, name, before, after in points:
                stack.enter_context(mock.patch.object(owner, name, told(getattr(owner, name), before, after)))
            yield


_loop: Loop  # of this process


def start(version: str, case: str, method: str, precision: str, threads: int) -> tuple[float, bool, float]:
    """Build this process's loop; returns (MB that the libraries take, whether there is a GPU, a cross entropy).

    That is of the first step, on small images. The rest is compared in double precision: one label that rounding
    turns at bfloat16 changes which classes ClassMix pastes.
    """
    for library in ("timm", "torchvision", "benchmarks.plain", "semivid.methods.pseudo_label"):
        import_module(library)
    import torch

    from semivid.training.runtime import Runtime

    Runtime(threads)

    global _loop
    libraries = training.peak_memory()
    _loop = Loop(version, case, METHODS[method], precision, threads)
    return libraries, torch.cuda.is_available(), _loop.changes([0])[0][0]["cross_entropy"]


def step(count: int = 2) -> float:
    """Seconds of a step of this process's loop, see `Loop.step`."""
    return _loop.step(count)


def parts() -> dict[str, float]:
    """Seconds of its parts."""
    return _loop.parts()


def difference(case: str, method: str, steps: Sequence[int] = (1, 2, 3), **changes) -> float:
    """Largest relative difference of the losses, and of how both networks move (norm by norm), in double precision.

    Without augmentation: its factors are of single precision, and batch normalisation over few pixels magnifies their
    rounding ten thousand times in the gradients. See `augmented_difference`.
    """
    changes = {"jitter": 0.0, "blur": 0.0} | METHODS[method] | changes
    versions = (Loop(version, case, changes, "float32", 1, exact=True) for version in (PLAIN, "semivid"))
    (losses, moves), (ours, our_moves) = (version.changes(steps) for version in versions)
    return max(_apart(losses, ours), *(float((a - b).norm() / a.norm()) for a, b in zip(moves, our_moves, strict=True)))


def augmented_difference(case: str, method: str, steps: int = 8) -> float:
    """Largest difference of some augmented batches, and of the losses of the first augmented step (relative)."""
    from benchmarks import plain
    from semivid.data.strong import strong_augment
    from semivid.training.runtime import as_float

    loop, ours = (Loop(version, case, METHODS[method], "float32", 1, exact=True) for version in (PLAIN, "semivid"))
    image, o = loop.small_batch()["unlabelled"]["image"], loop.options
    seen = [
        plain.strong_augmentation(image.float() / 255, loop.draws(step))
        - strong_augment(as_float(image), SEED, step, o.jitter, o.jitter_strength, o.blur)
        for step in range(steps)
    ]
    both = [version.changes([version.steps_with_and_without_blur()[1]])[0] for version in (loop, ours)]
    return max(_apart(*both), *(float(images.abs().max()) for images in seen))


def _apart(losses: list[dict[str, float]], ours: list[dict[str, float]]) -> float:
    """Largest relative difference of two lists of losses."""
    return max(_relative(row[name], own[name]) for row, own in zip(losses, ours, strict=True) for name in row | own)


def _relative(value: float, other: float) -> float:
    """Infinite where the value is 0, for then nothing is compared."""
    return abs(value - other) / abs(value) if value else float("inf")


def run(case: str, threads: int, quick: bool, common: Fresh) -> list[Row]:
    """Two rows per method and precision, seconds and memory, and the parts of one method's step.

    `common`: the process in which the results are compared; time and memory have two fresh ones per row.
    """
    rows: list[Row] = []
    train, network = settings(case).train, settings(case).network
    size = f"{network.encoder}, {train.batch_size} + {train.batch_size} of {train.crop[0]}x{train.crop[1]}"
    for method in [PROFILED] if quick else METHODS:
        found = max(common.call(f"pseudo_label.{name}", case, method) for name in CHECKS)
        agreement = require(found, LIMIT, f"{method} steps", "in double precision")
        # The others differ from DepthMix by their masks alone.
        both = method in (PROFILED, MULTITASK) and not quick
        count = 1 if method == MULTITASK else 2  # of steps per round: the multi-task ones take long, and blur is little
        for precision in training.PRECISIONS if both else training.PRECISIONS[:1]:
            with Fresh(threads) as first, Fresh(threads) as second:
                processes = {PLAIN: first, "semivid": second}
                started = {
                    v: p.submit("pseudo_label.start", v, case, method, precision, threads) for v, p in processes.items()
                }
                libraries, on_gpu, entropy = zip(*(f.result() for f in started.values()), strict=True)
                require(_relative(*entropy), training.LIMITS[precision], f"cross entropies, {method}, {precision}")
                seconds: dict[str, list[float]] = {version: [] for version in processes}
                for process in processes.values():
                    process.call("pseudo_label.step", 1)
                rounds = ROUNDS_MULTITASK if method == MULTITASK else ROUNDS
                for _ in range(ROUNDS_GPU if on_gpu[0] else 1 if quick else rounds):
                    for version, process in processes.items():
                        seconds[version].append(process.call("pseudo_label.step", count))
                peaks = [p.call("training.peak_memory") for p in processes.values()]
                parts: dict[str, list[dict[str, float]]] = {version: [] for version in processes}
                for _ in range(0 if method != PROFILED else 1 if quick else ROUNDS):
                    for version, process in processes.items():
                        parts[version].append(process.call("pseudo_label.parts"))
            added = [peak - base for peak, base in zip(peaks, libraries, strict=True)]
            name = f"{method} ({size}), {precision}"
            rows.append(lower_is_better(GROUP, name, "s", *seconds.values(), agreement))
            memory = "MB of GPU memory" if on_gpu[0] else "MB of memory"
            rows.append(lower_is_better(GROUP, name, memory, added[:1], added[1:]))
            rows += _rows_of_parts(f"{method}, {precision}", *parts.values())
    return sorted(rows, key=lambda row: row.group == PARTS)


def _rows_of_parts(name: str, plain: list[dict[str, float]], semivid: list[dict[str, float]]) -> list[Row]:
    """One row per part in the order of the step; the case tells its share of semivid's step."""
    medians = {part: median(seconds[part] for seconds in semivid) for part in (semivid[0] if semivid else ())}
    return [
        lower_is_better(
            PARTS,
            f"{name}: {part} ({taken / sum(medians.values()):.1%} of semivid's step)",
            "s",
            *([seconds[part] for seconds in version] for version in (plain, semivid)),
        )
        for part, taken in medians.items()
    ]
