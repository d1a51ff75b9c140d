"""Losses of single examples; the step takes their mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Return the cross-entropy of each example, in float32.

    With smoothing s the target is `(1 - s) onehot + s / classes`.

    Args:
        logits: `[..., classes]`, any floating dtype.
        labels: `[...]`, integers.
        smoothing: s, in [0, 1).

    Returns:
        `[...]`.

    Raises:
        ValueError: the shapes do not fit, or s lies outside [0, 1).

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4)
    Array([1.3863, 1.3863], dtype=float32)
    """
    if logits.shape[:-1] != labels.shape or not 0 <= smoothing < 1:
        raise ValueError(
            "cross_entropy: expected logits [..., classes], labels [...] and "
            f"0 <= smoothing < 1, found {logits.shape}, {labels.shape}, {smoothing}"
        )
    logits = logits.astype(jnp.float32)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0.0:
        return hard
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    return (1 - smoothing) * hard + smoothing * uniform
