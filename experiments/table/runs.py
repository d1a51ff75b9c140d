"""Do every run of a table that nobody has done or is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import finetune, search, starts
from experiments.meshes import mesh_of
from experiments.plan import folder
from experiments.preemption import Stopped
from experiments.programs import ProgramCache
from experiments.records import title
from experiments.workdir import RESULT, SEARCH, Busy, claimed
from peftjax.parallel.distributed import any_of, led
from peftjax.training.progress import BEFORE, FINISHED, Tell, silent

POLL_SECONDS = 5.0


def fill(
    workdir: Path,
    configs: Sequence[ConfigDict],
    *,
    cache: ProgramCache | None = None,
    stop: Callable[[], bool] | None = None,
    tell: Tell = silent,
) -> None:
    """Do all runs, beside other jobs; return when all are done.

    The processes of a job do each run together.

    Args:
        workdir: of the table.
        configs: of the runs.
        cache: of their programs.
        stop: as `finetune.run` takes it; asked between runs too.
        tell: told what each run is doing, as `Progress.tell` is.
    """
    left, cache = list(configs), cache or ProgramCache()
    while left:
        busy = [one for one in left if not done(workdir, one, cache, stop, tell)]
        if len(busy) == len(left):
            time.sleep(POLL_SECONDS)
        left = busy


def clear(workdir: Path, configs: Sequence[ConfigDict]) -> None:
    """Delete the runs of a table.

    Raises:
        Busy: another process is at one of them; none is deleted.
        FileExistsError: one is a search.
    """
    with ExitStack() as claims:
        places = [folder(workdir, config) for config in configs]
        _refuse_searches(places)
        for one in [claims.enter_context(claimed(place)) for place in places]:
            one.clear()


def done(
    workdir: Path,
    config: ConfigDict,
    cache: ProgramCache,
    stop: Callable[[], bool] | None,
    tell: Tell,
) -> bool:
    """Do the run unless it is done; return False where another job is at it.

    Or at the run that it starts from.
    """
    if stop is not None and any_of(stop()):
        raise Stopped(f"{workdir}: stopped between runs; the same command resumes")
    if not led(lambda: starts.ready(config)):
        return False
    place = folder(workdir, config)
    name = title(config)
    before = led((place / RESULT).exists)
    try:
        result = _result(config, place, cache, stop, partial(tell, name))
    except Busy:
        return False
    tell(name, BEFORE if before else FINISHED)
    if before:
        print(f"{name}: finished before", flush=True)
    elif result["status"] == "failed":
        print(f"{name}: FAILED: {result['error']}", flush=True)
    else:
        score = result["scores"][result["metric"]]
        seconds = result.get("seconds")
        time_taken = f" ({seconds:.1f} s)" if seconds else ""
        shown = "not finite" if score is None else f"{score:.4f}"
        print(f"{name}: {result['metric']} {shown}{time_taken}", flush=True)
    return True


def _result(
    config: ConfigDict, place: Path, cache: ProgramCache, stop: Any, tell: Tell
) -> Any:
    """Do one run, or one search and what it found, and return its result."""
    if "search" in config:
        options = {"resume": True, "mesh": mesh_of(config), "stop": stop, "tell": tell}
        return search.run(config, place, **options, **config.search)
    with claimed(place) as claim:
        options = {"resume": True, "cache": cache, "stop": stop, "tell": tell}
        return finetune.work(config, claim, **options)


def _refuse_searches(places: Sequence[Path]) -> None:
    """Raise where a search would have to be deleted, which takes hours to repeat."""
    for place in places:
        if (place / SEARCH).exists():
            raise FileExistsError(
                f"{place}: holds a search, which --force does not repeat; delete the "
                "folder, or leave --force out"
            )
