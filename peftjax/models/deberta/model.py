"""DeBERTa-v3 (arXiv 2111.09543), whose encoder is DeBERTa-v2's (arXiv 2006.03654).

Parameters: `embeddings/word_embeddings` (and, where the configuration asks for them,
`position_embeddings`, `token_type_embeddings`, `projection`), `embeddings/norm`, the
table of relative positions `relative/rel_embeddings`, its `relative/norm`, then per
layer `attention/{query,key,value,output}` (`pos_key`, `pos_query` unless shared),
`attention/norm`, `intermediate`, `output`, `norm`, and `pooler`, `classifier`. Every
kernel is `[in, out]`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.activations import activation
from peftjax.models.attention import attend
from peftjax.models.deberta.config import DebertaConfig
from peftjax.models.deberta.disentangled import position_scores, table_rows
from peftjax.models.encoder import (
    Encoding,
    Layer,
    Part,
    apply_encoder,
    check_inputs,
    normal,
)


class Embeddings(Part):
    """`norm(project(word + position + token type))`, zero on padding."""

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, mask: jax.Array
    ) -> jax.Array:
        config = self.config
        size = config.embedding_size or config.hidden_size
        x = self.embed(config.vocab_size, size, "word_embeddings")(input_ids)
        if config.position_biased_input:
            rows = config.max_position_embeddings
            positions = jnp.arange(input_ids.shape[1])[None]
            x += self.embed(rows, size, "position_embeddings")(positions)
        if config.type_vocab_size:
            types = self.embed(config.type_vocab_size, size, "token_type_embeddings")
            x += types(token_type_ids)
        if size != config.hidden_size:
            x = self.dense(config.hidden_size, "projection", bias=False)(x)
        x = self.norm(x)
        return self.drop(x * mask[..., None].astype(x.dtype))


class Relative(Part):
    """The part of the table of relative positions that N tokens need.

    Returns `table [rows, hidden_size]`, and for distances N - 1 down to 1 - N their
    rows in it; None without relative attention.
    """

    tokens: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array] | None:
        config, span = self.config, self.config.span
        if not config.relative_attention:
            return None
        rows = table_rows(
            self.tokens, span, config.position_buckets, config.max_distance
        )
        table = self.embed(2 * span, config.hidden_size, "rel_embeddings").embedding
        table = jnp.asarray(table, self.dtype)[rows.min() : rows.max() + 1]
        if config.norm_rel_ebd == "layer_norm":
            table = self.norm(table)
        return table, jnp.asarray(rows - rows.min())


class Attention(Part):
    """Disentangled self-attention, its residual and norm."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, relative: tuple | None
    ) -> jax.Array:
        config = self.config
        dense = {
            name: self.dense(config.hidden_size, name)
            for name in ("query", "key", "value")
        }
        q, k, v = (self._heads(layer(x)) for layer in dense.values())
        scale = 1 / sqrt(q.shape[-1] * (1 + len(config.pos_att_type)))
        bias = None
        if relative is not None:
            bias = scale * self._positions(q, k, dense, *relative)
        rate = 0.0 if self.deterministic else config.attention_probs_dropout_prob
        y = attend(
            q,
            k,
            v,
            mask,
            bias=bias,
            scale=scale,
            dropout=rate,
            dropout_key=self.make_rng("dropout") if rate else None,
        )
        y = self.dense(config.hidden_size, "output")(y.reshape(x.shape))
        return self.norm(x + self.drop(y))

    def _positions(
        self,
        query: jax.Array,
        key: jax.Array,
        dense: dict[str, nn.Dense],
        table: jax.Array,
        rows: jax.Array,
    ) -> jax.Array:
        """Return what positions add to the scores of content."""
        config, table = self.config, self.drop(table)

        def project(term: str, shared: str) -> jax.Array | None:
            if term not in config.pos_att_type:
                return None
            if config.share_att_key:
                return self._heads(dense[shared](table))
            return self._heads(self.dense(config.hidden_size, f"pos_{shared}")(table))

        pos_key, pos_query = project("c2p", "key"), project("p2c", "query")
        return position_scores(query, key, pos_key, pos_query, rows)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)


class Deberta(nn.Module):
    """DeBERTa-v3 with an optional task head.

    The head is `classifier(gelu(pooler(first token)))`, as in the originals; the bare
    encoder has no pooler. Dropout falls where the originals have it: on the embeddings,
    on the relative table in every layer, the attention weights, the output of attention
    and MLP before the residual, and before the classifier.

    Attributes:
        config: the architecture.
        head: number of classes, `"regression"`, or None for the bare encoder.
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.

    >>> config = DebertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2,
    ...     num_attention_heads=2, intermediate_size=32, position_buckets=4)
    >>> model = Deberta(config, head=3)
    >>> ids = jnp.array([[1, 7, 9, 2]])
    >>> variables = model.init(jax.random.key(0), ids)
    >>> model.apply(variables, ids).shape
    (1, 3)
    """

    config: DebertaConfig
    head: int | Literal["regression"] | None = None
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

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
        """Return logits, or an `Encoding` (of which `pooled` is None) without a head.

        Args:
            input_ids: `[batch, tokens]`, integers.
            attention_mask: `[batch, tokens]`, 1 for a token, 0 for padding; ones if
                absent.
            token_type_ids: `[batch, tokens]`, integers; zeros if absent, and without
                effect in DeBERTa-v3, which has no such table.
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
        others = (attention_mask, token_type_ids)
        check_inputs("Deberta", config, config.max_tokens, input_ids, *others)
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        fields = {"config": config, "deterministic": not train, "dtype": self.dtype}
        token = attention_mask.astype(bool)
        embeddings = Embeddings(**fields, name="embeddings")
        relative = Relative(**fields, tokens=input_ids.shape[1], name="relative")
        x, hidden = apply_encoder(
            Layer,
            {**fields, "attention": Attention},
            config.num_hidden_layers,
            embeddings(input_ids, token_type_ids, token),
            # Padding attends to all alike, as in the originals; no token sees it.
            token[:, None, :, None] & token[:, None, None, :],
            relative(),
            scan=self.scan_layers,
            remat=self.remat,
            keep=output_hidden_states,
        )
        if self.head is None:
            result = Encoding(x, None)
        else:
            result = self._logits(self.head, x[:, 0], deterministic=not train)
        return (result, hidden) if output_hidden_states else result

    def _logits(self, head: Any, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config

        def drop(x: jax.Array, rate: float) -> jax.Array:
            return nn.Dropout(rate, deterministic=deterministic)(x)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=normal, name=name)

        rate = config.cls_dropout
        rate = config.hidden_dropout_prob if rate is None else rate
        x = dense(config.hidden_size, "pooler")(drop(x, config.pooler_dropout))
        x = drop(activation(config.pooler_hidden_act)(x), rate)
        x = dense(1 if head == "regression" else head, "classifier")(x)
        x = x.astype(jnp.float32)
        return x[:, 0] if head == "regression" else x
