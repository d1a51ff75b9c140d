"""A row per method: its runs, its scores, and what its results say beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from experiments.arguments import UnknownName
from experiments.published import Numbers
from experiments.report.runs import Run
from experiments.report.scores import (
    AVERAGE,
    Score,
    averaged,
    efficiency,
    published_average,
)


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
        efficiency: ELEVATER's of the average, with the published one, where the
            configuration asks for it; empty where a task has no score.
    """

    label: str
    method: str
    runs: tuple[Run, ...]
    scores: Mapping[str, Score]
    efficiency: str = ""

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
        averaged: those of them that the average is over.
        groups: the group of each task, where the average is one of group means.
        rows: in order.
        abandoned: runs of settings that the configuration no longer has.
    """

    name: str
    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    groups: Mapping[str, str]
    rows: tuple[Row, ...]
    abandoned: tuple[Run, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The tasks and, where several are averaged, `AVERAGE`."""
        return (*self.tasks, AVERAGE) if len(self.averaged) > 1 else self.tasks

    @property
    def summary(self) -> str:
        """The column that stands for all."""
        return AVERAGE if len(self.averaged) > 1 else (self.averaged or self.tasks)[-1]

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """What all runs left, failed ones included."""
        return [run.result for row in self.rows for run in row.runs if run.result]


def table(name: str, runs: Sequence[Run], settings: Mapping[str, Any]) -> Table:
    """Sum up all runs.

    Args:
        name: of the table.
        runs: in the order of rows and columns.
        settings: `config.table`: its `groups`, `all_tasks`, `not_averaged` and
            `published`, if any.

    Raises:
        UnknownName: a task without a group, or what `published` says does not exist.
    """
    numbers, groups = Numbers.of(settings), dict(settings.get("groups") or {})
    current = [run for run in runs if not run.abandoned]
    tasks = tuple(_order(current, settings))
    if groups and (left := [task for task in tasks if task not in groups]):
        raise UnknownName(f"{name}: table.groups has no group for {', '.join(left)}")
    shown_only = settings.get("not_averaged") or ()
    found = Table(
        name,
        tasks,
        averaged=tuple(task for task in tasks if task not in shown_only),
        groups=groups,
        rows=(),
        abandoned=tuple(run for run in runs if run.abandoned),
    )
    complete = set(tasks) == set(settings.get("all_tasks", ()))
    labelled = _labelled(current)
    rows = [_row(found, label, own, numbers, complete) for label, own in labelled]
    if settings.get("efficiency"):
        column = found.summary
        public = numbers if complete else Numbers()  # that of other tasks is no match
        rows = [replace(x, efficiency=_efficiency(x, column, public)) for x in rows]
    return replace(found, rows=tuple(rows))


def _row(
    found: Table, label: str, own: Sequence[Run], numbers: Numbers, complete: bool
) -> Row:
    method = own[0].method
    scores = {
        task: Score.of([x for x in own if x.task == task], numbers.score(method, task))
        for task in found.tasks
    }
    if len(found.averaged) > 1:
        part = {task: scores[task] for task in found.averaged}
        public = published_average(numbers, method, part, found.groups, complete)
        counted = [run for run in own if run.task in part]
        scores[AVERAGE] = averaged(counted, part, found.groups, public)
    return Row(label, method, tuple(own), scores)


def _efficiency(row: Row, column: str, numbers: Numbers) -> str:
    sizes, mean_score = row.values("trainable"), row.scores[column].mean
    public = numbers.score(row.method, "PE")
    ours = f"{efficiency(mean_score / 100, mean(sizes)):.3f}" if mean_score else ""
    return " ".join(filter(None, [ours, f"[{public.value:.3f}]" if public else ""]))


def _labelled(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Return the runs of each row, and its label."""
    part_of, parts = _parts(runs), {}
    for run in runs:
        part = part_of[run.method](run)
        label = f"{run.method} ({part})" if part else run.method
        parts.setdefault(label, []).append(run)
    return [*parts.items()]


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
