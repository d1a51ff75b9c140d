"""The position terms of disentangled attention (DeBERTa, arXiv 2006.03654, Eq. 2-4).

Legend: i, j: positions of query and key; `d = i - j`, their distance; N: tokens;
h: heads; `Kr`, `Qr`: keys and queries of relative positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bucket(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of a distance: itself when near, logarithmic when far.

    With `m = buckets / 2`, it is d for `|d| <= m`, and for the others, with the sign
    of d, `m + ceil((m - 1) log(|d| / m) / log((max_distance - 1) / m))`. In float32,
    as released, since a rounding before `ceil` moves a distance to another bucket.

    Args:
        distance: integers of any shape.
        buckets: buckets on either side, an even number.
        max_distance: from here on distances are in the last bucket or beyond it.

    Raises:
        ValueError: a far distance, where `max_distance` leaves no room for it.

    >>> bucket(np.array([3, 4, 5, 9, -15]), 8, 16)
    array([ 3,  4,  5,  6, -7])
    """
    middle = buckets // 2
    size = np.abs(distance)
    if size.max() <= middle:
        return distance
    if max_distance - 1 <= middle:
        raise ValueError(
            f"position_buckets: expected less than {2 * (max_distance - 1)} for "
            f"distances up to {max_distance}, found {buckets} and a distance of "
            f"{size.max()}"
        )
    ratio = np.maximum(size, middle).astype(np.float32) / np.float32(middle)
    whole = np.log(np.float32((max_distance - 1) / middle))
    far = np.ceil(np.log(ratio) / whole * np.float32(middle - 1)) + middle
    return np.where(size <= middle, distance, np.sign(distance) * far).astype(np.int64)


def table_rows(tokens: int, span: int, buckets: int, max_distance: int) -> np.ndarray:
    """Return the row of the relative table for distances N - 1 down to 1 - N.

    Args:
        tokens: N.
        span: half the rows of the table; distance 0 has this row.
        buckets: as in `bucket`; 0: every distance has its own.
        max_distance: as in `bucket`.

    Returns:
        `[2 N - 1]`, int64, from 0 to `2 span - 1`, never rising.

    >>> table_rows(3, span=2, buckets=0, max_distance=2)
    array([3, 3, 2, 1, 0])
    """
    distance = np.arange(tokens - 1, -tokens, -1)
    if buckets:
        distance = bucket(distance, buckets, max_distance)
    return np.clip(distance + span, 0, 2 * span - 1)


def position_scores(
    query: jax.Array,
    key: jax.Array,
    pos_key: jax.Array | None,
    pos_query: jax.Array | None,
    rows: jax.Array,
) -> jax.Array:
    """Return `q_i · Kr[d] + k_j · Qr[d]`, unscaled, in float32.

    The paper has `Qr[j - i]` in the second term; the released weights are those of the
    released code, which is this.

    The originals score every row of the table and pick one per pair of tokens. Here
    every distance picks its row once, and `shift` lines them up: the same numbers
    without a gather as large as the scores, nor a scatter in its gradient; for more
    tokens than half the table has rows it is more matrix work than theirs.

    Args:
        query: `[batch, N, h, features]`.
        key: the same shape.
        pos_key: `[table, h, features]`, Kr; None: without the first term.
        pos_query: the same shape, Qr; None: without the second term.
        rows: as of `table_rows`.

    Returns:
        `[batch, h, N, N]`; zeros without both terms.
    """
    scores = jnp.zeros((), jnp.float32)
    if pos_key is not None:
        scores = shift(_products(query, pos_key[rows]))
    if pos_query is not None:
        # Seen from the key, its neighbours' distances rise along the row.
        turned = shift(_products(key, pos_query[rows[::-1]]))
        scores = scores + turned.swapaxes(-1, -2)
    return scores


def _products(x: jax.Array, positions: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bnhd,chd->bhnc", x, positions, preferred_element_type=jnp.float32
    )


def shift(x: jax.Array) -> jax.Array:
    """Return `y[..., i, j] = x[..., i, N - 1 - i + j]`.

    Args:
        x: `[..., N, 2 N - 1]`.

    Returns:
        `[..., N, N]`.

    >>> shift(jnp.array([[0, 1, 2], [3, 4, 5]])).tolist()
    [[1, 2], [3, 4]]
    """
    *outer, tokens, _ = x.shape
    x = jnp.pad(x, [(0, 0)] * (len(outer) + 1) + [(0, 1)])
    # Rows read one entry shorter than they were written: each starts one earlier.
    x = x.reshape(*outer, 2 * tokens * tokens)[..., tokens - 1 : -1]
    return x.reshape(*outer, tokens, 2 * tokens - 1)[..., :tokens]
