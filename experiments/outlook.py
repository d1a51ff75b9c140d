"""A table's runs without weights or data: do they build, and how large are they?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments import checks, documents, tasks
from experiments.costs import HEAD
from experiments.optimizer import optimizer, schedule
from experiments.published import Numbers
from experiments.records import digest
from experiments.tasks.task import Outline
from peftjax import storage
from peftjax.core.paths import flatten

FILE, KIND = "dry_run.json", "dry run of peftjax"
MOVE = "not a dry run's, which would replace it: move it"


@dataclass(frozen=True)
class Prospect:
    """One run as it would be trained.

    Attributes:
        task: its task.
        method: its method.
        trainable: parameters.
        without_head: of them, those outside the head.
        optimizer: numbers in the optimizer's state.
        steps: updates.
        counted: whether they are of the data that is there, or of its published size.
        rates: the learning rate of the first update, the highest, that of the last.
    """

    task: str
    method: str
    trainable: int
    without_head: int
    optimizer: int
    steps: int
    counted: bool
    rates: tuple[float, float, float]


@dataclass(frozen=True)
class Comparison:
    """One method beside the published count.

    Attributes:
        method: its name.
        without_head: parameters outside the head, least and most of all tasks.
        trainable: parameters, mean of all tasks.
        published: millions, as printed; empty where there is none.
        verdict: agreement to the printed digits, or the reason.
    """

    method: str
    without_head: tuple[int, int]
    trainable: float
    published: str
    verdict: str


@dataclass(frozen=True)
class DryRun:
    """`dry_run.json`."""

    kind: Literal["dry run of peftjax"]
    runs: list[Prospect]
    methods: list[Comparison]


def show(configs: Sequence[ConfigDict], workdir: Path | None = None) -> None:
    """Print, for every task and method, trainable parameters and the published count.

    Model, rules, schedule and optimizer of each run are built on shapes: nothing is
    read but the size of the data, where it is there, and nothing computed but learning
    rates.

    Args:
        configs: the runs; of several seeds the first counts.
        workdir: where `dry_run.json` goes, if anywhere.

    Raises:
        DamagedFile: a `dry_run.json` is there that is none of ours.
        ValueError: a rule decides nothing, or a method does not fit.
        UnfitSettings: batch or warm-up do not fit the published number of examples.
    """
    if workdir is not None and (file := workdir / FILE).exists():
        documents.read(file, DryRun, MOVE)
    first = {(config.task, config.method): config for config in reversed(configs)}
    plans = Plans()
    runs = [prospect(config, plans) for config in reversed(first.values())]
    found = compare(runs, configs[0].table)
    _print(runs, found)
    if workdir is not None:
        storage.write_json(workdir / FILE, asdict(DryRun(KIND, runs, found)))


def _print(runs: Sequence[Prospect], found: Sequence[Comparison]) -> None:
    print(f"{'task':22}{'method':12}{'without head':>14}{'trainable':>14}", end="")
    print(f"{'optimizer':>14}{'steps':>10}  rate: first, highest, last")
    for run in runs:
        rates = " ".join(f"{rate:<8.3g}" for rate in run.rates)
        print(
            f"{run.task:22}{run.method:12}{run.without_head:14,}{run.trainable:14,}"
            f"{run.optimizer:14,}{run.steps:10,}  {rates.rstrip()}"
        )
    print(f"\n{'method':12}{'without head':>26}{'mean with head':>16}{'published':>11}")
    for one in found:
        sizes = " to ".join(f"{size:,}" for size in dict.fromkeys(one.without_head))
        millions = f"{one.published} M" if one.published else "-"
        print(
            f"{one.method:12}{sizes:>26}{one.trainable:16,.0f}{millions:>11}  "
            f"{one.verdict}"
        )
    counted = sum(run.counted for run in runs)
    print(f"steps: {counted} of {len(runs)} runs by the data there, else as published")
    print(f"{len(runs)} runs build")


def prospect(config: ConfigDict, plans: Plans | None = None) -> Prospect:
    """Build one run on shapes; raises as `show`."""
    outline: Outline = tasks.family(config).outline(config)
    peft, adapters = (plans or Plans()).of(outline, config.rules)
    trainable, _ = peft.partition(adapters)
    sizes = {path: _size(arrays) for path, arrays in trainable.items()}
    heads = sum(size for path, size in sizes.items() if re.fullmatch(HEAD, path))
    there = tasks.family(config).count(config)
    steps, epoch = checks.length(config, there or outline.examples)
    descent = optimizer(config.optim, steps, epoch)
    total = sum(sizes.values())
    return Prospect(
        task=config.task,
        method=config.method,
        trainable=total,
        without_head=total - heads,
        optimizer=_size(jax.eval_shape(descent.init, trainable)),
        steps=steps,
        counted=there is not None,
        rates=_rates(config, steps, epoch),
    )


def compare(runs: Sequence[Prospect], table: ConfigDict) -> list[Comparison]:
    """Return a line per method."""
    numbers, notes, found = Numbers.of(table), table.get("notes") or {}, []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        bare = min(x.without_head for x in own), max(x.without_head for x in own)
        whole = mean(run.trainable for run in own)
        printed = numbers.printed_m(method)
        middle = mean(run.without_head for run in own)
        verdict = _verdict(bare, middle, whole, printed, len(own))
        told = ": ".join(filter(None, [verdict, notes.get(method)]))
        found.append(Comparison(method, bare, whole, printed, told))
    return found


def _verdict(
    bare: tuple[int, int],
    middle: float,
    whole: float,
    printed: str,
    number_of_tasks: int,
) -> str:
    """Return what agrees with the published count to its last digit."""
    if not printed:
        return "no published count"
    digits = len(printed.partition(".")[2])

    def agrees(size: float) -> bool:
        return f"{size / 1e6:.{digits}f}" == printed

    if all(map(agrees, bare)):
        return "agrees, head not counted"
    if agrees(middle):
        return f"agrees, head not counted, mean of {number_of_tasks} tasks"
    if agrees(whole):
        return f"agrees, head counted, mean of {number_of_tasks} tasks"
    return "differs"


def _rates(config: ConfigDict, steps: int, epoch: int) -> tuple[float, float, float]:
    found = schedule(config.optim, steps, epoch)(np.arange(steps))
    rates = np.broadcast_to(np.asarray(found), (steps,))
    if not np.all(np.isfinite(rates)) or rates.min() < 0:
        raise ValueError(f"{config.task}, {config.method}: rates {rates}")
    return float(rates[0]), float(rates.max()), float(rates[-1])


class Plans:
    """Plans of models and rules; runs that differ in the size of their head share one.

    Tracing a model takes seconds.
    """

    def __init__(self) -> None:
        self._plans: dict[Any, tuple[pj.Peft, dict[str, Any]]] = {}
        self._abstract: dict[Any, Any] = {}

    def of(self, outline: Outline, rules: Any) -> tuple[pj.Peft, dict[str, Any]]:
        """Return a plan of these rules, and the shapes of this model's adapters."""
        apply, example = outline.model.apply, outline.example
        if outline.model not in self._abstract:
            self._abstract[outline.model] = outline.abstract()
        variables = self._abstract[outline.model]
        names, leaves, _ = flatten(variables)
        shapes = dict(zip(names, leaves))
        heads = {name for name in shapes if name and re.fullmatch(HEAD, name)}
        body = tuple((name, shapes[name].shape) for name in names if name not in heads)
        key = type(outline.model), body, digest(rules)
        if key not in self._plans:
            peft = pj.adapt(apply, variables, *example, rules=dict(rules))
            fresh = jax.eval_shape(peft.init, jax.random.key(0), variables)
            self._plans[key] = peft, fresh
        peft, adapters = self._plans[key]
        # The head is trained whole or not at all, so its adapters are its own leaves.
        own = {path: {"value": shapes[path]} for path in adapters if path in heads}
        return peft, {**adapters, **own}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
