"""Losses of single examples or tokens; the step takes their weighted mean."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

IGNORE = -100


class Weighted(NamedTuple):
    """Losses with a weight each, as a loss of `make_step` may return them.

    Attributes:
        losses: `[B]` or `[B, T]`.
        weights: of the same shape; where one is 0, the loss there does not count, not
            even if it is not a number.
    """

    losses: jax.Array
    weights: jax.Array


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    *,
    ignore_label: int = IGNORE,
) -> jax.Array:
    """Return the cross-entropy of each example, in float32.

    With smoothing s the target is `(1 - s) onehot + s / classes`. A label of
    `ignore_label` costs nothing and has no gradient. That it has no weight in the mean
    either is said with `Weighted(losses, labels != ignore_label)`, or with a mask of
    the batch.

    Args:
        logits: `[..., classes]`, any floating dtype.
        labels: `[...]`, integers.
        smoothing: s, in [0, 1).
        ignore_label: the label of what does not count.

    Returns:
        `[...]`; NaN for any other label outside the classes, so that training stops.

    Raises:
        ValueError: the shapes do not fit, the labels are no integers, or s lies outside
            [0, 1).

    >>> cross_entropy(jnp.zeros((4, 4)), jnp.array([0, 3, -100, 4])).round(4)
    Array([1.3863, 1.3863, 0.    ,    nan], dtype=float32)
    """
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if logits.shape[:-1] != labels.shape or not whole or not 0 <= smoothing < 1:
        raise ValueError(
            "cross_entropy: expected logits [..., classes], integer labels [...] and "
            f"0 <= smoothing < 1, found {logits.shape}, {labels.shape} of "
            f"{labels.dtype}, {smoothing}"
        )
    signed = jnp.issubdtype(labels.dtype, jnp.signedinteger)
    ignored = (labels == ignore_label) if signed else jnp.zeros(labels.shape, bool)
    known = (labels >= 0) & (labels < logits.shape[-1])
    # Logits that are not finite would turn an ignored label's gradient into 0 * NaN.
    logits = jnp.where(ignored[..., None], 0.0, logits.astype(jnp.float32))
    target = jnp.where(known, labels, 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    if smoothing != 0.0:
        uniform = -jax.nn.log_softmax(logits).mean(-1)
        loss = (1 - smoothing) * loss + smoothing * uniform
    return jnp.where(ignored, 0.0, jnp.where(known, loss, jnp.nan))
