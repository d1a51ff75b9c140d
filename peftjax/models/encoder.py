"""What the encoders share: a stack that can keep its outputs, post-norm layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.activations import activation
from peftjax.models.layers import apply_layers

normal = nn.initializers.normal(0.02)

# What a part of `Layer` is -> its path.
PARTS = {
    "query": "attention/query",
    "key": "attention/key",
    "value": "attention/value",
    "output": "attention/output",
    "up": "intermediate",
    "down": "output",
}


class Encoding(NamedTuple):
    """What an encoder without a task head returns.

    Attributes:
        hidden: `[batch, tokens, hidden_size]`, the last layer's output.
        pooled: `[batch, hidden_size]`, the pooler's output; None without a pooler.
    """

    hidden: jax.Array
    pooled: jax.Array | None


def apply_encoder(
    layer: type[nn.Module],
    fields: Mapping[str, Any],
    depth: int,
    x: jax.Array,
    *shared: Any,
    scan: bool,
    remat: bool,
    keep: bool,
    prefix: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Apply layers named `layers`, from within the parent's `nn.compact` method.

    Args:
        layer: a module with `__call__(carry, own, *shared) -> (carry, None)`, which
            makes its new carry with `advance`; `own` holds its `index` and `prefix`.
        fields: its constructor arguments.
        depth: how many layers.
        x: `[batch, tokens, features]`.
        *shared: further arguments, the same for all layers.
        scan: as in `apply_layers`.
        remat: as in `apply_layers`.
        keep: keep what every layer returns.
        prefix: `[depth, ...]`, what each layer has of its own, or None.

    Returns:
        The last output, and `[depth + 1, batch, tokens, features]`, x first, or None.
    """
    hidden = None
    if keep:
        hidden = jnp.zeros((depth + 1, *x.shape), x.dtype).at[0].set(x)
    carry = apply_layers(
        layer,
        fields,
        depth,
        {"x": x, "hidden": hidden},
        {"index": np.arange(depth), "prefix": prefix},
        *shared,
        name="layers",
        scan=scan,
        remat=remat,
    )
    return carry["x"], carry["hidden"]


def advance(carry: dict, own: dict, x: jax.Array) -> tuple[dict, None]:
    """Return what a layer of `apply_encoder` returns, with x as its output."""
    hidden = carry["hidden"]
    if hidden is not None:
        hidden = hidden.at[own["index"] + 1].set(x)
    return {"x": x, "hidden": hidden}, None


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Return a LayerNorm for pretrained weights."""
    # Two-pass variance: real checkpoints have features far from zero.
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


class Part(nn.Module):
    """What the parts of an encoder share.

    Attributes:
        config: the architecture, in the names of `BertConfig`.
        deterministic: dropout does not act.
        dtype: dtype of the computation.
    """

    config: Any
    deterministic: bool
    dtype: Any

    def dense(self, features: int, name: str, bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features, use_bias=bias, dtype=self.dtype, kernel_init=normal, name=name
        )

    def embed(self, rows: int, features: int, name: str) -> nn.Embed:
        return nn.Embed(
            rows, features, dtype=self.dtype, embedding_init=normal, name=name
        )

    def norm(self, x: jax.Array, name: str = "norm") -> jax.Array:
        return layer_norm(self.config.layer_norm_eps, self.dtype, name)(x)

    def drop(self, x: jax.Array, rate: float | None = None) -> jax.Array:
        chosen: Any = self.config.hidden_dropout_prob if rate is None else rate
        return nn.Dropout(chosen, deterministic=self.deterministic)(x)


class Layer(Part):
    """One post-norm layer: attention, then `output(act(intermediate(x)))`.

    Attributes:
        attention: a `Part` with `__call__(x, *shared)`, residual and norm included;
            with `prefix=` where the layer has one.
    """

    attention: type[Part]

    @nn.compact
    def __call__(self, carry: dict, own: dict, *shared: Any) -> tuple[dict, None]:
        config = self.config
        fields = (config, self.deterministic, self.dtype)
        extra = {} if own["prefix"] is None else {"prefix": own["prefix"]}
        attention = self.attention(*fields, name="attention")
        x = attention(carry["x"], *shared, **extra)  # pyright: ignore[reportCallIssue]
        y = self.dense(config.intermediate_size, "intermediate")(x)
        y = self.dense(config.hidden_size, "output")(activation(config.hidden_act)(y))
        return advance(carry, own, self.norm(x + self.drop(y)))


def check_inputs(
    name: str,
    config: Any,
    max_tokens: int | None,
    ids: jax.Array,
    *others: jax.Array | None,
) -> None:
    """Raise ValueError where the inputs of a text encoder or its heads do not fit."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"{name}: expected hidden_size to be a multiple of num_attention_heads, "
            f"found {config.hidden_size} and {config.num_attention_heads}"
        )
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected integer input_ids [batch, tokens], found "
            f"{ids.dtype}{list(ids.shape)}"
        )
    if max_tokens is not None and ids.shape[1] > max_tokens:
        raise ValueError(
            f"{name}: expected at most {max_tokens} tokens (positions have "
            f"{config.max_position_embeddings} rows), found {ids.shape[1]}; truncate"
        )
    for other in others:
        if other is not None and other.shape != ids.shape:
            raise ValueError(
                f"{name}: expected attention_mask and token_type_ids of the shape of "
                f"input_ids, {ids.shape}, found {other.shape}"
            )
