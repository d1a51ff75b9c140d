"""One layer of a Llama: norms, attention and MLP."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.activations import activation
from peftjax.models.attention import attend
from peftjax.models.llama.config import LlamaConfig
from peftjax.models.prefix import before
from peftjax.models.rope import rotate

NORMAL = nn.initializers.normal(0.02)


class GemmaNorm(nn.Module):
    """`(1 + scale) x / rms(x)`, computed in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])
        norm = nn.RMSNorm(self.epsilon, dtype=jnp.float32, use_scale=False)
        return (norm(x) * (1.0 + scale.astype(jnp.float32))).astype(self.dtype)


class Part(nn.Module):
    """What the parts of the model share."""

    config: LlamaConfig
    deterministic: bool
    dtype: Any

    def dense(self, features: int, bias: bool, name: str) -> nn.Dense:
        return nn.Dense(
            features, use_bias=bias, dtype=self.dtype, kernel_init=NORMAL, name=name
        )

    def norm(self, name: str) -> nn.Module:
        kind = GemmaNorm if self.config.gemma else nn.RMSNorm
        return kind(self.config.rms_norm_eps, dtype=self.dtype, name=name)


class Attention(Part):
    """Causal self-attention with grouped heads and rotary positions."""

    @nn.compact
    def __call__(self, x, own, where, cache):
        config, (mask, rotation) = self.config, where["sight"]
        groups, size = config.num_key_value_heads, config.head_dim

        def heads(count: int, name: str) -> jax.Array:
            y = self.dense(count * size, config.qkv_bias, f"{name}_proj")(x)
            return y.reshape(*x.shape[:2], count, size)

        def rotated(count: int, name: str) -> jax.Array:
            y = heads(count, name)
            y = self.norm(f"{name}_norm")(y) if config.qk_norm else y
            return rotate(y, *rotation)

        q = rotated(config.num_attention_heads, "q")
        k, v = rotated(groups, "k"), heads(groups, "v")
        if cache is not None:
            place = (own["index"], 0, where["index"], 0, 0)
            cache = tuple(
                jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), place)
                for old, new in zip(cache, (k, v))
            )
            k, v = (
                jax.lax.dynamic_index_in_dim(c, own["index"], 0, False) for c in cache
            )
            k, v = k.astype(q.dtype), v.astype(q.dtype)
        rate = 0.0 if self.deterministic else config.attention_dropout
        key = self.make_rng("dropout") if rate else None
        k, v, mask = before(own["prefix"], k, v, mask)
        y = attend(
            q,
            k,
            v,
            mask,
            scale=1 / sqrt(config.query_pre_attn_scalar or size),
            softcap=config.attn_logit_softcapping,
            dropout=rate,
            dropout_key=key,
        )
        y = y.reshape(*x.shape[:2], -1)
        output = self.dense(config.hidden_size, config.attention_bias, "o_proj")
        return output(y), cache


class Mlp(Part):
    """`down(act(gate(x)) * up(x))` (SwiGLU, arXiv 2002.05202)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        size, bias = config.intermediate_size, config.mlp_bias
        gate = activation(config.hidden_act)(self.dense(size, bias, "gate_proj")(x))
        y = gate * self.dense(size, bias, "up_proj")(x)
        return self.dense(config.hidden_size, bias, "down_proj")(y)


class Layer(Part):
    """One pre-norm layer; Gemma's has norms behind attention and MLP too.

    The carry holds `x [batch, tokens, features]`, `cache` (the keys and values of all
    layers, each of which writes its own) and, where asked for, `hidden`
    `[layers + 1, batch, tokens, features]`, in which each layer leaves its output.
    """

    @nn.compact
    def __call__(self, carry: dict, own: dict, where: dict) -> tuple[dict, None]:
        fields = (self.config, self.deterministic, self.dtype)
        x, hidden = carry["x"], carry["hidden"]
        sight, *windowed = where["sights"]
        for other in windowed:
            sight = jax.tree.map(partial(jnp.where, own["windowed"]), other, sight)
        where = {"index": where["index"], "sight": sight}
        attention = Attention(*fields, name="self_attn")
        y, cache = attention(
            self.norm("input_layernorm")(x), own, where, carry["cache"]
        )
        if self.config.gemma:
            x = x + self.norm("post_attention_layernorm")(y)
            y = Mlp(*fields, name="mlp")(self.norm("pre_feedforward_layernorm")(x))
            x = x + self.norm("post_feedforward_layernorm")(y)
        else:
            x = x + y
            y = self.norm("post_attention_layernorm")(x)
            x = x + Mlp(*fields, name="mlp")(y)
        if hidden is not None:
            hidden = hidden.at[own["index"] + 1].set(x)
        return {"x": x, "cache": cache, "hidden": hidden}, None
