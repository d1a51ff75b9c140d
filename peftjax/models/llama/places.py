"""Where tokens stand and what they see: one text with its past, or several in a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.rope import rotation


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        key: `[layers, batch, length, key heads, head_dim]`, already rotated.
        value: the same shape.
        mask: `[batch, length]`, boolean: the slot holds a token, not padding.
        used: `[]`, int32: how many slots are filled.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array
    used: jax.Array

    def repeated(self, times: int) -> Cache:
        """Return the cache with each sequence so many times, one after the other."""
        key, value = (jnp.repeat(part, times, axis=1) for part in self[:2])
        return Cache(key, value, jnp.repeat(self.mask, times, axis=0), self.used)


def in_one_text(
    token: jax.Array, cache: Cache | None, frequencies: np.ndarray
) -> tuple[dict[str, Any], Cache | None]:
    """Return positions and mask of the new tokens, and the cache that has them.

    Args:
        token: `[batch, tokens]`, boolean: no padding.
        cache: of the tokens before them.
        frequencies: of `Rope.frequencies`.
    """
    index, new = 0, jnp.arange(token.shape[1])
    if cache is not None:
        index = cache.used
        mask = jax.lax.dynamic_update_slice(cache.mask, token, (0, index))
        cache, token = cache._replace(mask=mask), mask
    causal = jnp.arange(token.shape[1]) <= (index + new)[:, None]
    return {
        "index": index,
        "mask": (causal & token[:, None, :])[:, None],
        "rotation": rotation(index + new, frequencies),
    }, cache


def in_several_texts(segments: jax.Array, frequencies: np.ndarray) -> dict[str, Any]:
    """Return positions and mask of rows of several texts that do not see each other.

    Args:
        segments: `[batch, tokens]`, integers: the number of each token's text, the same
            from its first to its last; 0 for padding.
        frequencies: of `Rope.frequencies`.
    """
    tokens = jnp.arange(segments.shape[1])
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jax.lax.cummax(jnp.where(segments != before, tokens, 0), axis=1)
    same = segments[:, :, None] == segments[:, None, :]
    causal = tokens[None, :] <= tokens[:, None]
    return {
        "index": 0,
        "mask": (same & causal & (segments > 0)[:, None, :])[:, None],
        "rotation": rotation(tokens - starts, frequencies),
    }
