"""The runs of a table: what was planned, and what each of them left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import documents
from experiments.documents import DamagedFile
from experiments.workdir import PLAN, REMEDY, RESULT, read_result
from peftjax import storage

NAMES = ("task", "method", "seed")


@dataclass(frozen=True)
class Run:
    """One planned run.

    Attributes:
        settings: hash of all settings but task, method and seed.
        variant: what the command line said of them, `"optim.lr=0.002"` for one.
        result: what it left; empty where it left nothing.
        abandoned: the configuration has other settings now.
        folder: of the run, below the table's.
    """

    task: str
    method: str
    seed: int
    selection: str
    settings: str
    result: Mapping[str, Any]
    variant: str = ""
    abandoned: bool = False
    folder: str = ""

    @property
    def score(self) -> float | None:
        """The score of the table, percent; None without a finite one."""
        if self.result.get("status") != "finished":
            return None
        score = self.result["scores"][self.result["metric"]]
        if score is None or not math.isfinite(score):
            return None
        return 100 * score

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
        DamagedFile: a file is no JSON, lacks something or is of another run, or a run
            is planned twice.
    """
    file = workdir / PLAN
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected the plan of a table, found none; give the --workdir of "
            "experiments.table"
        )
    plan = documents.read(file, documents.Plan, REMEDY)
    if all(run.get("abandoned") for run in plan["runs"]):
        raise DamagedFile(f"{file}: expected runs, found none; {REMEDY}")
    done = [_run(workdir, run) for run in plan["runs"]]
    columns = plan["table"].get("examined") or ()
    runs = [run for one in done for run in (one, *_examined(one, columns))]
    methods = _order(plan["table"].get("all_methods", ()), [run.method for run in runs])
    first = (*plan["table"].get("all_tasks", ()), *columns)
    tasks = _order(first, [run.task for run in runs])
    runs.sort(key=lambda run: (methods[run.method], tasks[run.task], run.seed))
    return plan, runs


def _examined(run: Run, columns: Iterable[str]) -> Iterator[Run]:
    """Yield a run as one of each further set that it was scored on at its end."""
    ended = bool(run.result)
    for column in columns:
        own = {"task": column, "metric": column, "examples": {}, "majority": None}
        scored = column in run.result.get("scores", {column})
        result = {**run.result, **own} if ended and scored else {}
        yield replace(run, task=column, result=result)


def _order(first: Any, then: list[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys([*first, *then]))}


def _run(workdir: Path, planned: Mapping[str, Any]) -> Run:
    place = workdir / planned["folder"]
    if not storage.in_bucket(place) and not (
        place.resolve().is_relative_to(workdir.resolve())  # by a link
    ):
        raise DamagedFile(
            f"{workdir / PLAN}: {planned['folder']} leads out of {workdir}"
        )
    names = {name: planned[name] for name in (*NAMES, "selection")}
    names["variant"] = planned.get("variant", "")
    names["abandoned"] = bool(planned.get("abandoned"))
    names["folder"] = planned["folder"]
    settings = place.parent.name.removeprefix(f"{planned['method']}-")
    file = place / RESULT
    if not file.exists():
        return Run(**names, settings=settings, result={})
    result = read_result(file)
    for name in NAMES:
        if result[name] != planned[name]:
            raise DamagedFile(
                f"{file}: expected {name} {planned[name]!r}, found {result[name]!r}: "
                f"it is of another run; {REMEDY}"
            )
    return Run(**names, settings=settings, result=result)
