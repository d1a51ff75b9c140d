"""What U-Nets and autoencoders are made of: residual blocks, transformers, resampling.

Images are `[batch, height, width, features]`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.activations import activation
from peftjax.models.attention import attend


def group_norm(groups: int, eps: float, dtype: Any, name: str) -> nn.GroupNorm:
    """Return a GroupNorm; the mean is taken off before squares are."""
    return nn.GroupNorm(
        groups, epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
    )


def conv3(features: int, dtype: Any, name: str) -> nn.Conv:
    """Return a convolution of 3 × 3 pixels that keeps the sides."""
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """`skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`.

    Attributes:
        features: of the result; where x has others, `skip` is a convolution.
        groups: of both norms.
        eps: of both norms.
        dtype: dtype of the computation.
    """

    features: int
    groups: int
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """Return the block's result; `time` is `[batch, features of the embedding]`."""
        y = nn.silu(group_norm(self.groups, self.eps, self.dtype, "norm1")(x))
        y = conv3(self.features, self.dtype, "conv1")(y)
        if time is not None:
            dense = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")
            y = y + dense(nn.silu(time))[:, None, None]
        y = nn.silu(group_norm(self.groups, self.eps, self.dtype, "norm2")(y))
        y = conv3(self.features, self.dtype, "conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(
                x
            )
        return x + y


class Attention(nn.Module):
    """Attention of `x [batch, tokens, features]` to a context, to itself without one.

    Attributes:
        heads: number of heads.
        bias: whether queries, keys and values have one; the output has.
        dtype: dtype of the computation.
    """

    heads: int
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Return `[batch, tokens, features]`."""
        features, heads = x.shape[-1], self.heads
        context = x if context is None else context

        def split(x: jax.Array, name: str) -> jax.Array:
            dense = nn.Dense(features, self.bias, dtype=self.dtype, name=name)
            return dense(x).reshape(*x.shape[:2], heads, features // heads)

        y = attend(split(x, "to_q"), split(context, "to_k"), split(context, "to_v"))
        return nn.Dense(features, dtype=self.dtype, name="to_out")(y.reshape(x.shape))


class FeedForward(nn.Module):
    """An MLP with a GEGLU (arXiv 2002.05202): `out(a * gelu(g))`, `a, g = proj(x)`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[batch, tokens, features]`."""
        features = x.shape[-1]
        x = nn.Dense(8 * features, dtype=self.dtype, name="proj")(x)
        x, gate = jnp.split(x, 2, axis=-1)
        x = x * activation("gelu")(gate)
        return nn.Dense(features, dtype=self.dtype, name="out")(x)


class TransformerBlock(nn.Module):
    """Attention to itself, to the context, and an MLP, each after a LayerNorm."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Return `[batch, tokens, features]`."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(
                epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name
            )

        def attention(name: str) -> Attention:
            return Attention(self.heads, bias=False, dtype=self.dtype, name=name)

        x = x + attention("attn1")(norm("norm1")(x))
        x = x + attention("attn2")(norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class Transformer(nn.Module):
    """Transformer layers over the pixels of an image, with a context.

    Attributes:
        depth: number of layers.
        heads: number of heads.
        groups: of the norm before.
        linear: begin and end with a dense layer, not a convolution of one pixel.
        dtype: dtype of the computation.
    """

    depth: int
    heads: int
    groups: int
    linear: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Return an image of the shape of x; context is `[batch, tokens, features]`."""
        features = x.shape[-1]

        def project(name: str) -> nn.Module:
            if self.linear:
                return nn.Dense(features, dtype=self.dtype, name=name)
            return nn.Conv(features, (1, 1), dtype=self.dtype, name=name)

        y = group_norm(self.groups, 1e-6, self.dtype, "norm")(x)
        y = project("proj_in")(y)
        tokens = y.reshape(len(x), -1, features)
        for i in range(self.depth):
            block = TransformerBlock(
                self.heads, self.dtype, name=f"transformer_blocks_{i}"
            )
            tokens = block(tokens, context)
        return x + project("proj_out")(tokens.reshape(x.shape))


def downsample(x: jax.Array, dtype: Any, name: str, padding: Any = 1) -> jax.Array:
    """Return an image of half the sides, by a convolution; within `nn.compact`."""
    conv = nn.Conv(x.shape[-1], (3, 3), 2, padding=padding, dtype=dtype, name=name)
    return conv(x)


def upsample(x: jax.Array, dtype: Any, name: str) -> jax.Array:
    """Return an image of twice the sides: pixels repeated, then a convolution."""
    return conv3(x.shape[-1], dtype, name)(x.repeat(2, axis=1).repeat(2, axis=2))
