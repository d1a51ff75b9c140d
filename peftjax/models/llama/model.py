"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and what differs little.

`LlamaConfig.model_type` says what: Mistral (arXiv 2310.06825) sees a window, Qwen2
(2407.10671) has biases on q, k, v, Qwen3 (2505.09388) norms on q and k, Gemma 2 and 3
(2408.00118, 2503.19786) further norms, soft-capped scores and layers with a window.

Parameters, named as in the original: `embed_tokens`, then per layer `input_layernorm`,
`self_attn/{q,k,v,o}_proj`, `post_attention_layernorm`, `mlp/{gate,up,down}_proj`, and
`norm`, `lm_head` (none where it is tied to `embed_tokens`) or `score`. Every kernel is
`[in, out]`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.layers import apply_layers
from peftjax.models.llama.config import LlamaConfig
from peftjax.models.llama.layer import NORMAL, GemmaNorm, Layer
from peftjax.models.llama.places import Cache, in_one_text, in_several_texts
from peftjax.models.prefix import Prefix, by_layer


class Llama(nn.Module):
    """Llama with an optional head.

    An adapter may give rows to the place `prefix`, keys and values of every layer
    (`methods.Prefix`), which are not rotated; positions begin behind them. All tokens
    see them, through windows too.

    Attributes:
        config: the architecture.
        head: `"lm"`: next-token logits; a number of classes or `"regression"`: `score`
            on the last token; None: the features after the last norm.
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.

    >>> config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    ...     head_dim=4)
    >>> model, ids = Llama(config), jnp.array([[1, 7, 9]])
    >>> variables = model.init(jax.random.key(0), ids)
    >>> model.apply(variables, ids).shape
    (1, 3, 50)
    """

    config: LlamaConfig
    head: int | Literal["lm", "regression"] | None = "lm"
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def prefix_width(self) -> int:
        """Numbers in a row of `prefix`: a key and a value of every layer."""
        config = self.config
        heads = config.num_key_value_heads * config.head_dim
        return 2 * config.num_hidden_layers * heads

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Return a cache for `batch` sequences of up to `length` tokens."""
        config = self.config
        shape = (config.num_key_value_heads, config.head_dim)
        shape = (config.num_hidden_layers, batch, length, *shape)
        empty = jnp.zeros(shape, self.dtype)
        mask = jnp.zeros((batch, length), bool)
        return Cache(empty, empty, mask, jnp.zeros((), jnp.int32))

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        cache: Cache | None = None,
        segment_ids: jax.Array | None = None,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return logits or features.

        Rotary attention depends on differences of positions only, so left and right
        padding need no position ids.

        Args:
            input_ids: `[batch, tokens]`, integers.
            attention_mask: `[batch, tokens]`, 1 for a token, 0 for padding; ones if
                absent.
            cache: what earlier calls have seen; the result is then (result, new cache).
                The caller sees to it that the cache is long enough.
            segment_ids: `[batch, tokens]`, integers, instead of a mask: several texts
                in one row, each of one number, 0 for padding. Texts do not see each
                other, and positions start anew with each.
            train: dropout acts; it draws from the rng `"dropout"`.
            output_hidden_states: append `[layers + 1, batch, tokens, hidden_size]` to
                the result: embeddings first, the last after the final norm.

        Returns:
            float32 logits `[batch, tokens, vocab_size]`, `[batch, classes]` or
            `[batch]` (regression); without a head `[batch, tokens, hidden_size]`.

        Raises:
            ValueError: the arguments or the fields do not fit.
        """
        self._check(input_ids, attention_mask, cache, segment_ids)
        config, hidden, depth = self.config, None, self.config.num_hidden_layers
        prefix = Prefix(self.prefix_width, self.dtype, name="prefix")()
        first, sights = len(prefix), config.sights
        if segment_ids is None:
            ones = jnp.ones_like(input_ids)
            mask = ones if attention_mask is None else attention_mask
            where, cache = in_one_text(mask.astype(bool), cache, sights, first)
        else:
            mask = segment_ids > 0
            where = in_several_texts(segment_ids, sights, first)
        table = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            embedding_init=NORMAL,
            name="embed_tokens",
        )
        x = table(input_ids)
        if config.gemma:
            x = x * jnp.asarray(sqrt(config.hidden_size), x.dtype)
        if output_hidden_states:
            hidden = jnp.zeros((depth + 1, *x.shape), x.dtype)
            hidden = hidden.at[0].set(x)
        carry = apply_layers(
            Layer,
            {"config": config, "deterministic": not train, "dtype": self.dtype},
            depth,
            {"x": x, "cache": cache and (cache.key, cache.value), "hidden": hidden},
            {
                "index": np.arange(depth),
                "windowed": np.array(config.windowed),
                "prefix": by_layer(prefix, depth),
            },
            where,
            name="layers",
            scan=self.scan_layers,
            remat=self.remat,
        )
        norm = GemmaNorm if config.gemma else nn.RMSNorm
        x = norm(config.rms_norm_eps, dtype=self.dtype, name="norm")(carry["x"])
        result: list[Any] = [self._result(x, mask, table)]
        if cache is not None:
            (key, value), used = carry["cache"], cache.used + x.shape[1]
            result.append(Cache(key, value, cache.mask, used))
        if output_hidden_states:
            result.append(carry["hidden"].at[-1].set(x))
        return tuple(result) if len(result) > 1 else result[0]

    def _result(self, x: jax.Array, mask: jax.Array, table: nn.Embed) -> jax.Array:
        if self.head is None:
            return x

        def output(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=NORMAL,
                name=name,
            )

        if self.head == "lm":
            tied, cap = (
                self.config.tie_word_embeddings,
                self.config.final_logit_softcapping,
            )
            product = (
                table.attend if tied else output(self.config.vocab_size, "lm_head")
            )
            logits = product(x).astype(jnp.float32)
            return logits if cap is None else cap * jnp.tanh(logits / cap)
        tokens = jnp.arange(mask.shape[1])
        last = jnp.max(jnp.where(mask.astype(bool), tokens, 0), axis=1)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        if self.head == "regression":
            return output(1, "score")(x)[:, 0].astype(jnp.float32)
        return output(self.head, "score")(x).astype(jnp.float32)

    def _check(
        self,
        ids: jax.Array,
        mask: jax.Array | None,
        cache: Cache | None,
        segments: jax.Array | None,
    ) -> None:
        config = self.config
        if config.num_attention_heads % config.num_key_value_heads:
            raise ValueError(
                "Llama: expected num_attention_heads to be a multiple of "
                f"num_key_value_heads, found {config.num_attention_heads} and "
                f"{config.num_key_value_heads}"
            )
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"Llama: expected integer input_ids [batch, tokens], found "
                f"{ids.dtype}{list(ids.shape)}"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(
                f"Llama: expected attention_mask of the shape of input_ids, "
                f"{ids.shape}, found {mask.shape}"
            )
        if segments is not None and (
            segments.shape != ids.shape or mask is not None or cache is not None
        ):
            raise ValueError(
                f"Llama: expected segment_ids of the shape of input_ids, {ids.shape}, "
                f"without attention_mask and cache, found {segments.shape}"
            )
        if cache is not None and (
            cache.mask.shape[0] != ids.shape[0] or cache.mask.shape[1] < ids.shape[1]
        ):
            raise ValueError(
                f"Llama: expected a cache for {ids.shape[0]} sequences of at least "
                f"{ids.shape[1]} tokens, found {cache.mask.shape}; see empty_cache"
            )
