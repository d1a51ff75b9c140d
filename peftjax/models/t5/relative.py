"""Relative positions in buckets (T5, arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def buckets(count: int, max_distance: int, both_ways: bool) -> np.ndarray:
    """Return the buckets of keys from `max_distance` before to as far behind a query.

    Half of the buckets, n, of a direction have one distance each; the others lie on a
    logarithmic scale, `n + floor(n log(d / n) / log(max_distance / n))`. In float32, as
    released, since a rounding before `floor` moves a distance to another bucket.

    Args:
        count: of the buckets.
        max_distance: from here on distances are in the last bucket.
        both_ways: the second half of the buckets are of keys behind; else such keys,
            which a decoder does not see, are in the first.

    Returns:
        `[2 max_distance + 1]`, int32; the query's own position is in the middle.

    >>> buckets(8, 8, both_ways=True)[[0, 5, 6, 7, 8, 9, 10, 16]]
    array([3, 2, 2, 1, 0, 5, 6, 7], dtype=int32)
    """
    one_way = count // 2 if both_ways else count
    near = one_way // 2
    size = np.arange(max_distance + 1)
    whole = np.log(np.float32(max_distance / near))
    ratio = np.maximum(size, near).astype(np.float32) / np.float32(near)
    far = near + (np.log(ratio) / whole * np.float32(one_way - near)).astype(np.int32)
    before = np.where(size < near, size, np.minimum(far, one_way - 1))
    behind = one_way + before if both_ways else np.zeros_like(before)
    return np.concatenate([before[::-1], behind[1:]]).astype(np.int32)


def rows(bucket: np.ndarray, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the bucket of every pair of positions.

    Args:
        bucket: of `buckets`.
        queries: `[queries]`, integers: positions.
        keys: `[keys]`, the same.

    Returns:
        `[queries, keys]`, int32.

    >>> rows(buckets(8, 8, both_ways=True), jnp.arange(2), jnp.arange(3)).tolist()
    [[0, 5, 6], [1, 0, 5]]
    """
    most = len(bucket) // 2
    distance = jnp.clip(keys - queries[:, None], -most, most)
    return jnp.asarray(bucket)[distance + most]
