"""Which runs a table is made of: `plan.json`.

Runs of settings that the configuration no longer has are kept, as abandoned: they are
no part of the table, but what they cost is not thrown away unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import documents
from experiments.claims import alone
from experiments.records import digest, plain, settings
from experiments.workdir import PLAN, REMEDY
from peftjax import storage

NAMES = ("task", "method", "seed", "selection")


def folder(workdir: Path, config: ConfigDict) -> Path:
    """Return the folder of one run."""
    place = f"{config.method}-{digest(settings(config))}"
    return workdir / config.task / place / f"seed{config.seed}"


def plan(
    config: ConfigDict,
    workdir: Path,
    configs: Sequence[ConfigDict],
    variant: str = "",
) -> None:
    """Record which runs the table is made of; workers of one table add theirs.

    Earlier runs of the same task, method and variant, but of other settings, are
    abandoned: the configuration was changed.

    Args:
        config: of the table.
        workdir: its folder.
        configs: of the runs.
        variant: what tells them from runs of other settings.
    """
    file = workdir / PLAN
    with alone(file):
        earlier = _read(file) if file.exists() else {"runs": []}
        planned = [_entry(workdir, one, variant) for one in configs]
        runs = {run["folder"]: run for run in (*earlier["runs"], *planned)}
        current: dict[Any, set[Path]] = {}
        for run in planned:
            current.setdefault(_row(run), set()).add(_settings(run))
        for run in runs.values():
            if _settings(run) not in current.get(_row(run), {_settings(run)}):
                run["abandoned"] = True
        facts = {"name": config.name, "table": plain(config.table)}
        storage.write_json(file, {**earlier, **facts, "runs": list(runs.values())})


def drop_abandoned(workdir: Path) -> list[str]:
    """Take abandoned runs out of the plan; return their folders, which stay.

    Raises:
        FileNotFoundError: there is no plan.
    """
    file = workdir / PLAN
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the plan of a table, found none")
    with alone(file):
        found = _read(file)
        left = [run for run in found["runs"] if not run.get("abandoned")]
        dropped = [run["folder"] for run in found["runs"] if run.get("abandoned")]
        storage.write_json(file, {**found, "runs": left})
    return dropped


def _read(file: Path) -> dict[str, Any]:
    return documents.read(file, documents.Plan, REMEDY)


def _entry(workdir: Path, config: ConfigDict, variant: str) -> dict[str, Any]:
    place = str(folder(workdir, config).relative_to(workdir))
    facts = {key: config[key] for key in NAMES}
    return {"folder": place, **facts, "variant": variant}


def _row(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["task"], run["method"], run.get("variant", "")


def _settings(run: Mapping[str, Any]) -> Path:
    return Path(run["folder"]).parent
