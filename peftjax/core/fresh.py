"""Fresh adapter arrays: one program for all sites of a form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from peftjax.core.axes import arrange, wide
from peftjax.core.coded import decoded
from peftjax.core.site import Adapters, Site, by_form


def fresh(sites: Sequence[Site], leaves: Sequence[Any], key: jax.Array) -> Adapters:
    """Return fresh adapters; see `Peft.init`."""
    drawn: Adapters = {}
    for alike in _alike(site for site in sites if not site.method.needs_kernel):
        indices = np.array([site.index for site in alike])
        drawn |= {
            site.path: p for site, p in zip(alike, _drawn(alike[0], key, indices))
        }
    adapters: Adapters = {}
    for site in sites:
        known = site.path in drawn
        p = drawn[site.path] if known else _of_kernel(site, key, leaves)
        for name in site.method.shared:
            adapters.setdefault("", {}).setdefault(name, p.pop(name))
        adapters[site.path] = p
    return adapters


def abstract(site: Site) -> tuple[dict[str, Any], jax.ShapeDtypeStruct]:
    """Return the shapes of the adapter arrays and of the kernel of one layer."""

    def init(key: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    kernel = jax.ShapeDtypeStruct((site.d_in, site.d_out), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(init, key, kernel), kernel


def _alike(sites: Iterable[Site]) -> list[list[Site]]:
    """Return the sites that share a program."""
    groups: dict[Any, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.kin, []).append(site)
    return [*groups.values()]


@by_form
def _drawn(
    site: Site, key: jax.Array, indices: jax.Array
) -> list[dict[str, jax.Array]]:
    """Return fresh arrays of all sites of a form, drawn one after the other.

    A loop is compiled once; random numbers of each site by itself take seconds of
    compilation for a few layers.
    """
    if len(indices) == 1:
        return [_layers(site, key, indices[0])]
    drawn = lax.map(partial(_layers, site, key), indices)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in range(len(indices))]


def _of_kernel(site: Site, key: jax.Array, leaves: Sequence[Any]) -> dict[str, Any]:
    """Return fresh arrays of a site whose method starts from the weight."""
    kernel = leaves[site.index]
    if isinstance(kernel, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} starts from the weight "
            "itself, but adapt was given only its shape; pass init(key, variables)"
        )
    return _started(site, key, site.index, kernel)


@by_form
def _started(site: Site, key: jax.Array, index: int, kernel: Any) -> dict[str, Any]:
    kernel = decoded(kernel)
    kernel = kernel.astype(wide(kernel.dtype))
    if site.method.replaces:
        # a copy, lest donating the adapters takes the model's own buffers
        return {"value": jnp.array(kernel, copy=True)}
    return _layers(site, key, index, arrange(kernel, site.stored, site.groups))


def _layers(
    site: Site, key: jax.Array, index: Any, *kernel: jax.Array
) -> dict[str, jax.Array]:
    """Return fresh arrays of one site, stacked layers included, float32."""

    def layer(key: jax.Array, kernel: jax.Array | None = None) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    # by index of the leaf, so that a start does not depend on the other rules
    key = jax.random.fold_in(key, index)
    keys = jax.random.split(key, site.stack) if site.stack else key
    p = dict(site.stacked(layer)(keys, *kernel))
    for name in site.method.shared:
        # every layer made its own; the first one's serves all
        p[name] = p[name][(0,) * len(site.stack)]
    return p
