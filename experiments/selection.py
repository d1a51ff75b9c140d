"""Which epoch's adapters are reported: the last's, or the best's on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from experiments import kept
from experiments.arguments import known
from experiments.checks import SELECTIONS
from experiments.documents import DamagedFile
from experiments.kept import Kept
from experiments.run import Run
from experiments.samples import scored
from experiments.workdir import BEST, METRICS, RunFolder
from peftjax.parallel.distributed import led
from peftjax.training.metrics import read_metrics

Evaluate = Callable[[Any], dict[str, float]]


class Selection:
    """The evaluations of a run, and the best adapters so far in its folder.

    Args:
        one: the run.
        folder: its folder.
    """

    def __init__(self, one: Run, folder: RunFolder):
        self.one, self.folder = one, folder
        self.every = one.steps_per_epoch * one.config.train.eval_epochs
        self.last = one.config.selection == "last"

    def watched(self) -> tuple[str, Mapping[str, Any] | None]:
        """Return the split that is looked at during training, and its name."""
        if known(self.one.config.selection, SELECTIONS, "selection") == "best_on_test":
            return "test", self.one.data.test
        return "validation", self.one.data.validation

    def watch(self) -> Evaluate | None:
        """Return the evaluation during training; it keeps the best adapters so far."""
        one, (name, split) = self.one, self.watched()
        if split is None:
            return None

        def evaluate(state: Any) -> dict[str, float]:
            found = Kept.of(one, state)
            picture = f"step_{int(state.step):06}"
            scores = scored(one, self.folder, found, split, picture)
            if not self.last:
                self._keep(int(state.step), scores[one.outline.metric], found)
            return {f"{name}_{key}": value for key, value in scores.items()}

        return evaluate

    def _keep(self, step: int, score: float, found: Kept) -> None:
        """Save what is the best so far."""
        _, best = led(lambda: self.best(step - 1))
        if best is None or score > best:
            kept.save(self.one, self.folder, BEST, found)

    def chosen(self, last: Kept) -> tuple[int, Kept]:
        """Return the step that is reported and what is kept of it.

        Args:
            last: of the last step.
        """
        one = self.one
        if self.last:
            return one.steps, last
        step, _ = led(lambda: self.best(one.steps))
        return step or one.steps, kept.load(one, self.folder, BEST)

    def best(self, until: int) -> tuple[int, float | None]:
        """Return step and score of the best evaluation so far, the first of equals.

        A score that is not finite is none.

        Raises:
            DamagedFile: the metrics lack one of the evaluations up to step `until`.
        """
        file = self.folder.path / METRICS
        key = f"{self.watched()[0]}_{self.one.outline.metric}"
        scores = _evaluations(file, key)
        due = {*range(self.every, until + 1, self.every)}
        if until == self.one.steps:
            due.add(until)
        if lacks := sorted(due - scores.keys()):
            raise DamagedFile(
                f"{file}: expected the evaluation of step {lacks[0]}, so that the best "
                "epoch cannot be told; --force starts the run again"
            )
        scores = {step: score for step, score in scores.items() if math.isfinite(score)}
        if not scores:
            return 0, None
        step = max(scores, key=lambda step: (scores[step], -step))
        return step, scores[step]


def _evaluations(file: Any, key: str) -> dict[int, float]:
    try:
        lines = read_metrics(file) if file.exists() else []
        found = [(line["step"], line["eval"][key]) for line in lines if "eval" in line]
        return {int(step): float(score) for step, score in found}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFile(
            f"{file}: damaged ({error}), so that the best epoch cannot be told; "
            "--force starts the run again"
        ) from error
