"""A training step of each preset's network: seconds and peak memory, each version in a fresh process."""

from __future__ import annotations

from importlib import import_module
from unittest import mock

from benchmarks.cases import network_arguments, settings
from benchmarks.harness import PLAIN, Fresh, Row, lower_is_better, require, timed

ROUNDS = {"street": 5, "camvid": 5, "cityscapes": 1}
ROUNDS_GPU = 20
PRECISIONS = ("float32", "bfloat16")
LIMITS = {"float32": 1e-3, "bfloat16": 1e-2}  # largest relative difference of `small_steps`
CLASSES = 19
SMALL = 64  # side of the warm-up's images


class Loop:
    """One network in training, the plain or semivid's way; always the same batch."""

    def __init__(self, version: str, case: str, precision: str, threads: int) -> None:
        import torch

        from benchmarks import plain
        from semivid.models.encoder_decoder import build_segmentation_net

        self.torch, params = torch, settings(case)
        options, self.train = params.methods.supervised, params.train
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        if version == PLAIN:
            torch.use_deterministic_algorithms(False)
            # The encoder as the library makes it.
            with mock.patch("semivid.models.encoders.keep_depthwise_float32_on_cpu"):
                network = build_segmentation_net(CLASSES, **network_arguments(params))
            network.to(device).train()
            optimizer = plain.optimizer(network, options)
            self.update = lambda image, label: plain.training_step(
                network, optimizer, options.clip, precision, image.to(device), label.to(device)
            )
        else:
            from semivid.methods.supervised import build
            from semivid.training.runtime import Runtime

            runtime = Runtime(threads, precision)
            network = build_segmentation_net(CLASSES, **network_arguments(params))
            method = build(network, options, self.train, runtime)
            runtime.place(method).train()
            self.update = lambda image, label: method.training_step(
                runtime.move({"labelled": {"image": image, "label": label}}), 0
            )["cross_entropy"]
        self.batch = self._batch(*self.train.crop)

    def _batch(self, width: int, height: int) -> tuple:
        """uint8 images (B, 3, H, W) and labels (B, H, W), the same in every process."""
        generator = self.torch.Generator().manual_seed(1)
        shape = (self.train.batch_size, height, width)
        draw = {"generator": generator, "dtype": self.torch.uint8}
        image = self.torch.randint(0, 256, (shape[0], 3, *shape[1:]), **draw)
        return image, self.torch.randint(0, CLASSES, shape, **draw)

    def small_steps(self) -> list[float]:
        """The losses of two steps on small images: a warm-up, and a sign that both versions learn alike.

        Their gradients are compared in tests/, in double precision: here rounding moves them by percents.
        """
        batch = self._batch(SMALL, SMALL)
        return [float(self.update(*batch)) for _ in range(2)]

    def step(self) -> float:
        """Seconds of one step."""
        return timed(lambda: self.update(*self.batch))


def peak_memory() -> float:
    """Peak memory of this process so far in MB: on the GPU if there is one, else resident."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


_loop: Loop  # of this process


def start(version: str, case: str, precision: str, threads: int) -> tuple[float, bool, list[float]]:
    """Build this process's loop; returns (MB that the libraries take, whether there is a GPU, `small_steps`)."""
    # What is imported here belongs to the libraries' memory, not to the network's.
    for library in ("timm", "torchvision", "benchmarks.plain", "semivid.methods.supervised"):
        import_module(library)
    import torch

    from semivid.training.runtime import Runtime

    Runtime(threads)  # its deterministic mode loads some more of torch

    global _loop
    libraries = peak_memory()
    _loop = Loop(version, case, precision, threads)
    return libraries, torch.cuda.is_available(), _loop.small_steps()


def step() -> float:
    """Seconds of one step of this process's loop."""
    return _loop.step()


def run(case: str, threads: int, quick: bool) -> list[Row]:
    """Two rows per precision: seconds per step, and the memory that training adds to the libraries'."""
    rows = []
    for precision in PRECISIONS[:1] if quick else PRECISIONS:
        with Fresh(threads) as first, Fresh(threads) as second:
            processes = {PLAIN: first, "semivid": second}
            started = {v: p.submit("training.start", v, case, precision, threads) for v, p in processes.items()}
            libraries, on_gpu, learnt = zip(*(f.result() for f in started.values()), strict=True)
            difference = max(abs(a - b) / abs(a) for a, b in zip(*learnt, strict=True))
            agreement = require(difference, LIMITS[precision], f"{case} {precision} steps", "of the loss")
            rounds = ROUNDS_GPU if on_gpu[0] else 2 if quick else ROUNDS[case]
            if rounds > 1:  # a single step takes so long that its warm-up is no matter
                for process in processes.values():
                    process.call("training.step")
            seconds: dict[str, list[float]] = {version: [] for version in processes}
            for _ in range(rounds):
                for version, process in processes.items():
                    seconds[version].append(process.call("training.step"))
            peaks = [p.call("training.peak_memory") for p in processes.values()]
        added = [peak - base for peak, base in zip(peaks, libraries, strict=True)]
        train, network = settings(case).train, settings(case).network
        name = f"{case} ({network.encoder}, {train.batch_size} of {train.crop[0]}x{train.crop[1]}), {precision}"
        rows.append(lower_is_better("Training step", name, "s", *seconds.values(), agreement))
        memory = "MB of GPU memory" if on_gpu[0] else "MB of memory"
        rows.append(lower_is_better("Training step", name, memory, added[:1], added[1:]))
    return rows
