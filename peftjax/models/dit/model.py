"""Diffusion Transformer: a ViT told time and class by adaptive layer norm.

Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, the
variant adaLN-Zero.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.layers import apply_layers
from peftjax.models.vit.model import Attention, Mlp

_FREQUENCIES = 256  # features of a time before its MLP
_EPS = 1e-6
_small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """`x + α₁ attn(norm(x) (1 + γ₁) + β₁)`, then the same of the MLP with γ₂, β₂, α₂.

    The six are a linear function of the condition, and zero at first: the block is then
    the identity (Figure 3 of the paper). It takes `x [batch, tokens, width]`, None and
    `c [batch, width]`, and returns `(x, None)`, as `apply_layers` asks.
    """

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: Any, c: jax.Array) -> tuple[jax.Array, None]:
        six = _modulation(6, x.shape[-1], self.dtype)(nn.silu(c))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(six[:, None], 6, -1)
        attn = Attention(self.num_heads, True, self.dtype, name="attn")
        x = x + gate1 * attn(_norm(x, self.dtype) * (1 + scale1) + shift1)
        mlp = Mlp(self.mlp_dim, 0.0, True, self.dtype, name="mlp")
        return x + gate2 * mlp(_norm(x, self.dtype) * (1 + scale2) + shift2), None


class DiT(nn.Module):
    """A class-conditional Diffusion Transformer.

    Parameters: `patch_embed`, `t_embed/fc1`, `t_embed/fc2`, `y_embed` with one row more
    than classes, per block `adaln`, `attn/qkv`, `attn/proj`, `mlp/fc1` and `mlp/fc2`,
    then `norm/adaln` and `head`. Positions are fixed sines and cosines.

    Departures from the released code: the variance is not learned; GELU is exact; the
    attention's q, k, v are drawn as the ViT's here.

    Attributes:
        image_size: height and width of the images.
        patch_size: side of a patch.
        channels: of the images.
        width: features per token; a multiple of 4.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden features of the MLP.
        num_classes: classes; label `num_classes` stands for none.
        scan_layers: blocks under `blocks` with a leading layer axis, run by `nn.scan`.
        remat: recompute each block in the backward pass.
        dtype: dtype of the computation; parameters are float32.

    >>> model = DiT(image_size=8, patch_size=2, channels=1, width=32, depth=2,
    ...             num_heads=2, mlp_dim=64, num_classes=10)
    >>> x, t, y = jnp.ones((3, 8, 8, 1)), jnp.zeros(3, int), jnp.array([0, 9, 10])
    >>> variables = model.init(jax.random.key(0), x, t, y)
    >>> model.apply(variables, x, t, y).shape
    (3, 8, 8, 1)
    """

    image_size: int = 32
    patch_size: int = 2
    channels: int = 4
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_dim: int = 1536
    num_classes: int = 1000
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """Return what the network predicts, noise or velocity.

        Args:
            x: `[batch, image_size, image_size, channels]`, noised, floating.
            t: times, `[batch]` or one for all, integers.
            y: classes `[batch]`, integers; `num_classes` is none.

        Returns:
            float32, of the shape of x.

        Raises:
            ValueError: the images, the classes or the fields do not fit.
        """
        self._check(x, y)
        patch, side = self.patch_size, self.image_size // self.patch_size
        embed = nn.Conv(
            self.width,
            (patch, patch),
            (patch, patch),
            "VALID",
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="patch_embed",
        )
        tokens = embed(x).reshape(len(x), side * side, self.width)
        tokens = tokens + jnp.asarray(_positions(side, self.width), tokens.dtype)
        c = TimeEmbed(self.width, self.dtype, name="t_embed")(t)
        labels = nn.Embed(
            self.num_classes + 1, self.width, embedding_init=_small, name="y_embed"
        )
        c = c + labels(y).astype(self.dtype)
        fields = {key: getattr(self, key) for key in ("num_heads", "mlp_dim", "dtype")}
        scan, remat = self.scan_layers, self.remat
        tokens = apply_layers(
            Block, fields, self.depth, tokens, None, c, scan=scan, remat=remat
        )
        tokens = FinalNorm(self.dtype, name="norm")(tokens, c)
        zeros, out = nn.initializers.zeros, patch * patch * self.channels
        pixels = nn.Dense(out, kernel_init=zeros, name="head")(tokens)
        pixels = pixels.reshape(len(x), side, side, patch, patch, self.channels)
        return pixels.swapaxes(2, 3).reshape(x.shape)

    def _check(self, x: jax.Array, y: jax.Array) -> None:
        size, patch = self.image_size, self.patch_size
        if size % patch or self.width % 4 or self.width % self.num_heads:
            raise ValueError(
                "DiT: expected patch_size to divide image_size, and 4 and num_heads to "
                f"divide width, found {patch} and {size}, {self.num_heads} and "
                f"{self.width}"
            )
        expected = (size, size, self.channels)
        if x.ndim != 4 or x.shape[1:] != expected or y.shape != x.shape[:1]:
            raise ValueError(
                f"DiT: expected images [batch, {size}, {size}, {self.channels}] and a "
                f"class for each, found {x.shape} and {y.shape}; resize them, or set "
                "image_size"
            )


class TimeEmbed(nn.Module):
    """Sines and cosines of a time, and an MLP of two layers."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        half = _FREQUENCIES // 2
        rates = np.exp(-np.log(10000) * np.arange(half) / half).astype(np.float32)
        angles = jnp.atleast_1d(t)[:, None] * rates
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

        def dense(name: str) -> nn.Dense:
            return nn.Dense(self.width, dtype=self.dtype, kernel_init=_small, name=name)

        return dense("fc2")(nn.silu(dense("fc1")(x)))


class FinalNorm(nn.Module):
    """`norm(x) (1 + γ) + β`, in float32."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        two = _modulation(2, x.shape[-1], self.dtype)(nn.silu(c))
        shift, scale = jnp.split(two[:, None], 2, -1)
        return _norm(x, jnp.float32) * (1 + scale) + shift


def _modulation(parts: int, width: int, dtype: Any) -> nn.Dense:
    zeros = nn.initializers.zeros
    return nn.Dense(parts * width, dtype=dtype, kernel_init=zeros, name="adaln")


def _norm(x: jax.Array, dtype: Any) -> jax.Array:
    norm = nn.LayerNorm(_EPS, dtype=dtype, use_scale=False, use_bias=False)
    return norm(x)


def _positions(side: int, width: int) -> np.ndarray:
    """Return `[side * side, width]`: half tells the column, half the row."""
    rates = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * rates
    one = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    rows, columns = np.repeat(one, side, 0), np.tile(one, (side, 1))
    return np.concatenate([columns, rows], -1).astype(np.float32)
