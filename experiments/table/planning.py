"""Which runs a table is made of: `plan.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.claims import alone
from experiments.records import digest, plain, settings
from experiments.workdir import PLAN, REMEDY, document
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

    Args:
        config: of the table.
        workdir: its folder.
        configs: of the runs.
        variant: what tells them from runs of other settings.
    """
    file = workdir / PLAN
    with alone(file):
        earlier = document(file, ("runs",), REMEDY)["runs"] if file.exists() else []
        runs = {run["folder"]: run for run in earlier}
        for one in configs:
            place = str(folder(workdir, one).relative_to(workdir))
            facts: dict[str, Any] = {key: one[key] for key in NAMES}
            runs[place] = {"folder": place, **facts, "variant": variant}
        facts = {"name": config.name, "table": plain(config.table)}
        storage.write_json(file, {**facts, "runs": list(runs.values())})
