"""Scaled dot-product attention with dropout on its weights."""

from __future__ import annotations

from math import sqrt

import jax
import jax.numpy as jnp

from peftjax.core.method import dropout as drop


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return `softmax(scale q kᵀ + bias) v` for each head; the softmax is in float32.

    Args:
        query: `[batch, queries, heads, d]`.
        key: `[batch, keys, groups, d]`; `groups` divides `heads`, and each group serves
            `heads / groups` consecutive heads (arXiv 2305.13245).
        value: `[batch, keys, groups, d]`.
        mask: boolean, broadcastable to `[batch, heads, queries, keys]`; False is
            ignored.
        bias: added to the scores, broadcastable likewise.
        scale: by default `1 / sqrt(d)`.
        dropout: probability of dropping an attention weight.
        dropout_key: a PRNG key; None means nothing is dropped.

    Returns:
        `[batch, queries, heads, d]`.

    >>> q = jnp.ones((1, 2, 4, 8)); k = jnp.ones((1, 3, 2, 8))
    >>> attend(q, k, k).shape
    (1, 2, 4, 8)
    """
    if dropout_key is None or dropout == 0.0:
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale
        )
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(part, repeats, axis=2) for part in (key, value))
    scores = scale * jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, 0.7 * jnp.finfo(jnp.float32).min)
    weights = drop(jax.nn.softmax(scores), dropout, dropout_key)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
