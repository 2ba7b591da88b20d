"""The training loop that all methods share: batches, learning rates, evaluation, resuming, logs."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from semivid.data.streams import Stream, batches
from semivid.errors import UserError
from semivid.methods.base import Method
from semivid.models.checkpoints import not_finite
from semivid.training.cost import Cost
from semivid.training.distributed import leads, own_slots, share
from semivid.training.optim import set_rates
from semivid.training.progress import Progress
from semivid.training.resume import load_resume, save_resume
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime

log = logging.getLogger("semivid")
# A resume file is written this long after the last one, or after that many steps.
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_STEPS = 1000

History = list[dict[str, float]]


def _resume(path: Path, method: Method, key: str, cost: Cost | None) -> tuple[int, History, dict[str, torch.Tensor]]:
    """Take up a run where `path` left it: (steps done, history, sums of losses not yet logged)."""
    fresh: tuple[int, History, dict[str, torch.Tensor]] = (0, [], {})
    if not path.exists():
        return fresh
    state = load_resume(path)
    if "key" not in state:
        raise UserError(f"{path}: not a checkpoint of a training run; delete it to start afresh")
    if state["key"] != key:
        log.info("%s belongs to other parameters, inputs or sources: starting afresh", path)
        return fresh
    method.load_state_dict(state["networks"])
    for optimizer, saved in zip(method.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        _match_layouts(optimizer)
    if cost:
        cost.load(state["cost"])
    log.info("resumed at step %d", state["step"])
    return state["step"], state["history"], state["sums"]


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded averages the memory layout of their weights, as a run without interruption has it.

    Another layout takes other kernels, which are slower and may round differently.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _refuse_nan(title: str, values: Mapping[str, torch.Tensor], done: int, checkpoint: Path) -> None:
    """Raise UserError if a loss or weight is not finite: the training is spoilt, and must not be saved."""
    for name in not_finite(values):
        value = values[name]
        what = f"is {float(value)}" if value.ndim == 0 else "holds values that are infinite or not a number"
        kept = f"the last good state is kept in {checkpoint}" if checkpoint.exists() else "no state had been saved yet"
        raise UserError(
            f"{title}: {name} {what} at step {done} or shortly before; lower the learning rate or check the inputs "
            f"({kept})"
        )


def is_evaluated(done: int, every: int | Mapping[str, int]) -> bool:
    """Whether to evaluate after `done` steps (Three Ways section 13).

    every: each so many steps, 0 for never; or {"0": 100, "100": 2500, "30000": 500}: every 100 up to step 100
    inclusive, every 2500 beyond it, every 500 beyond step 30000. Its keys are whole numbers, one of them "0".
    """
    if isinstance(every, Mapping):
        every = every[max((key for key in every if done > int(key)), key=int)]
    return every > 0 and done % every == 0


def _tensors(tree: object, name: str) -> dict[str, torch.Tensor]:
    """All tensors in a nest of dicts and lists, by their path."""
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {k: v for key, value in items for k, v in _tensors(value, f"{name}.{key}").items()}


def fit(
    method: Method,
    streams: Sequence[Stream],
    *,
    iterations: int,
    seed: int,
    runtime: Runtime,
    work: Path,
    key: str,
    evaluate: Callable[[Method], dict[str, float]] | None = None,
    evaluate_every: int | Mapping[str, int] = 0,
    workers: int = 0,
    title: str = "train",
    cost: Cost | None = None,
) -> History:
    """Train `method` for exactly `iterations` steps and return the logged values.

    evaluate        called in eval mode after the steps that `is_evaluated` names, and after the last one
    work, key       folder of the resume file, and the `fingerprint` it must carry to be used
    cost            counts on where an interrupted run left it
    Returns one row {"step": steps done, loss names..., evaluated names...} per evaluation and log interval.
    The result depends neither on `workers` nor on where the run was interrupted: every random draw is a
    function of (seed, purpose, step, position), dropout is reseeded per step, rates are functions of the step.
    With several processes (`semivid.training.distributed`), the first evaluates and saves; all must call this alike.
    SIGTERM, Ctrl-C: the step in progress is finished, its state saved, exit code 143 or 130.
    Raises UserError if a loss, a weight or an optimiser's state becomes infinite or not-a-number; the last good state
    stays in `work`, and a spoilt network is never returned.
    """
    checkpoint = work / "resume.safetensors"
    runtime.place(method)
    share(method)
    start, history, sums = _resume(checkpoint, method, key, cost)
    sums = runtime.move(sums)
    stop_asked = 0

    def on_stop(signum, frame) -> None:
        nonlocal stop_asked
        stop_asked = signum if leads() else 0  # the others are ended with the leader

    previous_handlers = {number: signal.signal(number, on_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    log_every = max(1, iterations // 50)
    last_saved, saved_step = time.monotonic(), start
    progress = Progress(title, start, iterations)
    try:
        for step, batch in enumerate(batches(streams, start, iterations, workers, own_slots), start):
            method.train()
            torch.manual_seed(torch_seed(seed, "torch", step))
            for optimizer in method.optimizers:
                set_rates(optimizer, method.rate(step))
            losses = method.training_step(runtime.move(batch), step)

            # Sums stay tensors: reading a number each step would wait for the device.
            sums = {k: sums[k] + v if k in sums else v for k, v in losses.items()}
            done = step + 1
            last = done == iterations
            row: dict[str, float] = {}
            if done % log_every == 0 or last:
                _refuse_nan(title, sums, done, checkpoint)
                since = done % log_every or log_every
                row |= {k: float(v) / since for k, v in sums.items()}
                sums = {}
            if last:
                _refuse_nan(title, method.state_dict(), done, checkpoint)
            if evaluate and leads() and (last or is_evaluated(done, evaluate_every)):
                method.eval()
                with torch.no_grad():
                    row |= evaluate(method)
            if row:
                history.append({"step": done, **row})
            progress.advance(done, row)
            due = time.monotonic() - last_saved > CHECKPOINT_SECONDS or done - saved_step >= CHECKPOINT_STEPS
            if not last and leads() and (stop_asked or due):
                state = {
                    "key": key,
                    "step": done,
                    "history": history,
                    "sums": sums,
                    "networks": method.state_dict(),
                    "optimizers": [o.state_dict() for o in method.optimizers],
                    "cost": cost.spent() if cost else [],
                }
                # A finite loss can still have had gradients that are not: the state itself is looked at.
                _refuse_nan(title, _tensors(state, "state"), done, checkpoint)
                save_resume(checkpoint, state)
                last_saved, saved_step = time.monotonic(), done
            if stop_asked and not last:
                log.info("stopped at step %d on request; the same command continues", done)
                raise SystemExit(128 + stop_asked)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        progress.close()
    return history


def finish(work: Path) -> None:
    """Remove the resume files of a stage whose outputs are complete."""
    (work / "resume.safetensors").unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


def write_curves(folder: Path, history: History) -> None:
    """Write `history` as DVCLive files (`dvc plots show`, `dvc metrics show`): one TSV per value, a summary JSON."""
    from dvclive import Live

    class Curves(Live):
        def _init_dvc(self) -> None:
            """The pipeline records experiments, not DVCLive; its look at git fails where there is no commit yet."""

    with Curves(dir=str(folder), resume=False, save_dvc_exp=False, dvcyaml=None, monitor_system=False) as live:
        for row in history:
            live.step = int(row["step"])
            for name, value in row.items():
                if name != "step":
                    live.log_metric(name, json.loads(f"{value:.6g}"))
            live.make_summary()
