"""Scaled dot-product attention with dropout on its weights."""

from __future__ import annotations

from math import sqrt

import jax
import jax.numpy as jnp

from peftjax.models import layers


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
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
        softcap: scores s become `softcap tanh(s / softcap)` before bias and mask.
        dropout: probability of dropping an attention weight.
        dropout_key: a PRNG key; None means nothing is dropped.

    Returns:
        `[batch, queries, heads, d]`.

    >>> q = jnp.ones((1, 2, 4, 8)); k = jnp.ones((1, 3, 2, 8))
    >>> attend(q, k, k).shape
    (1, 2, 4, 8)
    """
    batch, queries, heads, d = query.shape
    groups = key.shape[2]
    scale = 1 / sqrt(d) if scale is None else scale
    # A product per batch and group, of contiguous matrices; the queries of all heads
    # that share keys are the rows of one.
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (scale * query, key, value))
    q = q.reshape(batch, groups, -1, d)
    scores = jnp.einsum("bgqd,bgkd->bgqk", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, queries, -1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, 0.7 * jnp.finfo(jnp.float32).min)
    # Normalised after the second product, where it is cheaper than on the weights.
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if dropout_key is not None and dropout > 0.0:
        weights = layers.dropout(weights, dropout, dropout_key)
    weights = weights.reshape(batch, groups, -1, weights.shape[-1]).astype(v.dtype)
    y = jnp.einsum("bgqk,bgkd->bgqd", weights, v, preferred_element_type=jnp.float32)
    y = y.reshape(batch, heads, queries, d) / total
    return jnp.swapaxes(y, 1, 2).astype(value.dtype)
