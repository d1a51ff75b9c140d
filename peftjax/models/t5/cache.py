"""What a decoder keeps: the target so far, and the source that it is of."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Source(NamedTuple):
    """Keys and values of a whole source, for the cross-attention of every layer.

    Attributes:
        key: `[decoder layers, batch, source tokens, heads, d_kv]`.
        value: the same shape.
        mask: `[batch, source tokens]`, boolean: a token, not padding.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array


class TargetCache(NamedTuple):
    """Keys and values of the tokens of a target so far, and of its source.

    Attributes:
        key: `[decoder layers, batch, length, heads, d_kv]`.
        value: the same shape.
        mask: `[batch, length]`, boolean: the slot holds a token, not padding.
        used: `[]`, int32: how many slots are filled.
        source: None before the first call, which reads it.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array
    used: jax.Array
    source: Source | None

    def repeated(self, times: int) -> TargetCache:
        """Return the cache with each sequence so many times, one after the other."""

        def again(part: jax.Array, axis: int) -> jax.Array:
            return jnp.repeat(part, times, axis)

        source = self.source
        if source is not None:
            key, value, mask = source
            source = Source(again(key, 1), again(value, 1), again(mask, 0))
        key, value, mask = (again(part, i) for part, i in zip(self[:3], (1, 1, 0)))
        return TargetCache(key, value, mask, self.used, source)
