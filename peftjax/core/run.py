"""Run the adapted model: put its weights in, and walk the rules on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax

from peftjax.core import arrays
from peftjax.core.axes import arrange, shape, whole
from peftjax.core.lift import Rules
from peftjax.core.merge import merge_leaves, merge_used
from peftjax.core.site import Adapters, Given, Site
from peftjax.core.uses import Leaf, Product, Weight


def run(
    closed: Any,
    sites: Sequence[Site],
    leaves: Sequence[Any],
    dynamic: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
    adapter_key: jax.Array | None,
) -> list[jax.Array]:
    """Evaluate a model's jaxpr on `[*leaves, *dynamic]` with adapters."""
    values = arrays.replaced(sites, leaves, adapters, given)
    formulas = [site for site in sites if not site.method.replaces]
    merged = [site for site in formulas if not site.fast]
    values = merge_leaves(merged, values, adapters, given)
    owners: dict[int, Site] = {}
    for site in formulas:
        if not site.fast:
            continue
        if site.takes_bias and site.bias_index is not None:
            owners[site.bias_index] = site
            bias = values[site.bias_index]
            values[site.bias_index] = Leaf(bias, site.bias_index, whole(bias.shape))
        values[site.index] = Weight(
            values[site.index],
            site.index,
            site.stored,
            site=site,
            given=arrays.of_site(site, adapters, given),
            key=_key(site, adapter_key),
        )
    runner = Runner(owners)
    return runner.end(runner.walk(closed, [*values, *dynamic]), "returned by the model")


def _key(site: Site, adapter_key: jax.Array | None) -> jax.Array | None:
    if adapter_key is None:
        return None
    key = jax.random.fold_in(adapter_key, site.index)
    return jax.random.split(key, site.stack) if site.stack else key


class Runner(Rules):
    """The rules on arrays: a use is its formula, a loop is a loop."""

    def __init__(self, owners: Mapping[int, Site]) -> None:
        """Run; `owners` are the sites by the index of their bias."""
        super().__init__()
        self.owners = owners
        self.counts: dict[str, int] = {}

    def used(self, product: Product) -> Any:
        weight, use, site = product.weight, product.use, product.weight.site
        _, d_in, d_out = site.atoms
        straight = (use.d_in, use.d_out) == (d_in, d_out)
        swapped = (use.d_in, use.d_out) == (d_out, d_in) and use.kind == "dense"
        if use.stack != site.atoms[0] or not (straight or swapped):
            return None
        # transposed, only the linear part counts
        if site.takes_bias and straight:
            return product
        return product.compute(None, self._key(weight))

    def added(self, product: Product, leaf: Leaf, groups: Any) -> list[Any] | None:
        weight, site = product.weight, product.weight.site
        if leaf.index != site.bias_index or groups != site.bias_groups:
            return None
        here = [
            g
            for g, axis in zip(site.bias_groups, site.atoms[0])
            if axis in weight.stack
        ]
        # a leaf that was broadcast repeats itself along the axes that hold no atoms
        bias = lax.slice(leaf.value, (0,) * leaf.value.ndim, shape(leaf.view))
        bias = arrange(bias, leaf.view, [*here, site.bias_groups[-1]])
        return [product.compute(bias, self._key(weight))]

    def ended(self, symbol: Any, why: str) -> Any:
        if isinstance(symbol, Weight):
            return merge_used(symbol, why)
        is_product = isinstance(symbol, Product)
        site = symbol.weight.site if is_product else self.owners[symbol.index]
        raise ValueError(
            f"{site.path}: this call does not add the bias {site.bias} as the planned "
            f"one did ({why}); plan it with example arguments of this kind"
        )

    def has_members(self, leaf: Leaf) -> bool:
        return not isinstance(leaf, Weight) or leaf.view[0] in leaf.stack

    def _key(self, weight: Weight) -> jax.Array | None:
        if weight.key is None:
            return None
        count = self.counts.get(weight.site.path, 0)
        self.counts[weight.site.path] = count + 1
        fold = partial(jax.random.fold_in, data=count)
        for _ in weight.stack:
            fold = jax.vmap(fold)
        return fold(weight.key)
