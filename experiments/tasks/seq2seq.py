"""Rows of instructions as an encoder and a decoder take them."""

import jax.numpy as jnp

from peftjax.models import T5Config

START = T5Config.decoder_start_token_id  # of all that are released


def logits(apply, batch, **options):
    """Return logits of which those at position t foresee token t + 1, as a Llama's.

    The tokens of a row before the first that is learned are the source, the learned
    ones the target. Positions are relative, so that both stay where they are: all else
    is masked, and the target begins behind `START`, in the place of the source's last.

    Args:
        apply: of a T5.
        batch: `input_ids`, `segment_ids` (0 is padding) and `token_mask` (1 is learned,
            never the first of a row), `[rows, tokens]`.
        **options: of `apply`.

    Returns:
        `[rows, tokens, vocabulary]`.
    """
    ids, learned = batch["input_ids"], batch["token_mask"] > 0
    source = (batch["segment_ids"] > 0) & (jnp.cumsum(learned, axis=1) == 0)
    first = jnp.pad(learned[:, 1:], ((0, 0), (0, 1))) & source
    target = jnp.where(learned, ids, START)
    return apply(ids, source, target, learned | first, **options)
