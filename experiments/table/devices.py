"""A table by many runs at a time, one on each device.

A run of a thousand images is too small for 64 chips. Here each device of each process
takes runs of its own, by the claims that workers take them by; the processes do not
even know of each other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.checks import UnfitSettings
from experiments.preemption import Stopped
from experiments.programs import ProgramCache
from experiments.table.runs import done
from peftjax.training.loop import Preempted
from peftjax.training.progress import Tell, silent

POLL_SECONDS = 1.0


def fill_by_device(
    workdir: Path,
    configs: Sequence[ConfigDict],
    stop: Callable[[], bool],
    tell: Tell = silent,
) -> None:
    """Do all runs, each on one device; return when all are done, by whomever.

    Args:
        workdir: of the table.
        configs: of the runs.
        stop: asked after each step; True stops all.
        tell: as `fill` takes it.

    Raises:
        Exception: of a run; the others are stopped first, and can be resumed.
        Preempted, Stopped: it was asked to stop.
        UnfitSettings: the devices of other processes are seen as well.
    """
    if jax.process_count() > 1:
        raise UnfitSettings(
            f"--per-device: {jax.process_count()} processes share their devices here; "
            "on a TPU slice set TPU_PROCESS_BOUNDS=1,1,1, so that each has its own"
        )
    asked, devices = threading.Event(), jax.local_devices()
    left = deque(configs)

    def take() -> ConfigDict | None:
        with suppress(IndexError):
            return left.popleft()

    def work(device: Any) -> None:
        cache = ProgramCache()
        with jax.default_device(device):
            while (one := take()) is not None:
                if not done(workdir, one, cache, asked.is_set, tell):
                    left.append(one)
                    asked.wait(POLL_SECONDS)

    with ThreadPoolExecutor(len(devices)) as pool:
        runs = [pool.submit(work, device) for device in devices]
        watched(runs, stop, asked.set)


def watched(
    runs: Sequence[Future[None]], stop: Callable[[], bool], ask: Callable[[], None]
) -> None:
    """Wait for all; `ask` them to stop where one fails or `stop` says so.

    Raises:
        Exception: the first of theirs; that one was asked to stop is the last reason.
    """
    while wait(runs, POLL_SECONDS, FIRST_EXCEPTION).not_done:
        if stop() or any(run.done() and run.exception() for run in runs):
            ask()
    errors = [error for run in runs if (error := run.exception())]
    for error in sorted(errors, key=lambda x: isinstance(x, Stopped | Preempted)):
        raise error
