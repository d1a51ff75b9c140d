"""Vision Transformer, pre-norm, with names as in timm.

Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.

The blocks' kernels are `[in, out]`; q, k, v in that order, each with contiguous heads.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.attention import attend
from peftjax.models.layers import apply_layers, drop_path
from peftjax.models.prefix import Prefix, lengthened

SIZES = {
    "Ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
}

_BLOCK_FIELDS = ("num_heads", "mlp_dim", "fused_qkv", "dropout", "norm_eps", "dtype")

# Glorot uniform of a square matrix, as released, whether q, k, v share one or not.
_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
_glorot = nn.initializers.xavier_uniform()
_small = nn.initializers.normal(0.02)


def vit(name: str, **fields: Any) -> ViT:
    """Return a ViT of a published size.

    Args:
        name: `"Ti"`, `"S"`, `"B"` or `"L"`, a slash, the patch size: `"B/16"`.
        **fields: other fields of `ViT`.

    Raises:
        ValueError: the name is of another form.

    >>> vit("B/16", num_classes=10).width
    768
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdecimal() or int(patch) == 0:
        raise ValueError(
            f"vit({name!r}): expected one of {', '.join(SIZES)}, a slash and the patch "
            'size, such as "B/16"; for other sizes use ViT(...)'
        )
    return ViT(**{**SIZES[size], "patch_size": int(patch), **fields})


class Attention(nn.Module):
    """Multi-head self-attention (Eq. 5 to 8 of the paper's appendix A)."""

    num_heads: int
    fused_qkv: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        heads = (batch, tokens, self.num_heads, width // self.num_heads)
        if self.fused_qkv:
            qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=_fan_in, name="qkv")
            parts = jnp.split(qkv(x), 3, axis=-1)
        else:
            parts = [
                nn.Dense(width, dtype=self.dtype, kernel_init=_fan_in, name=name)(x)
                for name in ("q", "k", "v")
            ]
        q, k, v = (part.reshape(heads) for part in parts)
        x = attend(q, k, v).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_glorot, name="proj")(x)


class Mlp(nn.Module):
    """`fc2(gelu(fc1(x)))` with the exact GELU."""

    mlp_dim: int
    dropout: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=_glorot, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.dropout, deterministic=self.deterministic)(x)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_glorot, name="fc2")(x)


class Block(nn.Module):
    """One pre-norm layer: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.

    It takes `x [batch, tokens, width]` and its drop-path rate (None for no dropping),
    and returns `(x, None)`, the form that `nn.scan` asks for. Rows that an adapter
    gives to its place `prompts` are tokens inside of it alone.
    """

    num_heads: int
    mlp_dim: int
    fused_qkv: bool
    dropout: float
    norm_eps: float
    deterministic: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rate: Any) -> tuple[jax.Array, None]:
        def residual(x, y):
            y = nn.Dropout(self.dropout, deterministic=self.deterministic)(y)
            key = None if rate is None else self.make_rng("dropout")
            return x + drop_path(y, rate, key)

        norm1 = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm1")
        attn = Attention(self.num_heads, self.fused_qkv, self.dtype, name="attn")
        norm2 = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm2")
        drop = self.dropout, self.deterministic
        mlp = Mlp(self.mlp_dim, *drop, self.dtype, name="mlp")
        tokens, prompts = x.shape[1], Prefix(x.shape[-1], self.dtype, name="prompts")
        x = lengthened(x, prompts())
        x = residual(x, attn(norm1(x)))
        return residual(x, mlp(norm2(x)))[:, :tokens], None


class ViT(nn.Module):
    """A pre-norm Vision Transformer.

    Parameters: `patch_embed`, `cls_token`, `pos_embed`, per block `norm1`, `attn/qkv`,
    `attn/proj`, `norm2`, `mlp/fc1` and `mlp/fc2`, then `norm` and `head`.

    An adapter may give rows to the place `prompts`, tokens that run through all blocks,
    and to that of each block, `blocks_0/prompts` (`methods.VPT`).

    Dropout falls where the paper puts it (appendix B.1): on the embeddings and after
    every dense layer except q, k, v. Departures from the released code: GELU is exact;
    with `pooling="mean"` there is no class token and the mean is taken after `norm`
    (arXiv 2205.01580), where timm keeps the token and normalises after the mean.

    Attributes:
        image_size: height and width of the images, or one number for both.
        patch_size: side of a patch.
        width: features per token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden features of the MLP.
        num_classes: outputs of `head`; 0 for no head.
        pooling: `"cls"`: the class token; `"mean"`: the mean of the patches' tokens.
        fused_qkv: one matrix `attn/qkv`, or three, `attn/q`, `attn/k`, `attn/v`.
        dropout: probability of dropping an entry.
        drop_path: probability of dropping a branch in the last block; it rises linearly
            from 0 in the first block, as in timm.
        norm_eps: epsilon of every LayerNorm.
        scan_layers: blocks under `blocks` with a leading layer axis, run by `nn.scan`.
        remat: recompute each block in the backward pass.
        dtype: dtype of the computation; parameters are float32.

    >>> model = ViT(image_size=8, patch_size=4, width=32, depth=2, num_heads=2,
    ...             mlp_dim=64, num_classes=5)
    >>> images = jnp.zeros((3, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), images)
    >>> model.apply(variables, images).shape
    (3, 5)
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    pooling: Literal["cls", "mean"] = "cls"
    fused_qkv: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return logits, or the pooled features where there is no head.

        Args:
            images: `[batch, height, width, channels]`, floating.
            train: dropout and drop-path act; they draw from the rng `"dropout"`.

        Returns:
            `[batch, num_classes]`, or `[batch, width]` without a head; float32.

        Raises:
            ValueError: the images or the fields do not fit.
        """
        self._check(images)
        x = self._embed(images)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        tokens, prompts = x.shape[1], Prefix(self.width, self.dtype, name="prompts")
        x = lengthened(x, prompts())
        rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
        fields = {name: getattr(self, name) for name in _BLOCK_FIELDS}
        fields["deterministic"] = not train
        scan, remat = self.scan_layers, self.remat
        drop = rates if train and self.drop_path > 0 else None
        x = apply_layers(Block, fields, self.depth, x, drop, scan=scan, remat=remat)
        x = nn.LayerNorm(self.norm_eps, dtype=jnp.float32, name="norm")(x)
        x = x[:, 0] if self.pooling == "cls" else x[:, :tokens].mean(axis=1)
        if self.num_classes == 0:
            return x
        return nn.Dense(self.num_classes, kernel_init=_small, name="head")(x)

    def _embed(self, images: jax.Array) -> jax.Array:
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(
            self.width, patch, patch, "VALID", dtype=self.dtype, name="patch_embed"
        )(images)
        x = x.reshape(len(x), -1, self.width)
        if self.pooling == "cls":
            token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
            token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        positions = self.param("pos_embed", _small, (1, *x.shape[1:]))
        return x + positions.astype(x.dtype)

    def _check(self, images: jax.Array) -> None:
        patch, rates = self.patch_size, (self.dropout, self.drop_path)
        rows, columns = (patches * patch for patches in self.grid)
        _expect(
            rows * columns > 0 and self.image_size in ((rows, columns), rows),
            f"image_size in multiples of patch_size={patch}, found {self.image_size}",
        )
        known = self.pooling in ("cls", "mean")
        _expect(known, f'pooling "cls" or "mean", found {self.pooling!r}')
        heads = (self.width, self.num_heads)
        _expect(heads[0] % heads[1] == 0, f"num_heads to divide width, found {heads}")
        valid = all(0 <= rate < 1 for rate in rates)
        _expect(valid, f"dropout and drop_path in [0, 1), found {rates}")
        _expect(
            images.ndim == 4 and images.shape[1:3] == (rows, columns),
            f"images [batch, {rows}, {columns}, channels], found {images.shape}; "
            "resize them, or set image_size (and see resize_pos_embed)",
        )
        _expect(
            jnp.issubdtype(images.dtype, jnp.floating),
            f"floating images, found {images.dtype}; scale them, as in images / 255",
        )


def _expect(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"ViT: expected {expected}")
