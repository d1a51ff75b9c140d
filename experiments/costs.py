"""What stands beside a score: parameters, merging error, step time, the majority."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import peftjax as pj
from experiments.measure import interleave, ratio
from peftjax.data.pipeline import eval_batches
from peftjax.hub.tensors import save_tree
from peftjax.parallel.distributed import led
from peftjax.training.evaluation import evaluate

# What a published count leaves out: a task's head, or the encoder of a signal.
HEAD = "(head|classifier|pooler|score|signal)/.*"


def majority(labels: np.ndarray) -> float | None:
    """Return the share of the largest class; None of scores.

    >>> majority(np.array([0, 1, 1, 2]))
    0.5
    """
    if not np.issubdtype(labels.dtype, np.integer):
        return None
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def size(peft: pj.Peft) -> dict[str, Any]:
    """Return the trainable parameters, with and without the head's, and their share."""
    trainable = sum(peft.trainable.values())
    heads = sum(n for path, n in peft.trainable.items() if re.fullmatch(HEAD, path))
    total = sum(leaf.size for leaf in peft.leaves.avals)
    return {
        "trainable": trainable,
        "trainable_without_head": trainable - heads,
        "share": trainable / total,
    }


def merge(run: Any, adapters: Any, file: Path) -> dict[str, Any]:
    """Save merged weights; return the largest difference of an output they make."""
    adapted = run.outputs(adapters, run.data.test)

    def difference() -> float | None:
        try:
            merged = run.peft.merge(run.base, adapters)
        except pj.NotMergeable as error:
            print(f"{run.config.method}: no merged weights: {error}", flush=True)
            return None
        save_tree(file, merged)
        batches = eval_batches(run.data.test, run.config.train.eval_batch)
        alone = evaluate(run.programs.plain, merged, None, batches)["outputs"]
        return float(np.abs(adapted - alone).max())

    return {"merge_difference": led(difference)}


def step_time(run: Any) -> dict[str, float]:
    """Return the time of whole training steps, optimizer included, and of the bound.

    They are timed in turn, once for the runs that share their programs.
    """
    batch = next(run.batches(seed=0))  # every seed's of one shape
    shapes = tuple((name, column.shape) for name, column in sorted(batch.items()))
    if shapes not in run.programs.timings:
        run.programs.timings[shapes] = _timed(run, batch)
    return run.programs.timings[shapes]


def _timed(run: Any, batch: Any) -> dict[str, float]:
    state, bound = run.state(), run.programs.bound

    def update():
        nonlocal state
        state, metrics = run.programs.step(state, run.sharded, batch)
        return metrics

    calls = {"bound": lambda: bound(run.base, batch, np.uint32(0)), "step": update}
    seconds = interleave(calls, rounds=20)
    return {
        "step_seconds": median(seconds["step"]),
        "bound_seconds": median(seconds["bound"]),
        "step_over_bound": ratio(seconds, "step", "bound"),
    }
