"""The conditional U-Net of latent diffusion (arXiv 2112.10752) and SDXL (2307.01952).

Parameters: `conv_in`, `time_embedding`, SDXL's `add_embedding`, per level
`down_blocks_i/{resnets_j, attentions_j, downsample}`, `mid_block`,
`up_blocks_i/{resnets_j, attentions_j, upsample}`, `conv_norm_out`, `conv_out`. A
transformer's layers are `transformer_blocks_k/attn{1,2}/{to_q, to_k, to_v, to_out}` and
`transformer_blocks_k/ff/{proj, out}`. Every dense kernel is `[in, out]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.unet.blocks import (
    ResnetBlock,
    Transformer,
    conv3,
    downsample,
    group_norm,
    upsample,
)
from peftjax.models.unet.config import UNetConfig


def time_features(t: jax.Array, features: int, config: UNetConfig) -> jax.Array:
    """Return sines and cosines of times (arXiv 2006.11239), `[..., features]`, float32.

    Frequencies fall from 1 to almost 1/10000.

    >>> time_features(jnp.int32(0), 4, UNetConfig())
    Array([1., 1., 0., 0.], dtype=float32)
    """
    half = features // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / (half - config.freq_shift)
    angles = t[..., None].astype(jnp.float32) * jnp.exp(-jnp.log(10000.0) * exponent)
    parts = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate(parts if config.flip_sin_to_cos else parts[::-1], axis=-1)


class _Embedding(nn.Module):
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))


class Level(nn.Module):
    """The residual blocks of one level and what follows each of them.

    Attributes:
        config: the architecture.
        features: of every block.
        depth: layers of each transformer; 0: there is none.
        heads: heads of each transformer.
        remat: recompute each part in the backward pass.
        dtype: dtype of the computation.
    """

    config: UNetConfig
    features: int
    depth: int
    heads: int
    remat: bool
    dtype: Any

    def _parts(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        remat: Any = nn.remat if self.remat else lambda kind: kind
        config, dtype = self.config, self.dtype

        def resnet(i: int, x: jax.Array, time: jax.Array) -> jax.Array:
            groups, eps = config.norm_num_groups, config.norm_eps
            block = remat(ResnetBlock)
            return block(self.features, groups, eps, dtype, name=f"resnets_{i}")(
                x, time
            )

        def attend(i: int, x: jax.Array, context: jax.Array) -> jax.Array:
            if not self.depth:
                return x
            return remat(Transformer)(
                self.depth,
                self.heads,
                config.norm_num_groups,
                config.use_linear_projection,
                dtype,
                name=f"attentions_{i}",
            )(x, context)

        return resnet, attend


class Down(Level):
    """A level on the way down; each of its results is kept."""

    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, time: Any, context: Any) -> list[jax.Array]:
        """Return the results in order; the last goes on."""
        resnet, attend = self._parts()
        kept = []
        for i in range(self.config.layers_per_block):
            x = attend(i, resnet(i, x, time), context)
            kept.append(x)
        if not self.last:
            kept.append(downsample(x, self.dtype, "downsample"))
        return kept


class Mid(Level):
    """The coarsest level's middle."""

    @nn.compact
    def __call__(self, x: jax.Array, time: Any, context: Any) -> jax.Array:
        """Return an image of the shape of x."""
        resnet, attend = self._parts()
        return resnet(1, attend(0, resnet(0, x, time), context), time)


class Up(Level):
    """A level on the way up, which takes what was kept, the latest first."""

    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, kept: Any, time: Any, context: Any) -> jax.Array:
        """Return the level's image, of twice the sides but on the last level."""
        resnet, attend = self._parts()
        for i, skip in enumerate(reversed(kept)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = attend(i, resnet(i, x, time), context)
        return x if self.last else upsample(x, self.dtype, "upsample")


class UNet2DConditionModel(nn.Module):
    """The U-Net of Stable Diffusion 1.5, 2.1 and XL.

    Attributes:
        config: the architecture.
        remat: recompute each residual block and transformer in the backward pass.
        dtype: dtype of the computation.

    >>> config = UNetConfig(block_out_channels=(8, 16), down_block_types=(
    ...     "CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
    ...     cross_attention_dim=6, norm_num_groups=4)
    >>> x, t, context = jnp.zeros((2, 4, 6, 4)), jnp.zeros(2, int), jnp.zeros((2, 3, 6))
    >>> model = UNet2DConditionModel(config)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x, t, context)[0]
    ShapeDtypeStruct(shape=(2, 4, 6, 4), dtype=float32)
    """

    config: UNetConfig
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        t: jax.Array,
        context: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
        *,
        signal: jax.Array | None = None,
    ) -> jax.Array:
        """Return the prediction.

        Args:
            sample: `[batch, height, width, in_channels]`, sides in multiples of
                2 to the number of levels less one; the original's has channels first.
            t: times, `[batch]` or one for all.
            context: `[batch, tokens, cross_attention_dim]`, a text encoder's states.
            text_embeds: `[batch, features]`, SDXL's pooled text.
            time_ids: `[batch, 6]`, SDXL's sizes and crop of the image.
            signal: `[batch, height, width, features]`, added to what the first
                convolution gives: a `SignalEncoder`'s.

        Returns:
            float32 `[batch, height, width, out_channels]`.

        Raises:
            ValueError: an input does not fit.
        """
        config = self.config
        self._check(sample, context, text_embeds, time_ids)
        time = self._embed(jnp.broadcast_to(t, sample.shape[:1]), text_embeds, time_ids)
        context = context.astype(self.dtype)
        widths, layers = config.block_out_channels, config.layers()
        heads = config.each("attention_head_dim")
        fields = {"config": config, "remat": self.remat, "dtype": self.dtype}
        levels = [
            {"features": n, "depth": d, "heads": h, **fields}
            for n, d, h in zip(widths, layers, heads)
        ]

        x = conv3(widths[0], self.dtype, "conv_in")(sample)
        if signal is not None:
            if signal.shape != x.shape:
                raise ValueError(
                    f"UNet2DConditionModel: expected signal {list(x.shape)}, found "
                    f"{list(signal.shape)}"
                )
            x = x + signal.astype(x.dtype)
        kept, last = [x], len(levels) - 1
        for i, level in enumerate(levels):
            down = Down(**level, last=i == last, name=f"down_blocks_{i}")
            kept += down(x, time, context)
            x = kept[-1]
        # The middle attends even where the coarsest level does not.
        middle = config.each("transformer_layers_per_block")[-1]
        x = Mid(**{**levels[-1], "depth": middle}, name="mid_block")(x, time, context)
        for i, level in enumerate(reversed(levels)):
            count = config.layers_per_block + 1
            kept, own = kept[:-count], kept[-count:]
            up = Up(**level, last=i == last, name=f"up_blocks_{i}")
            x = up(x, own, time, context)
        eps = config.norm_eps
        x = group_norm(config.norm_num_groups, eps, self.dtype, "conv_norm_out")(x)
        x = conv3(config.out_channels, self.dtype, "conv_out")(nn.silu(x))
        return x.astype(jnp.float32)

    def _embed(self, t: jax.Array, text_embeds: Any, time_ids: Any) -> jax.Array:
        config, first = self.config, self.config.block_out_channels[0]
        embedding = _Embedding(4 * first, self.dtype, name="time_embedding")
        time = embedding(time_features(t, first, config))
        if config.addition_embed_type is None:
            return time
        assert config.addition_time_embed_dim is not None
        numbers = time_features(time_ids, config.addition_time_embed_dim, config)
        numbers = numbers.reshape(len(time_ids), -1)
        added = jnp.concatenate([text_embeds, numbers], axis=-1)
        return time + _Embedding(4 * first, self.dtype, name="add_embedding")(added)

    def _check(
        self, sample: jax.Array, context: jax.Array, text_embeds: Any, time_ids: Any
    ) -> None:
        config, batch = self.config, sample.shape[0] if sample.ndim else None
        unit = 2 ** (len(config.block_out_channels) - 1)
        if (
            sample.ndim != 4
            or sample.shape[3] != config.in_channels
            or any(side == 0 or side % unit for side in sample.shape[1:3])
        ):
            raise ValueError(
                "UNet2DConditionModel: expected sample [batch, height, width, "
                f"{config.in_channels}], sides in multiples of {unit}, found "
                f"{list(sample.shape)}"
            )
        features = config.cross_attention_dim
        if context.ndim != 3 or context.shape[::2] != (batch, features):
            raise ValueError(
                f"UNet2DConditionModel: expected context [{batch}, tokens, "
                f"{features}], found {list(context.shape)}"
            )
        added = config.addition_embed_type is not None
        for name, found, size in (
            ("text_embeds", text_embeds, config.text_features),
            ("time_ids", time_ids, 6),
        ):
            have = None if found is None else found.shape
            if have != ((batch, size) if added else None):
                raise ValueError(
                    f"UNet2DConditionModel: {name}: expected "
                    f"{[batch, size] if added else None}, found {have}"
                )
