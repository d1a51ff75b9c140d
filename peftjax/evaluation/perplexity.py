"""The loss of a language model on the tokens that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import exp
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from peftjax.data.chat import Chats
from peftjax.evaluation.batches import BUCKETS, like_length
from peftjax.models.lm_loss import lm_losses

if TYPE_CHECKING:
    from peftjax.models.generate import LanguageModel


class TokenLoss(NamedTuple):
    """Mean cross-entropy in nats over a number of tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """`exp(loss)`; infinite where that is no float.

        >>> round(TokenLoss(1.0, 5).perplexity, 3)
        2.718
        """
        return exp(self.loss) if self.loss < 700 else float("inf")


def token_loss(
    model: LanguageModel,
    params: Any,
    chats: Chats,
    *,
    batch: int = 8,
    buckets: Sequence[int] = BUCKETS,
    apply: Callable[..., Any] | None = None,
) -> TokenLoss:
    """Return the mean loss of the tokens that are learned.

    Args:
        model: a language model, as `generate` takes it.
        params: what `apply` takes first.
        chats: of `peftjax.data.chat.encode`.
        batch: rows at a time.
        buckets: lengths that rows are padded to; each compiles once.
        apply: as for `generate`; `model.apply` if absent.
    """
    columns = chats.columns(0, buckets)
    total, count = 0.0, 0.0
    for _, rows in like_length(chats.lengths.tolist(), batch, buckets):
        part = {name: column[rows] for name, column in columns.items()}
        # The last batch of a length is filled with its first row.
        part["token_mask"][1:][rows[1:] == rows[0]] = 0
        losses, weights = _losses(apply or model.apply, params, part)
        total += float(np.asarray(losses, np.float64).sum())
        count += float(np.asarray(weights, np.float64).sum())
    return TokenLoss(total / count, int(count))


@partial(jax.jit, static_argnums=0)
def _losses(apply, params, part):
    ids = part["input_ids"]
    logits = apply(params, ids, segment_ids=part["segment_ids"])
    losses, weights = lm_losses(logits, ids, part["token_mask"])
    return losses.sum(1), weights.sum(1)
