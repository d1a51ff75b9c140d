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
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import cli
from experiments.checks import check
from experiments.claims import alone
from experiments.records import digest, settings
from experiments.run import ProgramCache, Run
from experiments.workdir import DamagedFile
from peftjax import storage
from peftjax.training.metrics import read_lines


def score(config: ConfigDict, cache: ProgramCache | None = None) -> float:
    """Return the score on the held-out examples after training; NaN if it diverged."""
    run = Run(config, cache, choose=True)
    state, batches = run.state(), run.batches()
    for _ in range(run.steps):
        state, metrics = run.programs.step(state, run.sharded, next(batches))
    if not np.isfinite(metrics["loss"]):
        return float("nan")
    adapters = run.peft.combine(state.trainable, state.frozen)
    return run.score(adapters, run.data.validation)[run.outline.metric]


def read(file: Path) -> dict[str, Any]:
    """Return the lines of the file by their key; a last one cut short is left out."""
    lines = read_lines(file) if file.exists() else []
    try:
        return {line["key"]: {**line, "score": line["score"]} for line in lines}
    except (KeyError, TypeError) as error:
        raise DamagedFile(
            f"{file}: expected lines of a sweep; choose another --workdir"
        ) from error


def add(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write one more line, beside other processes; return all by their key."""
    with alone(file):
        lines = {**read(file), found["key"]: found}
        text = "".join(json.dumps(line) + "\n" for line in lines.values())
        storage.write_text(file, text)
    return lines


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
    known, cache = read(file), ProgramCache()
    for method in options.methods or config.table.methods:
        for lr in options.grid or config.grid:
            scores = []
            for seed in range(100, 100 + options.seeds):
                one = options.config.config(task=config.task, method=method, seed=seed)
                one.optim.lr = lr
                check(one, "--grid")
                key = digest(settings(one), one.task, seed)
                if key not in known:
                    choice = {"task": one.task, "method": method, "lr": lr}
                    found = {**choice, "seed": seed, "score": score(one, cache)}
                    known = add(file, {"key": key, **found})
                scores.append(known[key]["score"])
            print(line(method, lr, scores), flush=True)


if __name__ == "__main__":
    sys.exit(main())
