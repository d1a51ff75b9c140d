"""The loss of language modelling."""

from __future__ import annotations

import jax
import jax.numpy as jnp

IGNORE = -100


def lm_loss(
    logits: jax.Array,
    input_ids: jax.Array,
    mask: jax.Array | None = None,
    *,
    ignore_label: int = IGNORE,
) -> jax.Array:
    """Return the mean cross-entropy of each next token.

    Args:
        logits: `[batch, tokens, vocabulary]`.
        input_ids: `[batch, tokens]`; token t + 1 is the target of position t.
        mask: `[batch, tokens]`, 1 where a token counts as a target; all if absent.
        ignore_label: tokens of this id are no targets either.

    Returns:
        A float32 scalar; 0 where nothing is kept, NaN where a token that counts is
        outside the vocabulary.

    >>> lm_loss(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, -100]])).round(4)
    Array(1.3863, dtype=float32)
    """
    losses, weights = _of_targets(logits, input_ids, mask, ignore_label)
    total = weights.sum()
    return (losses * weights).sum() / jnp.where(total == 0, 1.0, total)


def lm_losses(
    logits: jax.Array,
    input_ids: jax.Array,
    mask: jax.Array | None = None,
    *,
    ignore_label: int = IGNORE,
) -> tuple[jax.Array, jax.Array]:
    """Return the cross-entropy of every token, and its weight, for a training step.

    `return Weighted(*lm_losses(logits, ids, mask))` is a loss of `make_step`, whose
    mean is over all tokens of all micro-batches and devices.

    Args:
        logits: as for `lm_loss`.
        input_ids: as for `lm_loss`.
        mask: as for `lm_loss`.
        ignore_label: as for `lm_loss`.

    Returns:
        Losses and weights, `[batch, tokens]`, float32, at the place of the target; the
        first token is no target. A loss is 0 where the weight is.

    >>> losses, weights = lm_losses(jnp.zeros((1, 3, 4)), jnp.array([[1, 2, 3]]))
    >>> losses.round(4), weights
    (Array([[0.    , 1.3863, 1.3863]], dtype=float32),
     Array([[0., 1., 1.]], dtype=float32))
    """
    first = ((0, 0), (1, 0))
    losses, weights = _of_targets(logits, input_ids, mask, ignore_label)
    return jnp.pad(losses, first), jnp.pad(weights, first)


def _of_targets(logits, input_ids, mask, ignore_label) -> tuple[jax.Array, jax.Array]:
    """Return losses and weights of all tokens but the first, `[batch, tokens - 1]`."""
    import optax

    targets = input_ids[:, 1:]
    weights = (targets != ignore_label).astype(jnp.float32)
    if mask is not None:
        weights *= mask[:, 1:].astype(jnp.float32)
    counts, known = weights != 0, (targets >= 0) & (targets < logits.shape[-1])
    # Logits that are not finite would turn a masked token's gradient into 0 * NaN.
    rows = jnp.where(counts[..., None], logits[:, :-1].astype(jnp.float32), 0.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        rows, jnp.where(known, targets, 0)
    )
    return jnp.where(counts, jnp.where(known, losses, jnp.nan), 0.0), weights
