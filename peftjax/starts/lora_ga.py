"""LoRA-GA: low-rank factors of the gradient of the first steps.

Wang et al., "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", arXiv
2407.05000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.arrays import planned_leaves
from peftjax.core.axes import arrange
from peftjax.core.coded import Coded
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters
from peftjax.methods.offset import OffsetLoRA
from peftjax.starts.moments import dense_sites


def lora_ga(
    peft: Peft,
    variables: Any,
    loss: Callable[..., jax.Array],
    batches: Iterable[Any],
    *,
    gamma: float = 16.0,
) -> Adapters:
    """Return adapters whose factors are singular vectors of the weight's gradient.

    With the mean gradient over the batches `dKᵀ = U S Vᵀ` and `c = out^¼ / γ^½`,
    `A_0 = c V_[1..r]` and `B_0 = c U_[r+1..2r]ᵀ` (Theorem 3.1 and section 3.3 of the
    paper). K stays as it is: the sites are of `PiSSA` or `OLoRA`, which subtract the
    frozen factors, and have other ones here.

    The torch library (0.21) also multiplies B by the singular values, and A not by c;
    neither the paper nor its authors' code does.

    Args:
        peft: a plan with `PiSSA` or `OLoRA` on dense layers.
        variables: the model's, floats.
        loss: as `training.make_step` takes it, `loss(apply, batch, key)`.
        batches: what `loss` takes.
        gamma: γ, the larger the smaller the factors.

    Returns:
        `{path: {name: array}}` of these sites; the others' come from `peft.init`.

    Raises:
        ValueError: no batches, no such layers, `2 r` above a layer's rank, a base in
            codes, or a gradient that is zero or not finite.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> from peftjax.methods.pissa import PiSSA
    >>> x = jax.random.normal(jax.random.key(1), (8, 4))
    >>> model = nn.Dense(4)
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": PiSSA(2, alpha=2.0)})
    >>> p = lora_ga(peft, variables, lambda f, x, key: (f(x) ** 2).mean(-1), [x])
    >>> jax.tree.map(jnp.shape, p["kernel"])
    {'a': (4, 2), 'a0': (4, 2), 'b': (2, 4), 'b0': (2, 4)}
    """
    sites = dense_sites(peft, OffsetLoRA, "lora_ga")
    for site, method in sites:
        limit = min(site.d_in, site.d_out)
        if 2 * method.rank > limit:
            raise ValueError(
                f"{site.path}: lora_ga takes 2 r = {2 * method.rank} singular "
                f"vectors of a [{site.d_in}, {site.d_out}] gradient; expected at most "
                f"{limit}"
            )
    leaves = planned_leaves(peft.leaves, peft.structure, variables)
    for site, _ in sites:
        if isinstance(leaves[site.index], Coded):
            raise ValueError(f"{site.path}: is in codes, which have no gradient")
    places = [site.index for site, _ in sites]

    @jax.jit
    def gradient(weights: Any, leaves: Any, batch: Any) -> Any:
        def mean(weights: Any) -> jax.Array:
            whole = list(leaves)
            for place, weight in zip(places, weights):
                whole[place] = weight
            apply = partial(peft.apply_fn, jax.tree.unflatten(peft.structure, whole))
            return jnp.mean(loss(apply, batch, jax.random.key(0)))

        return jax.grad(mean)(weights)

    total, count = None, 0
    for batch in batches:
        own = gradient([leaves[place] for place in places], leaves, batch)
        total = own if total is None else jax.tree.map(jnp.add, total, own)
        count += 1
    if total is None:
        raise ValueError("batches: expected at least one, found none")
    adapters: Adapters = {}
    for (site, method), found in zip(sites, total):
        found = arrange(found.astype(jnp.float32) / count, site.stored, site.groups)
        size = float(jnp.abs(found).max())
        if not 0 < size < float("inf"):
            raise ValueError(
                f"{site.path}: its gradient is zero or not finite; leave it out of the "
                "rules, or give other batches"
            )
        split = partial(_factors, rank=method.rank, gamma=gamma)
        a, b = site.stacked(split)(found)
        adapters[site.path] = {"a": a, "b": b, "a0": a, "b0": b}
    return adapters


@partial(jax.jit, static_argnames=("rank", "gamma"))
def _factors(gradient: jax.Array, rank: int, gamma: float) -> Any:
    v, _, ut = jnp.linalg.svd(gradient, full_matrices=False)
    c = gradient.shape[1] ** 0.25 / gamma**0.5
    return c * v[:, :rank], c * ut[rank : 2 * rank]
