"""Runs that start from another run of the same table, of their method and seed.

Hydra's recipe has MRPC, RTE and STS-B start from the adapter of MNLI. Such a run names
the other by its folder below the table's, so that it is another run if that one's
settings change, and is done after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.plan import folder
from experiments.workdir import ADAPTER, RESULT
from peftjax import storage


class NothingToStartFrom(FileNotFoundError):
    """The run that another one starts from is not there, and nobody does it."""


def linked(
    workdir: Path, configs: Sequence[ConfigDict], of: Callable[..., ConfigDict]
) -> list[ConfigDict]:
    """Return the configurations, each after the one that it starts from.

    Args:
        workdir: of the table.
        configs: of its runs.
        of: returns the configuration of a task, method and seed.
    """
    found = [_linked(workdir, config, of) for config in configs]
    methods = list(dict.fromkeys(config.method for config in found))
    found.sort(key=lambda one: (methods.index(one.method), "start_run" in one))
    return found


def _linked(
    workdir: Path, config: ConfigDict, of: Callable[..., ConfigDict]
) -> ConfigDict:
    if not config.get("start_from") or config.paths.get("start"):
        return config
    place = folder(
        workdir, of(task=config.start_from, method=config.method, seed=config.seed)
    )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.start_run = str(place.parent.relative_to(workdir))
        config.paths.start = str(place / ADAPTER)
    return config


def ready(config: ConfigDict) -> bool:
    """Return whether the run that this one starts from has ended, if there is one."""
    return "start_run" not in config or _result(config).is_file()


def missing(workdir: Path, configs: Sequence[ConfigDict]) -> list[str]:
    """Return a line for each run whose start is neither there nor among the runs."""
    planned = {folder(workdir, config) for config in configs}
    return [
        f"{config.task}, {config.method}, seed {config.seed}: starts from the adapter "
        f"of {config.start_from}, {_result(config).parent}, which is not "
        f"there: add {config.start_from} to --tasks, give --config.paths.start="
        "RUN/adapter, or start=fresh"
        for config in configs
        if not ready(config) and _result(config).parent not in planned
    ]


def _result(config: ConfigDict) -> Path:
    return storage.path(config.paths.start).with_name(RESULT)
