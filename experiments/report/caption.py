"""What a reader of the table has to know: the same words in every format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.report.rows import Row, Table
from experiments.report.runs import Run
from experiments.report.scores import AVERAGE, Score, score

CHOSEN = {
    "last": "after the last step",
    "best_on_validation": "at the best epoch on the validation split",
    "best_on_test": "at the best epoch on the split reported",
}
COSTS = {
    "seconds": "Seconds: mean of the runs, compilation and evaluation included.",
    "step_over_bound": (
        "Step / bound: one training step, optimizer included, relative to the frozen "
        "model's forward and input gradient, timed in turn."
    ),
    "merge_difference": (
        "|adapted - merged|: largest difference of a logit; none where nothing merges: "
        "gates that depend on the token, edits of what a module returns."
    ),
}


@dataclass(frozen=True)
class Caption:
    """The words beside a table.

    Attributes:
        loud: what makes the scores optimistic; empty where nothing does.
        sentences: protocol and columns.
        facts: those of them that a figure states too: splits, seeds, majority class.
        failures: one line per run that failed.
        abandoned: one line per task and setting that the configuration has no longer.
        sources: one line per source of published numbers, and one for their metrics.
        circumstances: one line per hardware and versions, and the dates.
    """

    loud: str
    sentences: tuple[str, ...]
    facts: tuple[str, ...]
    failures: tuple[str, ...]
    abandoned: tuple[str, ...]
    sources: tuple[str, ...]
    circumstances: tuple[str, ...]

    @classmethod
    def of(cls, table: Table) -> Caption:
        """Describe a table."""
        return cls(
            _loud(table),
            tuple(_sentences(table)),
            (*_scores(table), *_facts(table)),
            tuple(_failures(table.rows)),
            tuple(_abandoned(table.abandoned)),
            tuple(_sources(table)),
            tuple(_circumstances(table.results)),
        )


def _sentences(table: Table) -> Iterable[str]:
    runs = [(row.label, run) for row in table.rows for run in row.runs]
    yield from _scores(table)
    yield from _facts(table)
    chosen = {
        (x, run.task): CHOSEN.get(run.selection, run.selection) for x, run in runs
    }
    yield f"Evaluated {_told(chosen)}."
    yield from _unsearched(table)
    if table.groups:
        groups = {(task, ""): table.groups[task] for task in table.averaged}
        yield f"Average: mean of the means of the groups {_told(groups)}."
    elif AVERAGE in table.columns:
        left = [task for task in table.tasks if task not in table.averaged]
        without = f", {', '.join(left)} left out" if left else ""
        yield f"Average: mean over the tasks{without}."
    if _sources(table):
        yield (
            "In brackets: the published number, our difference from it; averages are "
            "compared with those of the published scores."
        )
    if any(row.efficiency for row in table.rows):
        yield (
            "Efficiency: ELEVATER's, s exp(-log10(P / 1e8 + 1)), of the average s and "
            "the mean of the parameters trained, P."
        )
    for name, text in COSTS.items():
        if any(row.values(name) for row in table.rows):
            yield text


def _unsearched(table: Table) -> Iterable[str]:
    """Say which rows have GLoRA's name and not its method."""
    fixed = [
        row.label
        for row in table.rows
        if any(_is_fixed_glora(run.result) for run in row.runs)
    ]
    if fixed:
        yield (
            f"{', '.join(fixed)}: fixed structures of GLoRA, not the method of its "
            "paper, which searches a supernet (glora_search)."
        )


def _is_fixed_glora(result: Mapping[str, Any]) -> bool:
    rules = result.get("config", {}).get("rules", ())
    return "search" not in result and any(
        method["name"] == "GLoRA" for _, method in rules
    )


def _scores(table: Table) -> Iterable[str]:
    metrics = {(x["task"], x["method"]): x["metric"] for x in table.results}
    notes = {(x["task"], x["method"]): x["note"] for x in table.results}
    if metrics:
        yield f"Scores in percent: {_told(metrics)}; {_told(notes)}."


def _facts(table: Table) -> Iterable[str]:
    seeds: dict[tuple[str, str], str] = {}
    for row in table.rows:
        for run in row.runs:
            key = row.label, run.task
            seeds[key] = f"{seeds[key]}, {run.seed}" if key in seeds else f"{run.seed}"
    single = all(seed.isdecimal() for seed in seeds.values())
    shown = "one run each, so that no spread is shown"
    several = "mean ± sample standard deviation of the finished"
    by_task = {(task, label): told for (label, task), told in seeds.items()}
    told = min(_told(seeds), _told(by_task), key=len)
    yield f"Seeds {told}: {shown if single else several}."
    trained, reported, majority = {}, {}, {}
    for result in table.results:
        key = result["task"], ""
        if found := result.get("examples"):
            trained[key] = f"{found['train']:,}"
            reported[key] = f"{found['reported']:,}"
        if (share := result.get("majority")) is not None:
            majority[key] = f"{100 * share:.1f} %"
    if trained:
        yield f"Examples trained on: {_told(trained)}; reported: {_told(reported)}."
    if majority:
        yield f"Majority class: {_told(majority)}."


def _loud(table: Table) -> str:
    """Say where the reported split was looked at to choose what is reported."""
    # GLUE keeps its test labels, so that its development set is both.
    development = any("development" in result["note"] for result in table.results)
    looking = ("best_on_test", *(["best_on_validation"] if development else []))
    chosen = {
        (row.label, run.task): "yes" if run.selection in looking else ""
        for row in table.rows
        for run in row.runs
    }
    split = "development set that is reported" if development else "test split"
    found = _with(chosen, "yes")
    if not found:
        return ""
    which = "" if found == chosen else f" ({_which(chosen, found)})"
    return f"Chosen on the {split}, as some papers do: optimistic{which}."


def _failures(rows: Iterable[Row]) -> Iterable[str]:
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for run in row.runs:
            if run.error is not None:
                reason = " ".join(run.error.split())
                seeds.setdefault((row.label, run.task, reason), []).append(
                    f"{run.seed}"
                )
    for (label, task, reason), failed in seeds.items():
        yield f"{label}, {task}, seed {', '.join(failed)} failed: {reason}"


def _abandoned(runs: Iterable[Run]) -> Iterable[str]:
    parts: dict[str, list[Run]] = {}
    for run in runs:
        key = f"{run.method}, {run.task}, settings {run.settings}"
        parts.setdefault(key, []).append(run)
    for key, own in parts.items():
        yield f"abandoned, no part of the table: {key}: {score(Score.of(own, None))}"


def _sources(table: Table) -> list[str]:
    sources, metrics = {}, {}
    for row in table.rows:
        for task in table.tasks:
            if (number := row.scores[task].published) is not None:
                sources[row.label, task] = number.source
                if number.metric:
                    metrics[task, row.label] = number.metric
    lines = [
        f"Published: {source} ({_which(sources, _with(sources, source))})"
        for source in dict.fromkeys(sources.values())
    ]
    return [*lines, f"Published metrics: {_told(metrics)}"] if metrics else lines


def _circumstances(results: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    results = list(results)
    yield from dict.fromkeys(circumstance(result) for result in results)
    dates = sorted(result["date"][:10] for result in results)
    if dates:
        first, last = dates[0], dates[-1]
        yield first if first == last else f"{first} to {last}"


def circumstance(result: Mapping[str, Any]) -> str:
    """Return the hardware and the versions of one run as text."""
    hardware, versions = result["hardware"], result["versions"]
    cores, devices = hardware["cores"], hardware["devices"]
    device = devices[0] if len(devices) == 1 else f"{len(devices)} x {devices[0]}"
    return (
        f"{hardware['cpu']}, {cores} core{'s' * (cores != 1)}, {device}; "
        f"jax {versions['jax']}, flax {versions['flax']}, Python {versions['python']}"
    )


Pairs = Mapping[tuple[str, str], str]


def _told(found: Pairs) -> str:
    """Return the value that all have, or each value with what has it."""
    values = list(dict.fromkeys(found.values()))
    if len(values) == 1:
        return values[0]
    return ", ".join(f"{x} ({_which(found, _with(found, x))})" for x in values)


def _with(found: Pairs, value: str) -> Pairs:
    return {key: other for key, other in found.items() if other == value}


def _which(found: Pairs, part: Pairs) -> str:
    """Name the first of each pair, and the second unless all of the first's are in."""
    names = []
    for first in dict.fromkeys(key[0] for key in part):
        all_of = [key[1] for key in found if key[0] == first]
        seconds = [key[1] for key in part if key[0] == first]
        others = [second for second in all_of if second not in seconds]
        if not others:
            names.append(first)
        elif len(others) < len(seconds):
            names.append(f"{first} but not {', '.join(others)}")
        else:
            names.append(f"{first}: {', '.join(seconds)}")
    return ("; " if any(" " in name for name in names) else ", ").join(names)
