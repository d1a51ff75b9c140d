"""The stacks of T5: attention to relative positions and to the source, and the MLP."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.activations import activation
from peftjax.models.attention import attend
from peftjax.models.layers import apply_layers
from peftjax.models.t5.config import T5Config
from peftjax.models.t5.relative import buckets, rows

Pair = tuple[jax.Array, ...]  # keys and values


class _Part(nn.Module):
    """What the parts of the model share."""

    config: T5Config
    deterministic: bool
    dtype: Any

    def dense(self, features: int, name: str, variance: float) -> nn.Dense:
        """Return a layer whose kernel starts with entries of a variance."""
        start = nn.initializers.normal(variance**0.5)
        return nn.Dense(
            features, use_bias=False, dtype=self.dtype, kernel_init=start, name=name
        )

    def norm(self, name: str) -> nn.RMSNorm:
        return nn.RMSNorm(self.config.layer_norm_epsilon, dtype=self.dtype, name=name)

    def drop(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.config.dropout_rate, deterministic=self.deterministic)(x)


class Attention(_Part):
    """Attention whose scores are not divided by the root of their length."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        seen: jax.Array | None,
        mask: jax.Array,
        bias: jax.Array | None,
        cache: Pair | None,
        place: tuple[Any, Any],
    ) -> tuple[jax.Array, Pair | None]:
        """Return what is attended to, and the cache that has the keys and values.

        Args:
            x: `[batch, queries, d_model]`.
            seen: `[batch, keys, d_model]`; None: all is in the cache already.
            mask: broadcastable to `[batch, heads, queries, keys]`.
            bias: the same, of the positions.
            cache: keys and values of all layers.
            place: of `seen` in the cache: layer and slot.
        """
        config = self.config
        size, width = config.d_kv, config.num_heads * config.d_kv

        def heads(x: jax.Array, name: str, variance: float) -> jax.Array:
            y = self.dense(width, name, variance)(x)
            return y.reshape(*x.shape[:2], config.num_heads, size)

        q: jax.Array = heads(x, "q", 1 / (config.d_model * size))
        both: list[jax.Array] = []
        if seen is not None:
            both = [heads(seen, name, 1 / config.d_model) for name in "kv"]
        if cache is not None:
            layer, slot = place
            if both:
                start = (layer, 0, slot, 0, 0)
                cache = tuple(
                    jax.lax.dynamic_update_slice(old, new[None], start)
                    for old, new in zip(cache, both)
                )
            both = [jax.lax.dynamic_index_in_dim(c, layer, 0, False) for c in cache]
        rate = 0.0 if self.deterministic else config.dropout_rate
        y = attend(
            q,
            both[0],
            both[1],
            mask,
            bias=bias,
            scale=1.0,
            dropout=rate,
            dropout_key=self.make_rng("dropout") if rate else None,
        )
        y = y.reshape(*x.shape[:2], width)
        return self.dense(config.d_model, "o", 1 / width)(y), cache


class Mlp(_Part):
    """`wo(act(wi(x)))`, or `wo(act(wi_0(x)) * wi_1(x))` (arXiv 2002.05202)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        act, start = activation(config.hidden_act), 1 / config.d_model
        names = ("wi_0", "wi_1") if config.gated else ("wi",)
        first, *others = (self.dense(config.d_ff, name, start)(x) for name in names)
        y = act(first) * others[0] if others else act(first)
        return self.dense(config.d_model, "wo", 1 / config.d_ff)(self.drop(y))


class Layer(_Part):
    """One pre-norm layer; with `cross` it attends to the source too.

    The carry holds `x [batch, tokens, d_model]` and the caches `own` and `source`, keys
    and values of all layers, to which each layer adds its own.
    """

    cross: bool

    @nn.compact
    def __call__(self, carry: dict, index: Any, where: dict) -> tuple[dict, None]:
        fields = (self.config, self.deterministic, self.dtype)
        x, own, source = carry["x"], carry["own"], carry["source"]
        y = self.norm("self_attn_norm")(x)
        place = (index, where["slot"])
        attention = Attention(*fields, name="self_attn")
        y, own = attention(y, y, where["mask"], where["bias"], own, place)
        x = x + self.drop(y)
        if self.cross:
            y = self.norm("cross_attn_norm")(x)
            seen, mask = where["source"]
            attention = Attention(*fields, name="cross_attn")
            y, source = attention(y, seen, mask, None, source, (index, 0))
            x = x + self.drop(y)
        y = Mlp(*fields, name="mlp")(self.norm("mlp_norm")(x))
        return {"x": x + self.drop(y), "own": own, "source": source}, None


class Stack(_Part):
    """The encoder or, with `cross`, the decoder.

    Attributes:
        depth: the number of its layers.
        cross: it attends to a source, and its tokens see none behind them.
    """

    depth: int
    cross: bool
    scan_layers: bool
    remat: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, token: jax.Array, slot: Any = 0, **given: Any
    ) -> dict[str, Any]:
        """Return the last carry of `Layer`, its `x` normed.

        Args:
            x: `[batch, tokens, d_model]`.
            token: `[batch, keys]`, boolean: of x, or of all that is in the cache.
            slot: the position of the first of x among the keys.
            given: `seen` and `mask` of the source, and the caches, `own` of the target
                and `kept` of the source.
        """
        config = self.config
        count = config.relative_attention_num_buckets
        bucket = buckets(
            count, config.relative_attention_max_distance, both_ways=not self.cross
        )
        queries, keys = slot + jnp.arange(x.shape[1]), jnp.arange(token.shape[1])
        table = nn.Embed(
            count,
            config.num_heads,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(config.d_model**-0.5),
            name="relative_attention_bias",
        )
        mask = token[:, None, None, :]
        if self.cross:
            mask = mask & (keys <= queries[:, None])
        where = {
            "mask": mask,
            "bias": jnp.moveaxis(table(rows(bucket, queries, keys)), -1, 0),
            "slot": slot,
            "source": (given.get("seen"), given.get("mask")),
        }
        fields = {
            "config": config,
            "deterministic": self.deterministic,
            "dtype": self.dtype,
        }
        carry = apply_layers(
            Layer,
            {**fields, "cross": self.cross},
            self.depth,
            {"x": self.drop(x), "own": given.get("own"), "source": given.get("kept")},
            np.arange(self.depth),
            where,
            name="layers",
            scan=self.scan_layers,
            remat=self.remat,
        )
        return {**carry, "x": self.drop(self.norm("final_layer_norm")(carry["x"]))}
