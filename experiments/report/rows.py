"""A row per method: its runs, its scores, and what its results say beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.arguments import UnknownName
from experiments.published import Numbers
from experiments.report.runs import Run
from experiments.report.scores import AVERAGE, Score, averaged, published_average


@dataclass(frozen=True)
class Row:
    """One method, with one setting per task.

    Attributes:
        label: the method; where the plan has several settings of it, also what the
            command line said of them, or their hash where that does not tell them
            apart.
        method: its name.
        runs: all that were planned, by task and seed.
        scores: by task, and `AVERAGE` where there are several tasks.
    """

    label: str
    method: str
    runs: tuple[Run, ...]
    scores: Mapping[str, Score]

    def of(self, column: str) -> list[Run]:
        """Return the runs of one task, or all for `AVERAGE`."""
        return [run for run in self.runs if column in (run.task, AVERAGE)]

    def values(self, name: str, column: str = AVERAGE) -> list[Any]:
        """Return one entry of every finished run's result that has it."""
        finished = [run.result for run in self.of(column) if run.score is not None]
        return [result[name] for result in finished if name in result]


@dataclass(frozen=True)
class Table:
    """All rows.

    Attributes:
        name: of the table.
        tasks: the columns, in order.
        groups: the group of each task, where the average is one of group means.
        rows: in order.
    """

    name: str
    tasks: tuple[str, ...]
    groups: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The tasks and, where there are several, `AVERAGE`."""
        return (*self.tasks, AVERAGE) if len(self.tasks) > 1 else self.tasks

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """What all runs left, failed ones included."""
        return [run.result for row in self.rows for run in row.runs if run.result]


def table(name: str, runs: Sequence[Run], settings: Mapping[str, Any]) -> Table:
    """Sum up all runs.

    Args:
        name: of the table.
        runs: in the order of rows and columns.
        settings: `config.table`: its `groups`, `all_tasks` and `published`, if any.

    Raises:
        UnknownName: a task without a group, or what `published` says does not exist.
    """
    numbers, groups = Numbers.of(settings), dict(settings.get("groups") or {})
    tasks = tuple(_order(runs, settings))
    if groups and (left := [task for task in tasks if task not in groups]):
        raise UnknownName(f"{name}: table.groups has no group for {', '.join(left)}")
    complete = set(tasks) == set(settings.get("all_tasks", ()))
    part_of = _parts(runs)
    parts: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        part = part_of[run.method](run)
        parts.setdefault((run.method, part), []).append(run)
    rows = []
    for (method, part), own in parts.items():
        scores = {
            task: Score.of(
                [x for x in own if x.task == task], numbers.score(method, task)
            )
            for task in tasks
        }
        if len(tasks) > 1:
            public = published_average(numbers, method, scores, groups, complete)
            scores[AVERAGE] = averaged(own, scores, groups, public)
        label = f"{method} ({part})" if part else method
        rows.append(Row(label, method, tuple(own), scores))
    return Table(name, tasks, groups, tuple(rows))


def _order(runs: Iterable[Run], settings: Mapping[str, Any]) -> list[str]:
    """Return the tasks of the runs, in the order of the configuration."""
    found = dict.fromkeys(run.task for run in runs)
    return sorted(found, key=[*settings.get("all_tasks", ()), *found].index)


def _parts(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    """Return, for each method, what tells its settings on one task apart, if several.

    Settings differ between tasks anyway, so that a hash names those of one task only.
    """
    tellers: dict[str, Callable[[Run], str]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        tellers[method] = next(
            teller
            for teller in (lambda _: "", lambda run: run.variant, lambda x: x.settings)
            if _tells(own, teller)
        )
    return tellers


def _tells(runs: Iterable[Run], teller: Callable[[Run], str]) -> bool:
    """Return whether, on each task, runs that it calls the same have one setting."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        found.setdefault((run.task, teller(run)), set()).add(run.settings)
    return all(len(hashes) == 1 for hashes in found.values())
