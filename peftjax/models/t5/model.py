"""T5 (arXiv 1910.10683), T5 v1.1 (arXiv 2002.05202) and FLAN-T5 (arXiv 2210.11416).

Parameters: `shared`, the embeddings of source and target; of each of the stacks
`encoder` and `decoder` the `relative_attention_bias` of all its layers, per layer
`self_attn/{q,k,v,o}`, `self_attn_norm`, in the decoder `cross_attn/{q,k,v,o}`,
`cross_attn_norm`, then `mlp/{wi,wo}` (`wi_0`, the gate, and `wi_1` in T5 v1.1) and
`mlp_norm`, and behind the layers `final_layer_norm`; `lm_head` unless it is tied to
`shared`. Every kernel is `[in, out]`, none has a bias.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.t5.cache import Source, TargetCache
from peftjax.models.t5.config import T5Config
from peftjax.models.t5.stack import Pair, Stack


class T5(nn.Module):
    """An encoder of sources, and a decoder that predicts the next token of a target.

    With a cache it is a language model whose prompt is the source: the first call reads
    the source and predicts the target's first token, each later one takes the target's
    next tokens. So `generate` writes targets. Dropout falls where the original has it.

    Attributes:
        config: the architecture.
        head: `"lm"`: next-token logits; None: the decoder's features.
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.

    >>> config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2,
    ...     num_decoder_layers=2, num_heads=4)
    >>> model, source = T5(config), jnp.array([[3, 7, 9, 1]])
    >>> variables = model.init(jax.random.key(0), source)
    >>> target = jnp.array([[0, 5, 8]])
    >>> model.apply(variables, source, decoder_input_ids=target).shape
    (1, 3, 50)
    """

    config: T5Config
    head: Literal["lm"] | None = "lm"
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def empty_cache(self, batch: int, length: int) -> TargetCache:
        """Return a cache for `batch` targets of up to `length` tokens."""
        key, value = self._empty(batch, length)
        mask = jnp.zeros((batch, length), bool)
        return TargetCache(key, value, mask, jnp.zeros((), jnp.int32), None)

    def _empty(self, batch: int, length: int) -> Pair:
        config = self.config
        shape = (batch, length, config.num_heads, config.d_kv)
        empty = jnp.zeros((config.num_decoder_layers, *shape), self.dtype)
        return empty, empty

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        decoder_input_ids: jax.Array | None = None,
        decoder_attention_mask: jax.Array | None = None,
        *,
        cache: TargetCache | None = None,
        train: bool = False,
    ) -> Any:
        """Return logits or features of the target.

        Positions are relative, so left and right padding need no position ids.

        Args:
            input_ids: `[batch, source tokens]`, integers: the source; with a cache that
                has read one, the next tokens of the target.
            attention_mask: of the shape of `input_ids`, 1 for a token, 0 for padding;
                ones if absent.
            decoder_input_ids: `[batch, tokens]`, integers: the target, behind
                `decoder_start_token_id`; this token alone if absent.
            decoder_attention_mask: `[batch, tokens]`, as `attention_mask`.
            cache: what earlier calls have seen; the result is then (result, new cache).
                The caller sees to it that the cache is long enough.
            train: dropout acts; it draws from the rng `"dropout"`.

        Returns:
            float32 logits `[batch, tokens, vocab_size]`; without a head
            `[batch, tokens, d_model]`.

        Raises:
            ValueError: the arguments or the fields do not fit.
        """
        config, source = self.config, cache and cache.source
        if self.head not in ("lm", None):
            raise ValueError(f'T5: expected head="lm" or None, found {self.head!r}')
        check = (input_ids, attention_mask, decoder_input_ids, decoder_attention_mask)
        _check(*check, cache)
        shared = nn.Embed(
            config.vocab_size,
            config.d_model,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )

        def stack(depth: int, name: str) -> Stack:
            fields = (config, not train, self.dtype, depth, name == "decoder")
            return Stack(*fields, self.scan_layers, self.remat, name=name)

        seen, ids, token = None, input_ids, attention_mask
        if source is None:
            known = _tokens(attention_mask, input_ids)
            seen = stack(config.num_layers, "encoder")(shared(input_ids), known)["x"]
            start = jnp.full_like(input_ids[:, :1], config.decoder_start_token_id)
            ids = start if decoder_input_ids is None else decoder_input_ids
            token = decoder_attention_mask
            kept = None if cache is None else self._empty(*input_ids.shape)
        else:
            *kept, known = source
        token, slot = _tokens(token, ids), 0
        if cache is not None:
            slot = cache.used
            token = jax.lax.dynamic_update_slice(cache.mask, token, (0, slot))
        carry = stack(config.num_decoder_layers, "decoder")(
            shared(ids),
            token,
            slot,
            seen=seen,
            mask=known[:, None, None, :],
            own=cache and (cache.key, cache.value),
            kept=kept and tuple(kept),
        )
        result = self._result(carry["x"], shared)
        if cache is None:
            return result
        (key, value), used = carry["source"], cache.used + ids.shape[1]
        source = Source(key, value, known)
        key, value = carry["own"]
        return result, TargetCache(key, value, token, used, source)

    def _result(self, x: jax.Array, shared: nn.Embed) -> jax.Array:
        config = self.config
        if self.head is None:
            return x
        if config.scale_decoder_outputs:
            x = x * jnp.asarray(config.d_model**-0.5, x.dtype)
        if config.tie_word_embeddings:
            return shared.attend(x).astype(jnp.float32)
        output = nn.Dense(
            config.vocab_size,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(1.0),
            name="lm_head",
        )
        return output(x).astype(jnp.float32)


def _tokens(mask: jax.Array | None, ids: jax.Array) -> jax.Array:
    return jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)


def _check(
    ids: jax.Array,
    mask: jax.Array | None,
    target: jax.Array | None,
    target_mask: jax.Array | None,
    cache: TargetCache | None,
) -> None:
    later = cache is not None and cache.source is not None
    if later and (target is not None or target_mask is not None):
        raise ValueError(
            "T5: with a cache that has read a source, give the target's next tokens "
            "as input_ids, and no decoder_input_ids"
        )
    for name, one, own in (("", ids, mask), ("decoder_", target, target_mask)):
        if one is None:
            if own is not None:
                raise ValueError(f"T5: {name}attention_mask without {name}input_ids")
            continue
        if one.ndim != 2 or not jnp.issubdtype(one.dtype, jnp.integer):
            raise ValueError(
                f"T5: expected integer {name}input_ids [batch, tokens], found "
                f"{one.dtype}{list(one.shape)}"
            )
        if own is not None and own.shape != one.shape:
            raise ValueError(
                f"T5: expected {name}attention_mask of the shape of {name}input_ids, "
                f"{one.shape}, found {own.shape}"
            )
    if target is not None and len(target) != len(ids):
        raise ValueError(
            f"T5: expected a target for each of {len(ids)} sources, found {len(target)}"
        )
    new = ids if later else target
    shape = (len(ids), 1 if new is None else new.shape[1])
    if cache is not None and (
        cache.mask.shape[0] != shape[0] or cache.mask.shape[1] < shape[1]
    ):
        raise ValueError(
            f"T5: expected a cache for {shape[0]} targets of at least {shape[1]} "
            f"tokens, found {cache.mask.shape}; see empty_cache"
        )
