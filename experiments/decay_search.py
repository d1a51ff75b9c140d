"""Choose learning rate and weight decay on the shots held out, as ELEVATER does.

`python -m experiments.decay_search --config configs/elevater/clip_vit_b32.py`

What is tried, `experiments.decays` says. A trial trains ten epochs; its score is the
best of the held-out shots after one of them. Each trial is one line of
`WORKDIR/search.jsonl`; those that are there already are not repeated, and the
configuration's `searched=FILE` reads the best.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import cli, sweep
from experiments.arguments import known
from experiments.checks import check
from experiments.decays import COARSE, DECAYS, DISTANCES, RATES, search
from experiments.kept import Kept
from experiments.preemption import Stop, Stopped, stop_on_signals
from experiments.programs import ProgramCache
from experiments.records import digest, settings, title
from experiments.run import Run
from peftjax.parallel.distributed import any_of, led
from peftjax.training.progress import BEFORE, FINISHED, STEP, Progress, Tell, silent

EPOCHS = 10
FILE = "search.jsonl"


def trial(
    config: ConfigDict,
    cache: ProgramCache | None = None,
    stop: Stop | None = None,
    tell: Tell = silent,
) -> float:
    """Return the best score on the held-out examples after an epoch; NaN of none.

    Raises:
        Stopped: it was asked to stop.
    """
    tell("preparing data and weights")
    run = Run(config, cache, choose=True, stop=stop)
    state, batches, scores = run.state(), run.batches(), []
    for number in range(1, run.steps + 1):
        state, metrics = run.programs.step(state, run.sharded, next(batches))
        tell(STEP, step=number, steps=run.steps)
        if number % run.steps_per_epoch:
            continue
        if stop is not None and any_of(stop()):
            raise Stopped(f"{title(config)}: stopped; the same command goes on")
        if not np.isfinite(metrics["loss"]):
            break
        found = Kept.of(run, state)
        validation: Any = run.data.validation
        scored = run.score(found.adapters, validation, found.collections)
        scores.append(scored[run.outline.metric])
    return max((x for x in scores if math.isfinite(x)), default=float("nan"))


def of_trial(config: ConfigDict, rate: float, decay: float) -> ConfigDict:
    """Return the configuration of a trial: ten epochs, batches that its shots fill."""
    one, shots = config.copy_and_resolve_references(), config.data.shots
    left = shots - max(1, shots // 5)
    one.train.update(epochs=EPOCHS, batch=max(1, one.train.batch * left // shots))
    one.optim.update(lr=rate, weight_decay=decay)
    return check(one, FILE)


def searched(
    file: Path, config: ConfigDict, cache: ProgramCache, stop: Stop, shown: Progress
) -> tuple[float, float, float]:
    """Return rate, decay and score of one task and method; trials go to the file."""

    def scored(rate: float, decay: float) -> float:
        one = of_trial(config, rate, decay)
        key = digest(settings(one), one.task, one.seed)
        tell = partial(shown.tell, f"lr {rate:g}, decay {decay:g}, {title(one)}")
        lines = led(lambda: sweep.read(file))
        if key in lines:
            tell(BEFORE)
        else:
            value = trial(one, cache, stop, tell)
            names = {"task": one.task, "method": one.method}
            choice = {"key": key, **names, "lr": rate, "weight_decay": decay}
            entry = {**choice, "score": value if math.isfinite(value) else None}
            lines = led(lambda: sweep.add(file, entry))
            tell(FINISHED)
        found = lines[key]["score"]
        return float("nan") if found is None else found

    return search(scored)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Search each task and method, as the command line says."""
    parser = cli.Parser(__doc__)
    for name in ("methods", "tasks"):
        told = "a,b,...; by default the configuration's"
        parser.flag(f"--{name}", type=cli.names, help=told)
    parser.flag("--workdir", type=cli.folder, help="folder; by default runs/NAME")
    options = parser.read(argv)
    config = options.config.config()
    cli.keep_programs(config.paths.cache)
    file = (options.workdir or Path(f"runs/{config.name}")) / FILE
    led(lambda: sweep.read(file))  # raises before anything is trained
    cache, table = ProgramCache(), config.table
    methods, tasks = options.methods or table.methods, options.tasks or table.tasks
    for names, every in ((methods, table.all_methods), (tasks, table.all_tasks)):
        for name in names:
            known(name, every, "method or task")
    most = len(RATES) * (len(DECAYS) // COARSE + 1 + 2 * len(DISTANCES))
    with stop_on_signals() as stop, Progress(most * len(methods) * len(tasks)) as shown:
        for method in methods:
            for task in tasks:
                one = options.config.config(task=task, method=method)
                rate, decay, score = searched(file, one, cache, stop, shown)
                told = f"lr {rate:g}, weight decay {decay:g}: {score:.4f} held out"
                print(f"{task:22}{method:10}{told}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
