"""The supernet of a search: its configuration, its training, its candidates' scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.checks import UnfitSettings
from experiments.preemption import Stop
from experiments.run import Run
from peftjax.data.pipeline import eval_batches
from peftjax.parallel.distributed import led
from peftjax.search import Space, evolve, make_score
from peftjax.training.loop import train
from peftjax.training.progress import Tell, silent

SAVE_STEPS = 500  # between checkpoints of the supernet, at most


def supernet(config: ConfigDict) -> ConfigDict:
    """Return the configuration with each GLoRA as a supernet of its rank.

    Raises:
        UnfitSettings: no rule is a GLoRA, one has three ranks or matrix semantics, or
            another one moves frozen leaves of its own. All others stay as they are.
    """
    rules = []
    for pattern, method in config.rules:
        if isinstance(method, pj.GLoRA):
            if not isinstance(method.rank, int) or method.semantics != "elementwise":
                raise UnfitSettings(
                    f"{config.name}: {pattern}: {method}: expected one rank and "
                    "element-wise semantics, of which there is a supernet"
                )
            method = pj.GLoRASupernet(method.rank)
        elif method.moved_by and not isinstance(method, pj.GLoRASupernet):
            raise UnfitSettings(
                f"{config.name}: {pattern}: {method}: expected no method beside GLoRA "
                "whose frozen leaves move too"
            )
        rules.append((pattern, method))
    if not any(isinstance(method, pj.GLoRASupernet) for _, method in rules):
        found = ", ".join(sorted({type(method).__name__ for _, method in rules}))
        raise UnfitSettings(
            f"{config.name}: method={config.method}: a search needs layers of GLoRA, "
            f"found {found}; give --config FILE:method=glora"
        )
    return changed(config, method="glora_search", rules=tuple(rules))


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    for key, value in values.items():
        with changed.unlocked(), changed.ignore_type():
            changed[key] = value
    return changed


def on_test(config: ConfigDict) -> bool:
    return config.selection == "best_on_test"


def space_of(one: Run, limit: int, settings: dict[str, Any], state: Any) -> Space:
    """Return what is searched; what cannot be is refused before anything is trained."""
    space = Space(one.peft)
    if stacked := [site.path for site, _ in space.supernets if site.stack]:
        raise UnfitSettings(
            f"{one.config.name}: {stacked[0]}: scanned layers share one method and "
            "cannot become different ones; switch scan_layers off"
        )
    try:
        once = {**settings, "generations": 0}
        key = jax.random.key(one.config.seed)
        evolve(lambda g: [0.0] * len(g), space, limit, key, **once, state=state)
    except (TypeError, ValueError) as error:
        raise UnfitSettings(f"{one.config.name}: {error}") from error
    return space


def trained(one: Run, place: Path, stop: Stop | None, tell: Tell = silent) -> Any:
    """Return the adapters of the trained supernet."""
    every = one.steps_per_epoch * one.config.train.eval_epochs
    state = train(
        one.programs.step,
        one.state(),
        one.sharded,
        one.batches(),
        steps=one.steps,
        workdir=place,
        save_every=min(every, SAVE_STEPS),
        resume=True,
        stop=stop,
        tell=tell,
    )
    return jax.device_get(one.peft.combine(state.trainable, state.frozen))


def selected(one: Run) -> Any:
    """Return the split that structures are selected on.

    Raises:
        UnfitSettings: there is none.
    """
    split = one.data.test if on_test(one.config) else one.data.validation
    if split is None:
        raise UnfitSettings(
            f"{one.config.name}, {one.config.task}: has no validation split to select "
            "a structure on"
        )
    return split


def scores_of(
    one: Run, space: Space, adapters: Any, split: Any = None
) -> Callable[[Any], Any]:
    """Return the task's metric of structures on a split.

    By default the fitness: on the one that is selected on.
    """
    split = selected(one) if split is None else split
    outline, labels = one.outline, split["label"]
    score = make_score(
        space,
        outline.outputs,
        lambda rows: outline.score(labels, rows["outputs"])[outline.metric],
        one.base,
        adapters,
        eval_batches(split, one.config.train.eval_batch),
        devices=list(one.programs.mesh.local_devices),
    )
    return lambda genes: np.array(led(lambda: score(genes).tolist()))
