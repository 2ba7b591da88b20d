"""Training over several processes on one machine: each takes a share of every batch, all hold the same weights.

The process that was started leads: it starts the others, evaluates, logs and writes files. Together they compute what
one process computes from the whole batch, up to rounding:

- process r of N works on the r-th of N equal slices of each batch; random draws are those of the whole batch
- a loss is this process's part of the loss of the whole batch (`summed`, `part_of_mean`): the parts add up to it
- gradients are added up after the backward passes (`sum_gradients`), before they are clipped
- batch normalisation has the statistics of the whole batch, dropout its masks (`share_layers`)

With one process every function here returns its argument.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import connection, resource_tracker

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from semivid.errors import UserError
from semivid.models.precision import at_least_float32
from semivid.pipeline.process import die_with_parent

log = logging.getLogger("semivid")
HOST = "127.0.0.1"
# The others wait this long for the leader, who may evaluate meanwhile; a death is noticed at once, by other means.
PATIENCE = timedelta(days=2)
# So long the leader has, after another process failed, to come to its own end.
GRACE_SECONDS = 10.0
BUCKET_VALUES = 2**23  # of gradients that are added up at once: 32 MB


# ---- who am I


def processes() -> int:
    """How many processes train together; 1 outside `together`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def leads() -> bool:
    """Whether this process evaluates and writes files."""
    return rank() == 0


def own_slots(batch_size: int) -> slice:
    """The positions in a batch that are this process's. Raises UserError if it cannot be divided evenly."""
    count = processes()
    if batch_size % count:
        raise UserError(
            f"params.yaml: a batch of {batch_size} cannot be divided over {count} processes; change its size or "
            "`train.processes`"
        )
    share = batch_size // count
    return slice(rank() * share, (rank() + 1) * share)


# ---- values of all processes


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, the same bits in each; without gradient."""
    if processes() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def part_of_mean(mean: Tensor) -> Tensor:
    """What the mean over this process's slice adds to the mean over the whole batch."""
    return mean if processes() == 1 else mean / processes()


def gathered(value: Tensor | None) -> Tensor | None:
    """The slices (b, ...) of all processes as one batch (N b, ...), in order; without gradient. None stays None."""
    if value is None or processes() == 1:
        return value
    value = value.detach().contiguous()
    parts = [torch.empty_like(value) for _ in range(processes())]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def own(batch: Tensor) -> Tensor:
    """This process's slice of a whole batch."""
    return batch if processes() == 1 else batch[own_slots(len(batch))]


def sum_gradients(module: nn.Module) -> None:
    """Add up the gradients of all processes, in place; to be called after the last backward pass of a step.

    Parameters without a gradient (heads that are not used) have none in any process, and are left out.
    """
    if processes() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel()
        if gradient is gradients[-1] or size > BUCKET_VALUES:
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            for g, values in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(values.view(g.shape))
            bucket, size = [], 0


# ---- layers that see more than one sample


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are those of all processes' x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, variance, eps):
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, mean, variance = ctx.saved_tensors
        over, shape = _but_channels(x), (1, -1, *[1] * (x.ndim - 2))
        scale = torch.rsqrt(variance + ctx.eps)
        normalised = (at_least_float32(x) - mean.view(shape)) * scale.view(shape)
        gradient = at_least_float32(gradient)
        own_sums = torch.stack([gradient.sum(over), (gradient * normalised).sum(over)])
        # x acts on the loss through the statistics too, and these act in every process.
        means = summed(own_sums) / (x.numel() // x.shape[1] * processes())
        to_x = gradient - means[0].view(shape) - normalised * means[1].view(shape)
        to_x = (to_x * (scale * weight).view(shape)).to(x.dtype)
        return to_x, own_sums[1], own_sums[0], None, None, None


def _but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


class _SharedBatchNorm:
    """Batch normalisation with the statistics of the whole batch; torch's own SyncBatchNorm needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            variance, mean = torch.var_mean(at_least_float32(x), _but_channels(x), correction=0)
            means, variances = gathered(torch.stack([mean, variance])[None]).unbind(1)  # each (N, C)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            count = x.numel() // x.shape[1] * processes()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        x = _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps)
        for further in ("drop", "act"):  # timm's layer goes on with these
            x = getattr(self, further, nn.Identity())(x)
        return x


class _SharedDropout:
    """Dropout with the mask of the whole batch, as one process would draw it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # Drawn in the order of memory, as for the whole batch.
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        shape = (len(x) * processes(), *x.shape[1:])
        dtype = torch.promote_types(x.dtype, torch.float32)
        ones = torch.empty(shape, dtype=dtype, device=x.device, memory_format=layout).fill_(1)
        return (x * own(super().forward(ones))).to(x.dtype)


def share_layers(module: nn.Module) -> None:
    """Make the layers of `module` that depend on the batch act on the batch of all processes; keys stay as they are."""
    if processes() == 1:
        return
    for layer in list(module.modules()):
        kind = type(layer)
        if hasattr(layer, "least_batch"):  # a limit of one process alone
            layer.least_batch = 1
        for base, shared in (
            (nn.modules.batchnorm._BatchNorm, _SharedBatchNorm),
            ((nn.Dropout, nn.Dropout2d), _SharedDropout),
        ):
            if isinstance(layer, base) and not isinstance(layer, shared):
                layer.__class__ = type(kind.__name__, (shared, kind), {})


def share(method: nn.Module) -> None:
    """Ready a method for `processes`. Raises UserError if its step is not made for more than one.

    A method's class says that it is with ``in_parallel = True``, for itself alone: a subclass has another step.
    """
    if processes() > 1 and not vars(type(method)).get("in_parallel"):
        raise UserError(
            f"params.yaml: `train.processes` is {processes()}, but {type(method).__name__} trains in one process; "
            "set it to 1"
        )
    share_layers(method)


# ---- starting and ending


def over_processes(train: Callable) -> Callable:
    """Decorates ``train(stage, ...)``: the running stage command is run by `stage.params.train.processes` processes.

    What the command does before is done by each of them and must write nothing; what it does after, by the leader.
    """

    @functools.wraps(train)
    def run(stage, *args, **kwargs):
        # The others run the whole command again and so come here too, with their own data, streams and networks.
        command = getattr(sys.modules["__main__"], "main", None)
        with together(stage.params.train.processes, command, stage):
            result = train(stage, *args, **kwargs)
        if not leads():
            sys.exit()
        return result

    return run


@contextmanager
def together(count: int, function: Callable, *arguments: object) -> Iterator[None]:
    """A group of `count` processes: this one, which leads, and others that call ``function(*arguments)`` meanwhile.

    gloo on the CPU; nccl where there is a GPU, the r-th for process r. With `count` 1, and in the others, where
    `function` may come here again, nothing happens. An exception of another process is raised here, whatever became of
    this one; whatever ends this process ends the others. They take no notice of SIGTERM and Ctrl-C: the leader decides.

    function, arguments: must be picklable.
    Raises UserError for too few GPUs, and for a process that was killed.
    """
    if count == 1 or processes() > 1:
        yield
        return
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise UserError(
            f"params.yaml: `train.processes` is {count}, but there are {torch.cuda.device_count()} GPUs; lower it"
        )
    store = dist.TCPStore(HOST, 0, count, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    others = _Others(count, store.port, function, arguments)
    try:
        _join(0, count, store)
        yield
        others.wait()
    except Exception as error:
        # Where another process fails, this one finds the connection closed: theirs is the error to be told.
        if not isinstance(error, UserError) and (cause := others.failure(GRACE_SECONDS / 2)):
            raise cause from None
        raise
    finally:
        others.end()
        if dist.is_initialized():
            dist.destroy_process_group()


class _Others:
    """The processes that the leader starts."""

    def __init__(self, count: int, port: int, function: Callable, arguments: Sequence[object]) -> None:
        context = mp.get_context("spawn")
        self.count, self.pipes, self.running = count, [], []
        self._failures: list[Exception] = []
        self._looking, self._ended = threading.Lock(), threading.Event()
        # Ctrl-C goes to every process of a terminal: until they ignore it, it is held back from them.
        resource_tracker.ensure_running()  # else it would be started below, and release the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            for number in range(1, count):
                here, there = context.Pipe(duplex=False)
                process = context.Process(
                    target=_follow, args=(number, count, port, os.getpid(), there, function, arguments)
                )
                process.start()
                there.close()
                self.pipes.append(here)
                self.running.append(process)
        except BaseException:
            self.end()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self, patience: float) -> Exception | None:
        """What made another process fail, if one does within `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            with self._looking:
                for number, (process, pipe) in enumerate(zip(self.running, self.pipes, strict=True), 1):
                    with suppress(EOFError, OSError):  # it ended without a word
                        if not pipe.closed and pipe.poll():
                            self._failures.append(pipe.recv())
                            pipe.close()
                            continue
                    if process.exitcode and not pipe.closed:
                        pipe.close()
                        self._failures.append(self._killed(number, process.exitcode))
            # One that only lost its connection is not the cause.
            if self._failures:
                return min(self._failures, key=lambda e: isinstance(e, RuntimeError))
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def _killed(self, number: int, code: int) -> UserError:
        how = f"was killed (signal {-code}); free memory or" if code < 0 else f"ended with code {code};"
        return UserError(
            f"process {number} of 0..{self.count - 1} of the training {how} lower `train.processes`; "
            "the same command continues"
        )

    def _watch(self) -> None:
        """End this process too if another fails while it can notice nothing, as when it waits for a GPU."""
        running = {p.sentinel: p for p in self.running}
        while running:
            for sentinel in connection.wait(list(running)):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode and not self._ended.wait(GRACE_SECONDS):
                    log.error("error: %s", self.failure(0))
                    self.end()
                    os._exit(2)

    def wait(self) -> None:
        """Let them come to their end; raises the exception of one that failed."""
        for process in self.running:
            process.join(GRACE_SECONDS)
        if cause := self.failure(0):
            raise cause

    def end(self) -> None:
        """Kill those that still run."""
        self._ended.set()
        for process in self.running:
            process.kill()
        for process in self.running:
            process.join()


def _join(number: int, count: int, store: dist.Store) -> None:
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(number)
    elif sys.platform == "linux":
        # Else gloo looks up this machine's name, which need not have an address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=number, world_size=count, timeout=PATIENCE)


def _follow(
    number: int,
    count: int,
    port: int,
    leader: int,
    pipe: connection.Connection,
    function: Callable,
    arguments: Sequence[object],
) -> None:
    """What the other processes do."""
    stopping = (signal.SIGINT, signal.SIGTERM)
    for one in stopping:
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
    die_with_parent(signal.SIGKILL, leader)
    os.environ["SEMIVID_PROGRESS"] = "plain"  # no bars beside the leader's
    try:
        _join(number, count, dist.TCPStore(HOST, port, count, is_master=False, timeout=PATIENCE))
        function(*arguments)
    except Exception as error:
        error.add_note(f"in process {number} of 0..{count - 1}:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"in process {number} of 0..{count - 1}:\n{traceback.format_exc()}")
        pipe.send(error)
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
