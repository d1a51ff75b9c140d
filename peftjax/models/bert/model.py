"""BERT (arXiv 1810.04805) and, with `roberta=True`, RoBERTa (arXiv 1907.11692).

MiniLM (arXiv 2002.10957) is a BERT of another size. Parameters:
`embeddings/{word,position,token_type}_embeddings`, `embeddings/norm`, then per layer
`attention/{query,key,value,output}`, `attention/norm`, `intermediate`, `output`,
`norm`, and `pooler`, `classifier` (RoBERTa: `classifier/dense`, `classifier/out_proj`).
Every kernel is `[in, out]`.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.attention import attend
from peftjax.models.bert.config import BertConfig
from peftjax.models.encoder import (
    Encoding,
    Layer,
    Part,
    apply_encoder,
    check_inputs,
    normal,
)
from peftjax.models.prefix import Prefix, before, by_layer


def mean_pool(hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Return the mean over the tokens that the mask keeps, as sentence encoders do.

    Args:
        hidden: `[batch, tokens, features]`.
        attention_mask: `[batch, tokens]`, 1 for a token, 0 for padding.

    Returns:
        `[batch, features]`, float32.

    >>> mean_pool(jnp.array([[[1.0], [3.0], [8.0]]]), jnp.array([[1, 1, 0]]))
    Array([[2.]], dtype=float32)
    """
    weight = attention_mask.astype(jnp.float32)[..., None]
    total = (hidden.astype(jnp.float32) * weight).sum(axis=1)
    return total / jnp.maximum(weight.sum(axis=1), 1.0)


class Embeddings(Part):
    """`norm(word + position + token type)`."""

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, first: int
    ) -> jax.Array:
        config, positions = self.config, self._positions(input_ids, first)
        x = 0.0
        for name, rows, ids in (
            ("word", config.vocab_size, input_ids),
            ("position", config.max_position_embeddings, positions),
            ("token_type", config.type_vocab_size, token_type_ids),
        ):
            x += self.embed(rows, config.hidden_size, f"{name}_embeddings")(ids)
        return self.drop(self.norm(x))

    def _positions(self, input_ids: jax.Array, first: int) -> jax.Array:
        if not self.config.roberta:
            return first + jnp.arange(input_ids.shape[1])[None]
        pad = self.config.pad_token_id
        token = (input_ids != pad).astype(jnp.int32)
        return (first + jnp.cumsum(token, axis=1)) * token + pad


class Attention(Part):
    """Multi-head self-attention, its residual and norm."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, prefix: jax.Array | None = None
    ) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], config.num_attention_heads, -1)
        q, k, v = (
            self.dense(config.hidden_size, name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        rate = 0.0 if self.deterministic else config.attention_probs_dropout_prob
        key = self.make_rng("dropout") if rate else None
        k, v, mask = before(prefix, k, v, mask)
        y = attend(q, k, v, mask, dropout=rate, dropout_key=key).reshape(x.shape)
        y = self.dense(config.hidden_size, "output")(y)
        return self.norm(x + self.drop(y))


class RobertaHead(Part):
    """`out_proj(tanh(dense(first token)))`, dropout before each."""

    outputs: int
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dense(self.config.hidden_size, "dense")(self.drop(x, self.rate))
        return self.dense(self.outputs, "out_proj")(self.drop(jnp.tanh(x), self.rate))


class Bert(nn.Module):
    """BERT, RoBERTa or MiniLM with an optional task head.

    Dropout falls where the originals have it: on the embeddings, the attention weights,
    the output of attention and MLP before the residual, and before the classifier.

    An adapter may give rows to the place `prefix`, keys and values of every layer that
    all tokens see (`methods.Prefix`); positions then begin behind them.

    Attributes:
        config: the architecture.
        head: number of classes, `"regression"`, or None for the bare encoder.
        with_pooler: the bare encoder has a pooler too (a BERT with a head always has
            one, a RoBERTa with a head never).
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.

    >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2,
    ...                     num_attention_heads=2, intermediate_size=32)
    >>> model = Bert(config, head=3)
    >>> ids = jnp.array([[2, 7, 9, 3]])
    >>> variables = model.init(jax.random.key(0), ids)
    >>> model.apply(variables, ids).shape
    (1, 3)
    """

    config: BertConfig
    head: int | Literal["regression"] | None = None
    with_pooler: bool = True
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def prefix_width(self) -> int:
        """Numbers in a row of `prefix`: a key and a value of every layer."""
        return 2 * self.config.num_hidden_layers * self.config.hidden_size

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return logits, or an `Encoding` where there is no head.

        Args:
            input_ids: `[batch, tokens]`, integers.
            attention_mask: `[batch, tokens]`, 1 for a token, 0 for padding; ones if
                absent.
            token_type_ids: `[batch, tokens]`, integers; zeros if absent.
            train: dropout acts; it draws from the rng `"dropout"`.
            output_hidden_states: return the pair (result, hidden states), the latter
                `[layers + 1, batch, tokens, hidden_size]`, embeddings first.

        Returns:
            float32 logits `[batch, classes]`, or `[batch]` for regression; or an
            `Encoding`.

        Raises:
            ValueError: the arguments or the fields do not fit.
        """
        config = self.config
        depth, others = config.num_hidden_layers, (attention_mask, token_type_ids)
        prefix = Prefix(self.prefix_width, self.dtype, name="prefix")()
        most = config.max_tokens - len(prefix)
        check_inputs("Bert", config, most, input_ids, *others)
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        fields = {"config": config, "deterministic": not train, "dtype": self.dtype}
        x, hidden = apply_encoder(
            Layer,
            {**fields, "attention": Attention},
            depth,
            Embeddings(**fields, name="embeddings")(
                input_ids, token_type_ids, len(prefix)
            ),
            attention_mask.astype(bool)[:, None, None, :],
            scan=self.scan_layers,
            remat=self.remat,
            keep=output_hidden_states,
            prefix=by_layer(prefix, depth),
        )
        result = self._result(x, fields)
        return (result, hidden) if output_hidden_states else result

    def _result(self, x: jax.Array, fields: dict[str, Any]) -> Any:
        config, first, pooled = self.config, x[:, 0], None
        if self.head is None and not self.with_pooler:
            return Encoding(x, None)
        if self.head is None or not config.roberta:
            dense = nn.Dense(
                config.hidden_size, dtype=self.dtype, kernel_init=normal, name="pooler"
            )
            pooled = jnp.tanh(dense(first))
        if self.head is None:
            return Encoding(x, pooled)
        outputs = 1 if self.head == "regression" else self.head
        rate = config.classifier_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        if config.roberta:
            y = RobertaHead(**fields, outputs=outputs, rate=rate, name="classifier")(
                first
            )
        else:
            y = nn.Dropout(rate, deterministic=fields["deterministic"])(pooled)
            y = nn.Dense(
                outputs, dtype=self.dtype, kernel_init=normal, name="classifier"
            )(y)
        y = y.astype(jnp.float32)
        return y[:, 0] if self.head == "regression" else y
