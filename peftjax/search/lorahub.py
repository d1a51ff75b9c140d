"""LoraHub's search: weights of trained modules for a task of a few examples.

Huang et al., "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA
Composition", arXiv 2307.13269; settings are those of the released code.
`peftjax.convert.combine.lorahub` composes modules by the weights found.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

import numpy as np


class Weighed(NamedTuple):
    """What the search found.

    Attributes:
        weights: `[N]`, one for each module.
        tried: `[budget, N]`, what was evaluated, in its order.
        objectives: `[budget]`, the objective of each.
    """

    weights: np.ndarray
    tried: np.ndarray
    objectives: np.ndarray


def weigh(
    loss: Callable[[np.ndarray], float],
    modules: int,
    *,
    budget: int = 40,
    bound: float = 1.5,
    penalty: float = 0.05,
    seed: int = 42,
) -> Weighed:
    """Search without gradients for the weights of least `loss(w) + penalty mean|w|`.

    The search, nevergrad's `NGOpt`, starts at 0, where there is no module, and stays
    within the bounds.

    Args:
        loss: of the examples by the modules at weights `[N]`, float64; one call is one
            evaluation.
        modules: N.
        budget: how many evaluations.
        bound: the largest magnitude of a weight.
        penalty: of the mean magnitude.
        seed: of the search; the same gives the same.

    Raises:
        FloatingPointError: a loss is not finite.
        ImportError: nevergrad is absent.
        ValueError: there is nothing to search for.

    >>> found = weigh(lambda w: float(((w - 1) ** 2).sum()), 2)
    >>> bool(found.objectives.min() < 1), len(found.tried)
    (True, 40)
    """
    import nevergrad

    if modules < 1 or budget < 1 or not bound > 0 or not penalty >= 0:
        raise ValueError(
            f"modules={modules}, budget={budget}, bound={bound}, penalty={penalty}: "
            "expected at least one module and evaluation, bound > 0 and penalty >= 0"
        )
    start = nevergrad.p.Array(init=np.zeros(modules), lower=-bound, upper=bound)
    start.random_state.seed(seed)
    tried, objectives = [], []

    def objective(weights: np.ndarray) -> float:
        value = float(loss(weights)) + penalty * float(np.abs(weights).mean())
        if not isfinite(value):
            raise FloatingPointError(f"loss of weights {weights.tolist()}: {value}")
        tried.append(np.array(weights))
        objectives.append(value)
        return value

    optimizer = nevergrad.optimizers.NGOpt(parametrization=start, budget=budget)
    found = optimizer.minimize(objective)
    return Weighed(np.array(found.value), np.array(tried), np.array(objectives))
