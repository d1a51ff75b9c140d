"""A table by many runs at a time, one on each core of a CPU.

A step of a small model takes one core as long as two: it is the operations, not the
arithmetic. So each core has a process that does all seeds of a method at a time, and
compiles its programs once. Which core does a run changes no bit of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import cli, starts
from experiments.preemption import SIGNALS, Stopped
from experiments.programs import ProgramCache
from experiments.table.devices import watched
from experiments.table.heard import Speaker, heard
from experiments.table.runs import fill
from peftjax.training.loop import Preempted
from peftjax.training.progress import Tell, silent

Name = tuple[str, str, int]  # task, method, seed


def cores() -> list[int]:
    """Return the cores that this process may use."""
    with suppress(AttributeError):  # not where a process cannot be kept to a core
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def fill_by_core(
    workdir: Path,
    source: cli.Source,
    configs: Sequence[ConfigDict],
    stop: Callable[[], bool],
    tell: Tell = silent,
) -> None:
    """Do all runs, as many at a time as there are cores; return when all are done.

    Args:
        workdir: of the table.
        source: of the configurations; each process makes its own of it.
        configs: of the runs.
        stop: asked while they run; True stops all.
        tell: as `fill` takes it.

    Raises:
        ChildProcessError: one of the processes was killed; runs can be resumed.
        Exception: of a run; the others are stopped first, and can be resumed.
        Stopped: it was asked to stop.
    """
    groups: dict[tuple[str, str], list[Name]] = {}
    for one in configs:
        name = one.task, one.method, one.seed
        groups.setdefault((one.method, one.task), []).append(name)
    mine = cores()[: len(groups)]
    spawn = multiprocessing.get_context("spawn")
    asked, free = spawn.Event(), spawn.SimpleQueue()
    for place in enumerate(mine):
        free.put(place)
    given = workdir, replace(source), asked.is_set
    with (
        heard(spawn, len(mine), tell) as ends,
        ProcessPoolExecutor(len(mine), spawn, _begin, (free, ends, given)) as pool,
    ):
        runs = [pool.submit(_fill, names) for names in groups.values()]
        try:
            watched(runs, stop, asked.set)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"{workdir}: a process that did runs was killed (is there memory for "
                f"{len(mine)} at a time?); the same command resumes"
            ) from error


@dataclass(frozen=True)
class _Worker:
    """What a process keeps between the runs that it does."""

    workdir: Path
    source: cli.Source
    stop: Callable[[], bool]
    tell: Tell

    @cached_property
    def cache(self) -> ProgramCache:
        return ProgramCache()


_workers: list[_Worker] = []  # of this process: one


def _begin(
    free: SimpleQueue[tuple[int, int]],
    ends: Sequence[Connection],
    given: tuple[Any, ...],
) -> None:
    """Keep this process to a core of its own, as long as its parent lives."""
    cli.quieten()
    number, core = free.get()
    sys.stdout = speaker = Speaker(ends[number])
    with suppress(AttributeError):
        os.sched_setaffinity(0, {core})
    for one in SIGNALS:  # the parent hears them, and asks
        signal.signal(one, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workers.append(_Worker(*given, speaker.tell))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _fill(names: Sequence[Name]) -> None:
    """Do the runs of these names, in a process that `_begin` began."""
    (worker,) = _workers
    of = worker.source.config
    configs = [of(task=task, method=method, seed=seed) for task, method, seed in names]
    cli.keep_programs(configs[0].paths.cache)
    try:
        fill(
            worker.workdir,
            starts.linked(worker.workdir, configs, of),
            cache=worker.cache,
            stop=worker.stop,
            tell=worker.tell,
        )
    except Preempted as error:
        raise Stopped(str(error)) from error
