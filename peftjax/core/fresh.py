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
    made: Adapters = {}
    for alike in _alike(sites):
        paths = [site.path for site in alike]
        made |= dict(zip(paths, _of_form(alike, leaves, key), strict=True))
    adapters: Adapters = {}
    for site in sites:
        p = made[site.path]
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


def _of_form(
    alike: Sequence[Site], leaves: Sequence[Any], key: jax.Array
) -> list[dict[str, jax.Array]]:
    """Return fresh arrays of sites of one form."""
    method = alike[0].method
    kernels = [_known(site, leaves) for site in alike if method.needs_kernel]
    if method.replaces:
        return [_copied(site, kernel) for site, kernel in zip(alike, kernels)]
    return _drawn(alike[0], key, np.array([site.index for site in alike]), kernels)


def _known(site: Site, leaves: Sequence[Any]) -> Any:
    """Return the stored kernel of a site whose method starts from it."""
    kernel = leaves[site.index]
    if isinstance(kernel, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} starts from the weight "
            "itself, but adapt was given only its shape; pass init(key, variables)"
        )
    return kernel


@by_form
def _copied(site: Site, kernel: Any) -> dict[str, jax.Array]:
    # a copy, lest donating the adapters takes the model's own buffers
    return {"value": jnp.array(_wide(kernel), copy=True)}


def _wide(kernel: Any) -> jax.Array:
    kernel = decoded(kernel)
    return kernel.astype(wide(kernel.dtype))


@by_form
def _drawn(
    site: Site, key: jax.Array, indices: jax.Array, kernels: Sequence[Any]
) -> list[dict[str, jax.Array]]:
    """Return fresh arrays of all sites of a form, drawn one after the other.

    A loop is compiled once; random numbers of each site by itself take seconds of
    compilation for a few layers. Each turn of it holds one kernel.
    """

    def arranged(kernel: Any) -> jax.Array:
        return arrange(_wide(kernel), site.stored, site.groups)

    def one(number: Any) -> dict[str, jax.Array]:
        choices = [partial(arranged, kernel) for kernel in kernels]
        own = [lax.switch(number, choices)] if choices else []
        return _layers(site, key, indices[number], *own)

    if len(indices) == 1:
        return [one(0)]
    drawn = lax.map(one, jnp.arange(len(indices)))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in range(len(indices))]


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
