"""Seeds summed up to a score, and scores to an average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from experiments.published import Number, Numbers
from experiments.report.runs import Run

AVERAGE = "average"


@dataclass(frozen=True)
class Score:
    """One method on one task, or on average; percent.

    Attributes:
        mean: over the finished seeds; None without any.
        std: of the sample; None for a single seed, and for an average where a seed
            lacks a task.
        finished: number of runs with a score.
        failed: number of runs that ended without one.
        missing: number of runs that have not ended.
        published: the paper's number.
    """

    mean: float | None
    std: float | None
    finished: int
    failed: int
    missing: int
    published: Number | None

    @classmethod
    def of(cls, runs: Sequence[Run], published: Number | None) -> Score:
        """Sum up the seeds of one task."""
        scores = [run.score for run in runs if run.score is not None]
        failed = sum(run.error is not None for run in runs)
        missing = len(runs) - len(scores) - failed
        center = mean(scores) if scores else None
        spread = stdev(scores) if len(scores) > 1 else None
        return cls(center, spread, len(scores), failed, missing, published)

    @property
    def difference(self) -> float | None:
        """Our mean less the published number."""
        if self.mean is None or self.published is None:
            return None
        return self.mean - self.published.value


def score(found: Score, unit: str = "seeds") -> str:
    """Return a score, with its deviation and the runs that lack.

    >>> score(Score(71.23, 0.31, 2, 1, 0, None))
    '71.2 ± 0.3 (1 of 3 failed)'
    >>> score(Score(None, None, 0, 0, 3, None))
    'missing'
    """
    planned = found.finished + found.failed + found.missing
    missing = f", {found.missing} missing" if found.missing else ""
    failed = f"{found.failed} of {planned} failed{missing}"
    if found.mean is None:
        if found.failed:
            return failed if missing else "failed"
        return "missing" if planned else ""
    spread = "" if found.std is None else f" ± {found.std:.1f}"
    finished = f"{found.finished} of {planned} {unit}" if missing else ""
    lack = failed if found.failed else finished
    return f"{found.mean:.1f}{spread}" + (f" ({lack})" if lack else "")


def average(scores: Mapping[str, float], groups: Mapping[str, str]) -> float:
    """Return the mean of the group means, or of all tasks where there are no groups.

    >>> average({"a": 1.0, "b": 3.0, "c": 5.0}, {"a": "x", "b": "x", "c": "y"})
    3.5
    """
    grouped: dict[str, list[float]] = {}
    for task, score in scores.items():
        grouped.setdefault(groups.get(task, task), []).append(score)
    return mean(mean(group) for group in grouped.values())


def efficiency(score: float, parameters: float) -> float:
    """Return ELEVATER's performance efficiency, `s exp(-log10(P / 1e8 + 1))`.

    Args:
        score: s, in [0, 1].
        parameters: P, those that are trained.

    >>> round(efficiency(0.6549, 87.9e6), 3), round(efficiency(0.7095, 0.20e6), 3)
    (0.498, 0.709)
    """
    return score * math.exp(-math.log10(parameters / 1e8 + 1))


def averaged(
    runs: Sequence[Run],
    scores: Mapping[str, Score],
    groups: Mapping[str, str],
    published: Number | None,
) -> Score:
    """Return the average of tasks that all have a score, of none otherwise.

    Its deviation is that of the seeds' own averages.
    """
    means = {task: x.mean for task, x in scores.items() if x.mean is not None}
    if len(means) < len(scores):
        return Score(None, None, 0, 0, 0, published)
    seeds: dict[int, dict[str, float]] = {}
    for run in runs:
        of_seed = seeds.setdefault(run.seed, {})
        if run.score is not None:
            of_seed[run.task] = run.score
    whole = len(seeds) > 1 and all(len(x) == len(means) for x in seeds.values())
    return Score(
        average(means, groups),
        stdev(average(x, groups) for x in seeds.values()) if whole else None,
        sum(x.finished for x in scores.values()),
        sum(x.failed for x in scores.values()),
        sum(x.missing for x in scores.values()),
        published,
    )


def published_average(
    numbers: Numbers,
    method: str,
    scores: Mapping[str, Score],
    groups: Mapping[str, str],
    complete: bool,
) -> Number | None:
    """Return the published average of the same tasks, by the same formula.

    Papers average in several ways, so that the one they print is taken only where a
    task's number is unknown, `complete` says that the table has all its tasks, and
    `published.tasks` names it.
    """
    values = {task: x.published.value for task, x in scores.items() if x.published}
    if len(values) == len(scores):
        return Number(average(values, groups), "computed from the published scores")
    if complete and AVERAGE in numbers.tasks:
        return numbers.score(method, AVERAGE)
    return None
