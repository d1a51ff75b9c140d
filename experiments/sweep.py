"""Choose learning rates: mean validation accuracy of each method over a grid.

`python -m experiments.sweep --config configs/quickstart.py --methods lora,hra`

The seeds are not those of the table, and the test split is not looked at.
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from experiments.finetune import Task
from experiments.records import configured

SEEDS = (100, 101, 102)


def accuracies(config: ConfigDict) -> list[float]:
    """Return the validation accuracy of each of `SEEDS` after training."""
    task, found = Task(config), []
    for seed in SEEDS:
        state, batches = task.state(seed), task.batches(seed)
        for _ in range(task.steps):
            state, _ = task.step(state, task.sharded, next(batches))
        adapters = task.peft.combine(state.trainable, state.frozen)
        found.append(task.accuracy(adapters, task.data.validation))
    return found


def main() -> None:
    config = CONFIG.value
    for method in METHODS.value or config.methods:
        for lr in config.grid:
            one = configured(config, method)
            one.optim.lr = lr
            scores = accuracies(one)
            print(
                f"{method:10} lr {lr:<7g} validation accuracy "
                f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}"
            )
            sys.stdout.flush()
            # Every learning rate is a program of its own; keep memory flat.
            jax.clear_caches()


if __name__ == "__main__":
    CONFIG = cli.define_config()
    METHODS = flags.DEFINE_list("methods", None, "Methods; by default all.")
    cli.run(main)
