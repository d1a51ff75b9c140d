"""The places of prompts: rows that a sequence, or an attention, has beside its own.

A model keeps a place for them, which is empty; an adapter's rule on its output fills it
(`methods.VPT`, `methods.Prefix`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Prefix(nn.Module):
    """A prefix of no rows, `[0, width]`, that a rule on its output may fill.

    Attributes:
        width: numbers in a row.
        dtype: of the computation.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        return jnp.zeros((0, self.width), self.dtype)


def lengthened(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Return a sequence with rows behind it, where attention minds no order.

    Args:
        x: `[batch, tokens, width]`.
        rows: `[n, width]`, the same for all examples.

    Returns:
        `[batch, tokens + n, width]`.

    >>> lengthened(jnp.ones((2, 3, 4)), jnp.zeros((5, 4))).shape
    (2, 8, 4)
    """
    if not len(rows):
        return x
    rows = jnp.broadcast_to(rows.astype(x.dtype), (len(x), *rows.shape))
    return jnp.concatenate([x, rows], axis=1)


def by_layer(rows: jax.Array, depth: int) -> jax.Array | None:
    """Return the keys and values of each layer, `[depth, 2, n, width]`; None: no rows.

    Args:
        rows: `[n, depth * 2 * width]`: of a row first the first layer's key.
        depth: how many layers.
    """
    if not len(rows):
        return None
    return jnp.moveaxis(rows.reshape(len(rows), depth, 2, -1), 0, 2)


def before(
    prefix: jax.Array | None, key: jax.Array, value: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return keys, values and mask with a layer's prefix in front, which all see.

    Args:
        prefix: `[2, n, heads * d]`, keys and values; None: there is none.
        key: `[batch, tokens, heads, d]`.
        value: `[batch, tokens, heads, d]`.
        mask: boolean, `[..., tokens]`.
    """
    if prefix is None:
        return key, value, mask

    def both(rows: jax.Array, own: jax.Array) -> jax.Array:
        rows = rows.astype(own.dtype).reshape(1, -1, *own.shape[2:])
        rows = jnp.broadcast_to(rows, (len(own), *rows.shape[1:]))
        return jnp.concatenate([rows, own], axis=1)

    unpadded = [(0, 0)] * (mask.ndim - 1)
    mask = jnp.pad(mask, [*unpadded, (prefix.shape[1], 0)], constant_values=True)
    return both(prefix[0], key), both(prefix[1], value), mask
