"""EVA: LoRA that starts from what its layers read, and ranks where that varies.

Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
arXiv 2410.07170.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import Method
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters
from peftjax.methods.lora import LoRA
from peftjax.starts.moments import Batch, dense_sites, moments


class Started(NamedTuple):
    """Rules and the adapters they start from.

    Attributes:
        rules: one exact path each; add those of a head.
        adapters: `{path: {name: array}}` of those paths.
    """

    rules: dict[str, Method]
    adapters: Adapters


def eva(
    peft: Peft, variables: Any, batches: Iterable[Batch], *, rho: float = 1.0
) -> Started:
    """Return LoRA whose A are the principal components of what each layer reads.

    A holds the right singular vectors of the centred inputs, the largest first, and B
    is zero, so that the model is as it was. With `rho` above 1 the ranks are dealt out
    anew: of all layers' components the ones that explain the largest share of their
    layer's variance, as many as the ranks were in sum and at most `rho` times a layer's
    rank in it. The scale `alpha / r` stays.

    Departures: the paper and its code update a truncated SVD batch by batch until it
    stands still; here it is that of all batches, from the sums of `xᵀ x`. Every token
    of a batch counts, padded ones too: give batches without padding.

    Args:
        peft: a plan with LoRA on dense layers.
        variables: the model's.
        batches: arguments of the model after its variables, tuples or mappings.
        rho: the largest share of its rank that a layer may come to have.

    Returns:
        Rules for `adapt`, those of layers without a component left out, and adapters.

    Raises:
        ValueError: no batches, no layers of LoRA; the data span fewer directions than
            a layer has ranks; stacked layers, which have one rank, with `rho` above 1.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> x = jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.1, 0.0]])
    >>> model = nn.Dense(4)
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": LoRA(1, alpha=2.0)})
    >>> jnp.abs(eva(peft, variables, [(x,)]).adapters["kernel"]["a"].round(2)).T
    Array([[1.  , 0.05, 0.  ]], dtype=float32)
    """
    sites = dense_sites(peft, LoRA, "eva")
    if not rho >= 1:
        raise ValueError(f"eva: rho={rho}: expected at least 1")
    stacked = [site.path for site, _ in sites if site.stack]
    if stacked and rho > 1:
        raise ValueError(
            f"eva: rho={rho}: {stacked[0]}: stacked layers share one rank; expected "
            "rho=1, or a model with its layers unrolled"
        )
    totals, _ = moments(peft, sites, variables, batches)
    most = {s.path: min(round(lora.rank * rho), s.d_in) for s, lora in sites}
    found = {s.path: s.stacked(_components)(totals[s.path]) for s, _ in sites}
    ranks = {site.path: lora.rank for site, lora in sites}
    for site, _ in sites:
        _check_span(site.path, found[site.path][0], ranks[site.path])
    if rho > 1:
        ranks = _dealt({p: found[p][0][: most[p]] for p in ranks}, sum(ranks.values()))
    rules: dict[str, Method] = {}
    adapters: Adapters = {}
    for site, method in sites:
        if rank := ranks[site.path]:
            alpha = method.alpha * rank / method.rank
            rules[re.escape(site.path)] = replace(method, rank=rank, alpha=alpha)
            b = jnp.zeros((*site.stack, rank, site.d_out))
            adapters[site.path] = {"a": found[site.path][1][..., :rank], "b": b}
    return Started(rules, adapters)


@jax.jit
def _components(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the shares of variance `[in]` and the directions `[in, in]`, by share."""
    count, mean = total[-1, -1], total[-1, :-1] / total[-1, -1]
    covariance = total[:-1, :-1] / count - jnp.outer(mean, mean)
    variance, vectors = jnp.linalg.eigh(covariance)
    variance = jnp.maximum(variance[::-1], 0)
    return variance / variance.sum(), vectors[:, ::-1]


def _check_span(path: str, shares: jax.Array, rank: int) -> None:
    tiny = 100 * np.finfo(np.float32).eps
    spanned = int((np.asarray(shares) > tiny).sum(-1).min())
    if spanned < rank:
        raise ValueError(
            f"{path}: the batches span {spanned} directions of what it reads; expected "
            f"at least the rank, {rank}: give more data"
        )


def _dealt(shares: dict[str, jax.Array], budget: int) -> dict[str, int]:
    """Return the ranks: of all components the `budget` largest shares."""
    paths = [path for path, own in shares.items() for _ in own]
    every = np.concatenate([np.asarray(own) for own in shares.values()])
    chosen = np.argsort(-every, kind="stable")[:budget]
    found = dict.fromkeys(shares, 0)
    for place in chosen:
        found[paths[place]] += 1
    return found
