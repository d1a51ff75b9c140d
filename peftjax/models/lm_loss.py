"""The loss of language modelling."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def lm_loss(
    logits: jax.Array, input_ids: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Return the mean cross-entropy of each next token.

    Args:
        logits: `[batch, tokens, vocabulary]`.
        input_ids: `[batch, tokens]`; token t + 1 is the target of position t.
        mask: `[batch, tokens]`, 1 where a token counts as a target; all if absent.

    Returns:
        A float32 scalar; 0 where the mask keeps nothing.

    >>> lm_loss(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 3]])).round(4)
    Array(1.3863, dtype=float32)
    """
    import optax

    mask = jnp.ones(input_ids.shape) if mask is None else mask
    weight = mask[:, 1:].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1].astype(jnp.float32), input_ids[:, 1:]
    )
    return (loss * weight).sum() / jnp.maximum(weight.sum(), 1.0)
