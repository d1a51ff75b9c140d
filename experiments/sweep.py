"""Choose learning rates: mean score of each method over a grid, per task.

`python -m experiments.sweep --config configs/quickstart.py --methods lora,hra`

The scores are those of examples held out from training (`experiments.tasks`); what the
table reports is not looked at, and the seeds are not the table's. Each learning rate is
one line of `WORKDIR/sweep.jsonl`; those that are there already are not repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from experiments.claims import alone
from experiments.finetune import Run
from experiments.records import digest, settings
from peftjax.storage import replacing
from peftjax.training.metrics import read_metrics


def score(config: ConfigDict) -> float:
    """Return the score on the held-out examples after training; NaN if it diverged."""
    run = Run(config, choose=True)
    state, batches = run.state(), run.batches()
    for _ in range(run.steps):
        state, metrics = run.programs.step(state, run.sharded, next(batches))
    if not np.isfinite(metrics["loss"]):
        return float("nan")
    adapters = run.peft.combine(state.trainable, state.frozen)
    return run.score(adapters, run.data.validation)[run.outline.metric]


def read(file: Path) -> dict[str, Any]:
    """Return the lines of the file by their key; a last one cut short is left out."""
    lines = read_metrics(file) if file.exists() else []
    return {line["key"]: line for line in lines}


def add(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write one more line, beside other processes; return all by their key."""
    with alone(file):
        lines = {**read(file), found["key"]: found}
        text = "".join(json.dumps(line) + "\n" for line in lines.values())
        with replacing(file) as new:
            new.write_text(text)
    return lines


def line(method: str, lr: float, scores: list[float]) -> str:
    """Return what is printed of one learning rate."""
    spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{method:10} lr {lr:<7g} held-out score {mean(scores):.4f}{spread}"


def main() -> None:
    config = CONFIG.value
    file = Path(WORKDIR.value or f"runs/{config.name}") / "sweep.jsonl"
    known = read(file)
    for method in METHODS.value or config.table.methods:
        for lr in map(float, GRID.value or config.grid):
            scores = []
            for seed in range(100, 100 + SEEDS.value):
                one = cli.configured(task=config.task, method=method, seed=seed)
                one.optim.lr = lr
                key = digest(settings(one), one.task, seed)
                if key not in known:
                    choice = {"task": one.task, "method": method, "lr": lr}
                    found = {**choice, "seed": seed, "score": score(one)}
                    known = add(file, {"key": key, **found})
                scores.append(known[key]["score"])
            print(line(method, lr, scores), flush=True)


if __name__ == "__main__":
    CONFIG = cli.define_config()
    METHODS = flags.DEFINE_list("methods", None, "Methods; by default the table's.")
    GRID = flags.DEFINE_list("grid", None, "Learning rates; by default the config's.")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds per learning rate.", lower_bound=1)
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder; by default runs/NAME.")
    cli.run(main)
