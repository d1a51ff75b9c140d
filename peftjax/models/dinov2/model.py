"""DINOv2 (arXiv 2304.07193): a ViT whose branches have learned scales (LayerScale).

Parameters: `patch_embed`, `cls_token`, `pos_embed`, per block `norm1`, `attn/{q,k,v}`,
`attn/proj`, `scale1`, `norm2`, `mlp/fc1`, `mlp/fc2`, `scale2`, then `norm` and `head`.
Every dense kernel is `[in, out]`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.models.dinov2.config import Dinov2Config
from peftjax.models.dinov2.positions import interpolate
from peftjax.models.encoder import Encoding, layer_norm, normal
from peftjax.models.layers import apply_layers, drop_path
from peftjax.models.prefix import Prefix, lengthened
from peftjax.models.vit.model import Attention, Mlp


class Block(nn.Module):
    """One pre-norm layer: `x + s1 attn(norm1(x))`, then `x + s2 mlp(norm2(x))`.

    It takes `x [batch, tokens, features]` and its drop-path rate (None for no
    dropping), and returns `(x, None)`. Its place `prompts` is as in a `ViT`.
    """

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rate: Any) -> tuple[jax.Array, None]:
        config, width = self.config, x.shape[-1]

        def norm(name: str) -> nn.LayerNorm:
            return layer_norm(config.layer_norm_eps, self.dtype, name)

        def residual(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
            start = nn.initializers.constant(config.layerscale_value)
            y = y * self.param(name, start, (width,)).astype(y.dtype)
            key = None if rate is None else self.make_rng("dropout")
            return x + drop_path(y, rate, key)

        heads, hidden = config.num_attention_heads, config.mlp_ratio * width
        attn = Attention(heads, fused_qkv=False, dtype=self.dtype, name="attn")
        mlp = Mlp(hidden, 0.0, deterministic=True, dtype=self.dtype, name="mlp")
        tokens, prompts = x.shape[1], Prefix(width, self.dtype, name="prompts")
        x = lengthened(x, prompts())
        x = residual(x, attn(norm("norm1")(x)), "scale1")
        return residual(x, mlp(norm("norm2")(x)), "scale2")[:, :tokens], None


class Dinov2(nn.Module):
    """DINOv2 with an optional classifier.

    Attributes:
        config: the architecture.
        head: number of classes, read from the class token beside the mean of the
            patches, as in the original; None for the bare encoder.
        scan_layers: blocks under `blocks` with a leading layer axis, run by `nn.scan`.
        remat: recompute each block in the backward pass.
        dtype: dtype of the computation.

    >>> config = Dinov2Config(hidden_size=16, num_hidden_layers=2, image_size=8,
    ...     num_attention_heads=2, patch_size=4)
    >>> images = jnp.zeros((1, 12, 8, 3))
    >>> encoding, _ = Dinov2(config).init_with_output(jax.random.key(0), images)
    >>> encoding.hidden.shape, encoding.pooled.shape
    ((1, 7, 16), (1, 16))
    """

    config: Dinov2Config
    head: int | None = None
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> Any:
        """Return logits, or an `Encoding` where there is no head.

        Args:
            images: `[batch, height, width, channels]`, floating, normalised with
                ImageNet's mean and deviation; sides in multiples of `patch_size`.
            train: drop-path acts; it draws from the rng `"dropout"`.

        Returns:
            float32 logits `[batch, classes]`, or an `Encoding` whose `pooled` is the
            class token, both after the norm.

        Raises:
            ValueError: the images or the fields do not fit.
        """
        config = self.config
        self._check(images)
        drop = train and config.drop_path_rate > 0
        depth, x = config.num_hidden_layers, self._embed(images)
        tokens = x.shape[1]
        prompts = Prefix(config.hidden_size, self.dtype, name="prompts")
        x = apply_layers(
            Block,
            {"config": config, "dtype": self.dtype},
            depth,
            lengthened(x, prompts()),
            np.full(depth, config.drop_path_rate, np.float32) if drop else None,
            scan=self.scan_layers,
            remat=self.remat,
        )
        x = layer_norm(config.layer_norm_eps, jnp.float32, "norm")(x[:, :tokens])
        if self.head is None:
            return Encoding(x, x[:, 0])
        features = jnp.concatenate([x[:, 0], x[:, 1:].mean(axis=1)], axis=-1)
        return nn.Dense(self.head, kernel_init=normal, name="head")(features)

    def _embed(self, images: jax.Array) -> jax.Array:
        config, width = self.config, self.config.hidden_size
        patch = (config.patch_size,) * 2
        x = nn.Conv(width, patch, patch, dtype=self.dtype, name="patch_embed")(images)
        _, down, across, _ = x.shape
        x = x.reshape(len(x), -1, width)
        token = self.param("cls_token", normal, (1, 1, width)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, width)), x], axis=1)
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        table = self.param("pos_embed", normal, (1, tokens, width))
        return x + interpolate(table, (down, across)).astype(x.dtype)

    def _check(self, images: jax.Array) -> None:
        config, patch = self.config, self.config.patch_size
        shape = f"[batch, height, width, {config.num_channels}]"
        if (
            not jnp.issubdtype(images.dtype, jnp.floating)
            or images.ndim != 4
            or images.shape[3] != config.num_channels
            or any(side == 0 or side % patch for side in images.shape[1:3])
        ):
            raise ValueError(
                f"Dinov2: expected floating images {shape}, sides in multiples of "
                f"{patch}, found {images.dtype}{list(images.shape)}"
            )
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                "Dinov2: expected hidden_size to be a multiple of num_attention_heads, "
                f"found {config.hidden_size} and {config.num_attention_heads}"
            )
        if config.image_size < patch or not 0 <= config.drop_path_rate < 1:
            raise ValueError(
                f"Dinov2: expected image_size from {patch}, one patch, and "
                f"drop_path_rate in [0, 1), found {config.image_size} and "
                f"{config.drop_path_rate}"
            )
