"""Fresh adapter arrays of a site."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.site import Site
from peftjax.core.views import arrange


def fresh(site: Site, key: jax.Array, kernel: Any) -> dict[str, jax.Array]:
    """Return fresh arrays of one site, stacked layers included, float32.

    Args:
        site: the adapted layer.
        key: its own PRNG key.
        kernel: the stored leaf, for a method with `needs_kernel`; otherwise None.
    """
    if site.method.replaces:
        value = jnp.array(
            kernel, jnp.promote_types(kernel.dtype, jnp.float32), copy=True
        )
        return {"value": value}

    def layer(key: jax.Array, kernel: jax.Array | None = None) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    arguments = [jax.random.split(key, site.stack) if site.stack else key]
    if kernel is not None:
        wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        arguments.append(arrange(wide, site.stored, site.groups))
    p = site.stacked(layer)(*arguments)
    for name in site.method.shared:
        p[name] = p[name][(0,) * len(site.stack)]
    return p
