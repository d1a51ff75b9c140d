"""Where tokens stand and what they see: one text with its past, or several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.rope import rotation


class Sight(NamedTuple):
    """What the layers of a kind see.

    Attributes:
        frequencies: of `Rope.frequencies`.
        window: how many tokens, itself among them, a token sees; None: all before it.
    """

    frequencies: np.ndarray
    window: int | None = None

    def of(self, positions: jax.Array, mask: jax.Array, distance: jax.Array) -> Any:
        """Return the mask `[..., queries, keys]` within the window, and the rotation.

        Args:
            positions: as `rotation` takes them.
            mask: what there is to see.
            distance: `[queries, keys]`, how far back a key stands.
        """
        near = mask if self.window is None else mask & (distance < self.window)
        return near[:, None], rotation(positions, self.frequencies)


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
    token: jax.Array, cache: Cache | None, sights: Sequence[Sight], first: int
) -> tuple[dict[str, Any], Cache | None]:
    """Return slot and sights of the new tokens, and the cache that has them.

    Args:
        token: `[batch, tokens]`, boolean: no padding.
        cache: of the tokens before them.
        sights: of the layers.
        first: the position of the first token of the text.
    """
    index, new = 0, jnp.arange(token.shape[1])
    if cache is not None:
        index = cache.used
        mask = jax.lax.dynamic_update_slice(cache.mask, token, (0, index))
        cache, token = cache._replace(mask=mask), mask
    distance = (index + new)[:, None] - jnp.arange(token.shape[1])
    mask = (distance >= 0) & token[:, None, :]
    positions = first + index + new
    seen = [sight.of(positions, mask, distance) for sight in sights]
    return {"index": index, "sights": seen}, cache


def in_several_texts(
    segments: jax.Array, sights: Sequence[Sight], first: int
) -> dict[str, Any]:
    """Return sights in rows of several texts that do not see each other.

    Args:
        segments: `[batch, tokens]`, integers: the number of each token's text, the same
            from its first to its last; 0 for padding.
        sights: of the layers.
        first: the position of the first token of each text.
    """
    tokens = jnp.arange(segments.shape[1])
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jax.lax.cummax(jnp.where(segments != before, tokens, 0), axis=1)
    distance = tokens[:, None] - tokens
    same = segments[:, :, None] == segments[:, None, :]
    mask = same & (distance >= 0) & (segments > 0)[:, None, :]
    positions = first + tokens - starts
    seen = [sight.of(positions, mask, distance) for sight in sights]
    return {"index": 0, "sights": seen}
