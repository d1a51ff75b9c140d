"""What stands beside a score: parameters, merging error, step time, the majority."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import peftjax as pj
from experiments.measure import interleave, ratio
from peftjax.hub.tensors import save_tree

HEAD = "(head|classifier|pooler)/.*"


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
    trainable = sum(site.trainable for site in peft.sites)
    heads = sum(x.trainable for x in peft.sites if re.fullmatch(HEAD, x.path))
    total = sum(leaf.size for leaf in peft.leaves.avals)
    return {
        "trainable": trainable,
        "trainable_without_head": trainable - heads,
        "share": trainable / total,
    }


def merge(run: Any, adapters: Any, file: Path) -> dict[str, Any]:
    """Save merged weights; return the largest difference of a logit they make."""
    try:
        merged = run.peft.merge(run.base, adapters)
    except pj.NotMergeable as error:
        print(f"{run.config.method}: no merged weights: {error}", flush=True)
        return {"merge_difference": None}
    save_tree(file, merged)
    adapted = run.outputs(adapters, run.data.test)
    alone = run.programs.forward(merged, run.data.test["image"])
    return {"merge_difference": float(np.abs(adapted - np.asarray(alone)).max())}


def step_time(run: Any) -> dict[str, float]:
    """Time whole training steps, optimizer included, in turn with the bound."""
    batch, state = next(run.batches()), run.state()

    def update():
        nonlocal state
        state, metrics = run.programs.step(state, run.sharded, batch)
        return metrics

    frozen = run.programs.bound
    calls = {
        "bound": lambda: frozen(run.base, batch["image"], batch["label"]),
        "step": update,
    }
    seconds = interleave(calls, rounds=20)
    return {
        "step_seconds": median(seconds["step"]),
        "bound_seconds": median(seconds["bound"]),
        "step_over_bound": ratio(seconds, "step", "bound"),
    }
