"""The runs of a table: what was planned, and what each of them left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAN, RESULT = "plan.json", "result.json"
NAMES = ("task", "method", "seed")
REMEDY = "delete it and run experiments.table again"
OF_ALL = (*NAMES, "status", "metric", "note", "hardware", "versions", "date")
OF_FINISHED = (
    "scores",
    "trainable",
    "trainable_without_head",
    "share",
    "adapter_bytes",
)


class DamagedFile(ValueError):
    """A file is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """One planned run.

    Attributes:
        settings: hash of all settings but task, method and seed.
        variant: what the command line said of them, `"optim.lr=0.002"` for one.
        result: what it left; empty where it left nothing.
    """

    task: str
    method: str
    seed: int
    selection: str
    settings: str
    result: Mapping[str, Any]
    variant: str = ""

    @property
    def score(self) -> float | None:
        """The score of the table, percent; None without a finite one."""
        if self.result.get("status") != "finished":
            return None
        score = 100 * self.result["scores"][self.result["metric"]]
        return score if math.isfinite(score) else None

    @property
    def error(self) -> str | None:
        """Why the run has no score; None where it has one or has not ended."""
        if not self.result or self.score is not None:
            return None
        unknown = f"its {self.result['metric']} is not finite"
        return self.result.get("error") or unknown


def read(workdir: Path) -> tuple[dict[str, Any], list[Run]]:
    """Return the plan and its runs, in the order of the configuration.

    That order is of names alone, so that it is the same whichever worker planned first.

    Raises:
        FileNotFoundError: there is no plan.
        DamagedFile: a file is no JSON, lacks something or is of another run.
    """
    file = workdir / PLAN
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected the plan of a table, found none; give the --workdir of "
            "experiments.table"
        )
    plan = document(file, ("name", "table", "runs"), REMEDY)
    for run in plan["runs"]:
        _check(file, run, ("folder", "selection", *NAMES), REMEDY)
    if not plan["runs"]:
        raise DamagedFile(f"{file}: expected runs, found none; {REMEDY}")
    runs = [_run(workdir, run) for run in plan["runs"]]
    methods = _order(plan["table"].get("all_methods", ()), [run.method for run in runs])
    tasks = _order(plan["table"].get("all_tasks", ()), [run.task for run in runs])
    runs.sort(key=lambda run: (methods[run.method], tasks[run.task], run.seed))
    return plan, runs


def _order(first: Any, then: list[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys([*first, *then]))}


def _run(workdir: Path, planned: Mapping[str, Any]) -> Run:
    place = workdir / planned["folder"]
    if not place.resolve().is_relative_to(workdir.resolve()):
        raise DamagedFile(
            f"{workdir / PLAN}: {planned['folder']} leads out of {workdir}"
        )
    names = {name: planned[name] for name in (*NAMES, "selection")}
    names["variant"] = planned.get("variant", "")
    settings = place.parent.name.removeprefix(f"{planned['method']}-")
    file = place / RESULT
    if not file.exists():
        return Run(**names, settings=settings, result={})
    result = document(file, OF_ALL, REMEDY)
    if result["status"] == "finished":
        _check(file, result, OF_FINISHED, REMEDY)
        _check(file, result["scores"], (result["metric"],), REMEDY)
    for name in NAMES:
        if result[name] != planned[name]:
            raise DamagedFile(
                f"{file}: expected {name} {planned[name]!r}, found {result[name]!r}: "
                f"it is of another run; {REMEDY}"
            )
    return Run(**names, settings=settings, result=result)


def document(file: Path, keys: tuple[str, ...], remedy: str) -> dict[str, Any]:
    """Return a JSON file's object, which has these keys.

    Raises:
        DamagedFile: it is not so; the message ends with the remedy.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        size = f"{file.stat().st_size} bytes ({error})"
        raise DamagedFile(f"{file}: expected JSON, found {size}; {remedy}") from error
    _check(file, found, keys, remedy)
    return found


def _check(file: Path, found: Any, keys: tuple[str, ...], remedy: str) -> None:
    if not isinstance(found, dict):
        raise DamagedFile(f"{file}: expected {keys}, found {found!r}; {remedy}")
    if missing := [key for key in keys if key not in found]:
        raise DamagedFile(
            f"{file}: expected {', '.join(missing)}, found only {', '.join(found)}; "
            f"{remedy}"
        )
