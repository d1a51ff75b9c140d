"""Put adapted weights in the place of the model's leaves, for one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.gates import constant_gates
from peftjax.core.merge import merge_site
from peftjax.core.plan import Leaves, pair_bias
from peftjax.core.site import BASE, Adapters, Site
from peftjax.core.uses import Findings
from peftjax.core.views import arrange, whole
from peftjax.core.weight import Weight


def params(
    site: Site, adapters: Adapters, gates: Mapping[str, jax.Array] | None = None
) -> dict[str, jax.Array]:
    """Return a site's arrays, shared ones and constant gates included."""
    p = dict(adapters[site.path])
    for name in site.method.shared:
        value = adapters[""][name]
        p[name] = jnp.broadcast_to(value, (*site.stack, *value.shape))
    if BASE in p:
        p[BASE] = jnp.broadcast_to(p[BASE], site.stack)
    if gates and site.path in gates:
        p["gates"] = gates[site.path]
    return p


def constant(sites: Sequence[Site], gates: Any) -> dict[str, jax.Array]:
    """Return each gated site's gates; see `constant_gates`."""
    heads = {s.path: (*s.stack, heads_of(s)) for s in sites if s.method.gated}
    return constant_gates(heads, gates)


def heads_of(site: Site) -> int:
    return site.method.heads  # pyright: ignore[reportAttributeAccessIssue]


def replaced(
    sites: Sequence[Site], leaves: Sequence[Any], adapters: Adapters
) -> list[Any]:
    """Return the leaves with those of `Full` replaced."""
    values = list(leaves)
    for site in sites:
        if site.method.replaces:
            value = adapters[site.path]["value"]
            if value.shape != site.shape:
                raise ValueError(
                    f"{site.path}: expected an adapter value of shape "
                    f"{site.shape}, found {value.shape}"
                )
            value = value.astype(site.dtype)
            if BASE in adapters[site.path]:
                is_base = adapters[site.path][BASE]
                value = jnp.where(is_base, leaves[site.index], value)
            values[site.index] = value
    return values


def symbols(
    sites: Sequence[Site],
    known: Leaves,
    values: Sequence[Any],
    adapters: Adapters,
    found: Findings,
    adapter_key: jax.Array | None,
) -> list[Any]:
    """Put `Weight`s in the place of adapted leaves; merge what must be merged."""
    values = list(values)
    kernels: list[Site] = []
    for site in sites:
        if site.method.replaces or site.index not in found.seen:
            continue
        uses = found.uses.get(site.index, [])
        views = (site.atoms[1:], site.atoms[1:][::-1])
        recognised = site.index not in found.opaque and all(
            (use.d_in, use.d_out) in views and use.stack == site.atoms[0]
            for use in uses
        )
        if site.fast and recognised:
            kernels.append(site)
        else:
            merge_site(site, values, params(site, adapters))
    for site in kernels:
        bias = _take_bias(site, known, values, found)
        key = None
        if adapter_key is not None:
            key = jax.random.fold_in(adapter_key, site.index)
            key = jax.random.split(key, site.stack) if site.stack else key
        values[site.index] = Weight(
            values[site.index],
            params(site, adapters),
            bias,
            key,
            site,
            site.stored,
            site.atoms[0],
        )
    return values


def _take_bias(
    site: Site, known: Leaves, values: list[Any], found: Findings
) -> jax.Array | None:
    """Take the bias out of the model where the formula is to add it."""
    if not site.method.uses_bias or site.bias_index is None:
        return None
    if pair_bias(site, found, known).bias != site.bias:
        raise ValueError(
            f"{site.path}: this call does not add the bias {site.bias} as the "
            "planned one did; plan it with example arguments of this kind"
        )
    bias = values[site.bias_index]
    values[site.bias_index] = jnp.zeros_like(bias)
    return arrange(bias, whole(bias.shape), site.bias_groups)
