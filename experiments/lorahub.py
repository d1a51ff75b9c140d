"""LoraHub's search for one weight a module (arXiv 2307.13269), on a run's few examples.

A run whose `weigh` says how many evaluations, `{"budget": 40}`, starts from the module
that the search makes of those of `upstream`, `A = Σ w_n A_n`, `B = Σ w_n B_n`. Its
rules hold that module fixed: `Composition(1, rank, (1.0,))`. As in the released code
the objective is the mean loss of a token over the number of examples, which are one
batch there, and 0.05 of the mean magnitude of a weight.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from experiments.upstream import UnfitModule, composed
from peftjax.convert import combine
from peftjax.methods.composition import sites
from peftjax.search import weigh


def weighed(one: Any, modules: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the module found, as a list of one, and what the result says of it.

    Args:
        one: the `Run`; its training examples are what the weights are chosen by.
        modules: as `Composition.of` takes them.

    Raises:
        UnfitModule: modules differ in layers, rank or scale.
    """
    config, train = one.config, one.data.train
    try:
        members = sites(modules)
        method = {
            path: combine.lorahub(own, [1.0] * len(own))[0]
            for path, own in members.items()
        }
    except ValueError as error:
        names = ", ".join(config.upstream)
        raise UnfitModule(f"{config.name}, {config.task}: {names}: {error}") from error
    rules = {re.escape(path): lora for path, lora in method.items()}
    arrays = {path: [p for _, p in own] for path, own in members.items()}

    @jax.jit
    def mixed(arrays: Any, weights: jax.Array) -> Any:
        return {
            path: combine.lorahub([(method[path], p) for p in own], weights)[1]
            for path, own in arrays.items()
        }

    @jax.jit
    def alone(arrays: Any, weights: jax.Array) -> Any:
        module = rules, mixed(arrays, weights)
        return pj.Composition.of([module], (1.0,)).adapters

    def loss(weights: np.ndarray) -> float:
        adapters = {**start, **alone(arrays, jnp.asarray(weights, jnp.float32))}
        return one.score(adapters, train)["loss"] / len(train["label"])

    whole = jnp.ones(len(modules), jnp.float32)
    start = composed(config, one.peft, one.base, [(rules, mixed(arrays, whole))])
    found = weigh(loss, len(modules), **config.weigh)
    best = rules, mixed(arrays, jnp.asarray(found.weights, jnp.float32))
    facts = {
        "weights": dict(zip(config.upstream, found.weights.tolist())),
        "objective": float(found.objectives.min()),
        "evaluated": len(found.objectives),
    }
    return [best], {"weighed": facts}
