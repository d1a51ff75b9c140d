"""Choose learning rates: mean score of each method over a grid, per task.

`python -m experiments.sweep --config configs/quickstart.py --methods lora,hra`

The scores are those of examples held out from training (`experiments.tasks`); what the
table reports is not looked at, and the seeds are not the table's. Each learning rate is
one line of `WORKDIR/sweep.jsonl`; those that are there already are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli, documents
from experiments.checks import check
from experiments.claims import alone
from experiments.kept import Kept
from experiments.preemption import Stop, Stopped, stop_on_signals
from experiments.programs import ProgramCache
from experiments.records import digest, settings, title
from experiments.run import Run
from peftjax import storage
from peftjax.parallel.distributed import any_of, led
from peftjax.training.metrics import read_lines
from peftjax.training.progress import BEFORE, FINISHED, STEP, Progress, Tell, silent

ASK_STEPS = 10  # several processes ask each other whether to stop


def score(
    config: ConfigDict,
    cache: ProgramCache | None = None,
    stop: Stop | None = None,
    tell: Tell = silent,
) -> float:
    """Return the score on the held-out examples after training; NaN if it diverged.

    Raises:
        Stopped: it was asked to stop.
    """
    tell("preparing data and weights")
    run = Run(config, cache, choose=True, stop=stop)
    tell("compiling")
    state, batches = run.state(), run.batches()
    for number in range(run.steps):
        if _asked(stop, number):
            raise Stopped(f"{config.method}: stopped; the same command goes on")
        state, metrics = run.programs.step(state, run.sharded, next(batches))
        tell(STEP, step=number + 1, steps=run.steps)
    if not np.isfinite(metrics["loss"]):
        return float("nan")
    found, validation = Kept.of(run, state), run.data.validation
    return run.score(found.adapters, validation, found.collections)[run.outline.metric]


def _asked(stop: Stop | None, number: int) -> bool:
    if stop is None or jax.process_count() == 1:
        return stop is not None and stop()
    return number % ASK_STEPS == 0 and any_of(stop())


def read(file: Path) -> dict[str, Any]:
    """Return the lines of the file by their key; a last one cut short is left out."""
    lines = read_lines(file) if file.exists() else []
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        documents.check(where, line, documents.Line, "choose another --workdir")
    return {line["key"]: line for line in lines}


def add(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write one more line, beside other processes; return all by their key."""
    with alone(file):
        lines = {**read(file), found["key"]: found}
        text = "".join(json.dumps(line) + "\n" for line in lines.values())
        storage.write_text(file, text)
    return lines


def scored(
    file: Path, config: ConfigDict, cache: ProgramCache, stop: Stop, tell: Tell = silent
) -> float:
    """Return the score of one run: the file's, or one that is added to it."""
    key = digest(settings(config), config.task, config.seed)
    known = led(lambda: read(file))
    if key in known:
        tell(BEFORE)
    else:
        value = score(config, cache, stop, tell)
        names = {name: config[name] for name in ("task", "method")}
        choice = {**names, "lr": config.optim.lr, "seed": config.seed}
        value = value if np.isfinite(value) else None
        entry = {"key": key, **choice, "score": value}
        known = led(lambda: add(file, entry))
        tell(FINISHED)
    found = known[key]["score"]
    return float("nan") if found is None else found


def line(method: str, lr: float, scores: list[float]) -> str:
    """Return what is printed of one learning rate."""
    spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{method:10} lr {lr:<7g} held-out score {mean(scores):.4f}{spread}"


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Score the grid of each method, as the command line says."""
    parser = cli.Parser(__doc__)
    parser.flag(
        "--methods", type=cli.names, help="a,b,...; by default the configuration's"
    )
    parser.flag("--grid", type=cli.rates, help="rates; by default the configuration's")
    parser.flag("--seeds", type=cli.count, default=3, help="per learning rate")
    parser.flag("--workdir", type=cli.folder, help="folder; by default runs/NAME")
    options = parser.read(argv)
    config = options.config.config()
    cli.keep_programs(config.paths.cache)
    file = (options.workdir or Path(f"runs/{config.name}")) / "sweep.jsonl"
    led(lambda: read(file))  # raises before anything is trained
    cache = ProgramCache()
    methods = options.methods or config.table.methods
    grid = options.grid or config.grid
    runs = len(methods) * len(grid) * options.seeds
    with stop_on_signals() as stop, Progress(runs) as shown:
        for method in methods:
            for lr in grid:
                choices = {"task": config.task, "method": method}
                scores = []
                for seed in range(100, 100 + options.seeds):
                    one = options.config.config(**choices, seed=seed)
                    one.optim.lr = lr
                    check(one, "--grid")
                    tell = partial(shown.tell, f"lr {lr:g}, {title(one)}")
                    scores.append(scored(file, one, cache, stop, tell))
                print(line(method, lr, scores), flush=True)


if __name__ == "__main__":
    sys.exit(main())
