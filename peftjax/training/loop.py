"""The loop: steps, metrics, evaluations, checkpoints, and resuming exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax import storage
from peftjax.parallel.distributed import any_of, is_main
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.metrics import MetricsFile
from peftjax.training.progress import STEP, Tell, silent
from peftjax.training.state import TrainState
from peftjax.training.step import Step
from peftjax.training.trackers import Tracker


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradient became infinite or not a number.

    Attributes:
        what: step, loss and gradient norm.
    """

    def __init__(self, what: str, advice: str = ""):
        super().__init__(what + advice)
        self.what = what


class Preempted(Exception):
    """Training was asked to stop, and can be resumed.

    Attributes:
        step: of the checkpoint that was saved.
    """

    def __init__(self, step: int, checkpoint: Path):
        super().__init__(f"stopped after step {step}; resume from {checkpoint}")
        self.step = step


def train(
    step: Step,
    state: TrainState,
    variables: Any,
    data: Any,
    *,
    steps: int,
    workdir: str | os.PathLike[str],
    log_every: int = 10,
    save_every: int = 1000,
    keep: int = 2,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    eval_every: int = 0,
    resume: bool = False,
    fallback: bool = False,
    stop: Callable[[], bool] | None = None,
    trackers: Sequence[Tracker] = (),
    tell: Tell = silent,
) -> TrainState:
    """Train until `steps` updates are done.

    Writes `workdir/metrics.jsonl` (what the step returns, each the mean since the line
    before; evaluations under `"eval"`) and `workdir/checkpoints/<step>/`. A run that is
    killed and resumed ends with the same adapters, bit for bit.

    Args:
        step: from `make_step`.
        state: from `create_state`; donated.
        variables: the base, from `step.shard_base`.
        data: an iterator of batches with `get_state` and `set_state`.
        steps: updates in all, those before a resumption included.
        workdir: the run's folder.
        log_every: updates between lines of metrics.
        save_every: updates between checkpoints; 0 saves at the end only.
        keep: how many checkpoints to keep.
        evaluate: state to numbers.
        eval_every: updates between evaluations; 0 evaluates at the end only.
        resume: continue from the latest checkpoint, if there is one.
        fallback: let `resume` take an earlier checkpoint where the latest is damaged.
        stop: asked after each update; once it says yes, on any process, a checkpoint is
            saved and `Preempted` raised. Several processes ask each other only where a
            line of metrics, an evaluation or a checkpoint is due.
        trackers: what is told the metrics too, `trackers.TensorBoard` for one.
        tell: told what is being done, `Progress().tell` of this run for one.

    Returns:
        The state after the last update.

    Raises:
        FileExistsError: the folder holds a checkpoint and `resume` is off.
        NonFiniteLoss: naming the step and the last good checkpoint.
        Preempted: `stop` said yes before the last update.
        ValueError: the data ends early, a count is out of range, or the folder's run is
            longer than `steps`.
        CheckpointError: see `Checkpoints.restore`.
    """
    _check_counts(steps=steps, log_every=log_every, least=1)
    _check_counts(save_every=save_every, eval_every=eval_every, least=0)
    workdir = storage.path(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep)
    if _holds_run(checkpoints, steps, resume):
        state = checkpoints.restore(state, data, fallback=fallback)
    start = int(state.step)
    with ExitStack() as stack:
        stack.callback(checkpoints.wait)
        log = _Log(stack, workdir, checkpoints, start, trackers)
        tell("compiling")
        for done in range(start + 1, steps + 1):
            batch = _next(data, done)
            state, metrics = step(state, variables, batch)
            log.add(metrics, len(next(iter(batch.values()))) * jax.process_count())
            save, score, line = (
                done == steps or (every and done % every == 0)
                for every in (save_every, eval_every, log_every)
            )
            due = bool(save or score or line)
            stopped = done < steps and _agreed(stop, due)
            facts = log.flush(done) if due or stopped else {"step": done}
            tell(STEP, **facts, steps=steps)
            # Before the save: a run killed in between evaluates again, and once only.
            if score and evaluate is not None:
                tell("evaluating")
                log.write({"step": done, "eval": evaluate(state)})
            if save or stopped:
                log.keep()
                checkpoints.save(state, data)
            if stopped:
                checkpoints.wait()
                raise Preempted(done, checkpoints.path(done))
            if save or score:
                log.restart_clock()
    return state


def _holds_run(checkpoints: Checkpoints, steps: int, resume: bool) -> bool:
    """Return whether there is a run to continue; refuse one that is in the way."""
    latest = checkpoints.latest()
    if latest is None:
        return False
    if not resume:
        raise FileExistsError(
            f"{checkpoints.path(latest)}: this folder holds a run; resume it, "
            "delete it or choose another workdir"
        )
    if latest > steps:
        raise ValueError(
            f"{checkpoints.path(latest)}: this run is {latest} updates long already, "
            f"and steps={steps}: nothing would be trained"
        )
    return True


def _check_counts(*, least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count != int(count) or count < least:
            raise ValueError(
                f"{name}={count}: expected a whole number, at least {least}"
            )


def _agreed(stop: Callable[[], bool] | None, due: bool) -> bool:
    """Return whether any process wants to stop; the same on all of them."""
    if stop is None or jax.process_count() == 1:
        return stop is not None and bool(stop())
    # To ask waits for all devices; where something is due they are waited for anyway.
    return due and any_of(bool(stop()))


def _next(data: Any, number: int) -> Any:
    try:
        return next(data)
    except StopIteration:
        raise ValueError(
            f"the data ended before step {number}: use more epochs, or fewer steps"
        ) from None


class _Log:
    """Collects the metrics of steps on the devices and writes their means."""

    def __init__(self, stack, workdir, checkpoints, start, trackers):
        self._checkpoints = checkpoints
        self._pending: list[dict[str, jax.Array]] = []
        self._writers: list[Any] = []
        self._file: MetricsFile | None = None
        if is_main():
            self._file = MetricsFile(workdir / "metrics.jsonl", start)
            self._writers.append(self._file)
        for tracker in trackers if is_main() else ():
            self._writers.append(tracker(workdir, start))
            stack.callback(self._writers[-1].close)
        self.restart_clock()

    def restart_clock(self) -> None:
        self._examples, self._since = 0, time.perf_counter()

    def add(self, metrics: dict[str, jax.Array], examples: int) -> None:
        self._pending.append(metrics)
        self._examples += examples
        # One update runs and one waits for it: more would make a stop wait for all.
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2])

    def flush(self, done: int) -> dict[str, Any]:
        """Wait for the devices, check every step since the last line, write means."""
        fetched = jax.device_get(self._pending)
        self._pending = []
        values = {name: np.array([m[name] for m in fetched]) for name in fetched[0]}
        finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        if not finite.all():
            self._stop(done - len(fetched) + 1 + int(np.argmin(finite)), values, finite)
        # A batch of which nothing counted has no loss to take a mean of.
        counts = values["weight"] != 0
        counts |= not counts.any()
        record = {name: float(v[counts].mean()) for name, v in values.items()}
        speed = self._examples / (time.perf_counter() - self._since)
        record = {"step": done, **record, "examples_per_s": round(speed, 1)}
        self.write(record)
        self.restart_clock()
        return record

    def write(self, record: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(record)

    def keep(self) -> None:
        """See that no line is only in memory."""
        if self._file is not None:
            self._file.keep()

    def _stop(self, number: int, values: dict[str, np.ndarray], finite: np.ndarray):
        at = int(np.argmin(finite))
        latest = self._checkpoints.latest()
        good = "none was saved" if latest is None else self._checkpoints.path(latest)
        raise NonFiniteLoss(
            f"step {number}: loss {values['loss'][at]}, gradient norm "
            f"{values['grad_norm'][at]}",
            f"; last good checkpoint: {good}. Look at the batch of that step, lower "
            "the learning rate, or clip the gradient",
        )
