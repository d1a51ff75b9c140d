"""AdaLoRA's allocation of a falling budget of ranks over all layers of a plan.

Zhang et al., arXiv 2303.10512, Algorithm 1; order of the operations as in the torch
library, whose masks, ranks and losses these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.peft import Peft
from peftjax.core.site import Adapters, Site
from peftjax.methods.adalora import AdaLoRA

UpdateFrozen = Callable[[Adapters, Adapters, Adapters, Any, jax.Array], Adapters]
TRAINED = ("a", "b", "e")


def allocate(peft: Peft) -> UpdateFrozen:
    """Return the update of frozen leaves that moves AdaLoRA's ranks.

    For `make_step(..., update_frozen=allocate(peft))`. In each update until the final
    phase the sensitivity |w g| of every entry is smoothed, as is how far it is from its
    mean; a triplet's importance is the product of the two at its entry of e, plus the
    means of those products over its column of A and its row of B. Every `every` updates
    after the warm-up, the most important triplets of all layers together that the
    budget holds keep their value, and the others are set to zero; from there on they
    may grow, and return. In the final phase the same triplets stay zero.

    A number of ranks is a number in the arrays: nothing is compiled anew.

    Args:
        peft: a plan with `AdaLoRA` sites, all of one schedule; scanned layers count,
            and are masked, each for itself.

    Returns:
        `f(frozen, trainable, grads, step, key) -> frozen`, pure; no key is used.

    Raises:
        ValueError: no rule is AdaLoRA, two differ in their schedule, or `total_steps`
            is None.
    """
    sites = [site for site in peft.sites if isinstance(site.method, AdaLoRA)]
    method = _common(peft, sites)
    start, end = method.phases()
    budgets = jnp.asarray(schedule(peft), jnp.int32)
    last = len(budgets) - 1

    def update(
        frozen: Adapters, trainable: Adapters, grads: Adapters, step: Any, key: Any
    ) -> Adapters:
        del key
        new = dict(frozen)
        for site in sites:
            own = frozen[site.path], trainable[site.path], grads[site.path]
            smoothed = _smoothed(method, *own)
            new[site.path] = jax.tree.map(
                lambda x, y: jnp.where(step < end, x, y), smoothed, own[0]
            )
        scores = {site.path: _importance(new[site.path]) for site in sites}
        threshold = _threshold(scores, budgets[jnp.clip(step, 0, last)])
        allocates = (step > start) & (step < end) & (step % method.every == 0)
        for site in sites:
            p, mask = new[site.path], new[site.path]["mask"]
            kept = (scores[site.path] > threshold).astype(mask.dtype)
            mask = jnp.where(allocates | (step == end), kept, mask)
            masks = (allocates | (step >= end)) & (mask == 0)
            pruned = jnp.where(masks, trainable[site.path]["e"], p["pruned"])
            new[site.path] = {**p, "mask": mask, "pruned": pruned}
        return new

    return update


def schedule(peft: Peft) -> np.ndarray:
    """Return how many triplets have a place after each update until the last phase.

    `b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_f - t_i))³`, the paper's Eq. 12.

    Raises:
        ValueError: as `allocate`.

    >>> import flax.linen as nn, peftjax as pj
    >>> model, x = nn.Dense(4), jnp.ones((1, 6))
    >>> v = model.init(jax.random.key(0), x)
    >>> rule = AdaLoRA(rank=4, alpha=4.0, target_rank=1, total_steps=6, warmup=1)
    >>> schedule(pj.adapt(model.apply, v, x, rules={"kernel": rule})).tolist()
    [4, 4, 2, 1, 1, 1, 1]
    """
    sites = [site for site in peft.sites if isinstance(site.method, AdaLoRA)]
    method = _common(peft, sites)
    start, end = method.phases()
    layers = sum(int(np.prod(site.stack, dtype=int)) for site in sites)
    first, final = layers * method.rank, layers * method.target_rank
    budgets = []
    for step in range(end + 1):
        left = 1 - (step - start) / (end - start)
        falling = int((first - final) * left**3 + final)  # in Python's floats, as there
        budgets.append(first if step <= start else falling)
    return np.array(budgets)


def _common(peft: Peft, sites: list[Site]) -> AdaLoRA:
    if not sites:
        found = ", ".join(sorted({str(method) for _, method in peft.rules}))
        raise ValueError(f"rules without AdaLoRA, whose ranks to move; found {found}")
    first, *others = sites
    for other in others:
        if other.method != first.method:
            raise ValueError(
                f"{other.path}: {other.method}; expected the method of {first.path}, "
                f"{first.method}: all layers share one budget"
            )
    assert isinstance(first.method, AdaLoRA)
    return first.method


def _smoothed(
    method: AdaLoRA, frozen: Any, trainable: Any, grads: Any
) -> dict[str, jax.Array]:
    """Return one site's frozen leaves with sensitivities and uncertainties smoothed."""
    new = dict(frozen)
    values = {**trainable, "e": trainable["e"] - frozen["pruned"]}
    for name in TRAINED:
        now, mean = jnp.abs(values[name] * grads[name]), frozen[f"{name}_mean"]
        mean = method.beta1 * mean + (1 - method.beta1) * now
        away, spread = jnp.abs(now - mean), frozen[f"{name}_spread"]
        new[f"{name}_mean"] = mean
        new[f"{name}_spread"] = method.beta2 * spread + (1 - method.beta2) * away
    return new


def _importance(p: Any) -> jax.Array:
    """Return the importance of one site's triplets, `[*stack, r]`."""
    a, b, e = (p[f"{name}_mean"] * p[f"{name}_spread"] for name in TRAINED)
    return e + (a.mean(-2) + b.mean(-1))


def _threshold(scores: dict[str, jax.Array], budget: jax.Array) -> jax.Array:
    """Return the highest score that the budget has no place for."""
    every = jnp.sort(jnp.concatenate([x.reshape(-1) for x in scores.values()]))
    masked = len(every) - budget
    return jnp.where(masked > 0, every[jnp.maximum(masked - 1, 0)], -jnp.inf)
