"""The autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752).

Parameters: `encoder` and `decoder` with `conv_in`, `down_blocks_i/{resnets_j,
downsample}` or `up_blocks_i/{resnets_j, upsample}`, `mid_block/{resnets_j,
attentions_0}`, `conv_norm_out`, `conv_out`; then `quant_conv` and `post_quant_conv`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.unet.blocks import (
    Attention,
    ResnetBlock,
    conv3,
    downsample,
    group_norm,
    upsample,
)
from peftjax.models.vae.config import VaeConfig

_EPS = 1e-6


class Gaussian(NamedTuple):
    """A diagonal Gaussian of latents.

    Attributes:
        mean: `[batch, height, width, latent_channels]`.
        log_variance: of the same shape, in [-30, 20].
    """

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Return a draw."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


class _Block(nn.Module):
    config: VaeConfig
    remat: bool
    dtype: Any

    def _resnet(self, features: int, name: str) -> nn.Module:
        block: Any = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        groups = self.config.norm_num_groups
        return block(features, groups, _EPS, self.dtype, name=name)


class Level(_Block):
    """The residual blocks of one level, and the resampling after them."""

    features: int
    count: int
    resample: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the level's image."""
        for i in range(self.count):
            x = self._resnet(self.features, f"resnets_{i}")(x)
        if self.resample == "downsample":
            # One pixel right and below alone, as in the original.
            return downsample(x, self.dtype, "downsample", ((0, 1), (0, 1)))
        return upsample(x, self.dtype, "upsample") if self.resample else x


class Mid(_Block):
    """The coarsest level's middle, whose pixels attend to one another by one head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return an image of the shape of x."""
        x = self._resnet(x.shape[-1], "resnets_0")(x)
        x = x + _PixelAttention(self.config, self.dtype, name="attentions_0")(x)
        return self._resnet(x.shape[-1], "resnets_1")(x)


class _PixelAttention(nn.Module):
    config: VaeConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = self.config.norm_num_groups
        y = group_norm(groups, _EPS, self.dtype, "group_norm")(x)
        tokens = y.reshape(len(x), -1, x.shape[-1])
        attention = Attention(1, bias=True, dtype=self.dtype, name="attention")
        return attention(tokens).reshape(x.shape)


class Coder(_Block):
    """The encoder, or the decoder.

    Attributes:
        outputs: channels of the result.
        decodes: whether it is the decoder.
    """

    outputs: int
    decodes: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return latents' moments, or an image."""
        config, dtype = self.config, self.dtype
        widths = config.block_out_channels
        fields = {"config": config, "remat": self.remat, "dtype": dtype}
        x = conv3(widths[-1 if self.decodes else 0], dtype, "conv_in")(x)
        if self.decodes:
            x = Mid(**fields, name="mid_block")(x)
        way = "up" if self.decodes else "down"
        for i, features in enumerate(widths[::-1] if self.decodes else widths):
            last = i == len(widths) - 1
            x = Level(
                **fields,
                features=features,
                count=config.layers_per_block + self.decodes,
                resample=None if last else f"{way}sample",
                name=f"{way}_blocks_{i}",
            )(x)
        if not self.decodes:
            x = Mid(**fields, name="mid_block")(x)
        x = group_norm(config.norm_num_groups, _EPS, dtype, "conv_norm_out")(x)
        return conv3(self.outputs, dtype, "conv_out")(nn.silu(x))


class AutoencoderKL(nn.Module):
    """An autoencoder of images; both sides are 2 to the levels less one times smaller.

    Diffusion works on `config.scaling_factor * encode(images).sample(key)`.

    Attributes:
        config: the architecture.
        remat: recompute each residual block in the backward pass.
        dtype: dtype of the computation.

    >>> config = VaeConfig(block_out_channels=(4, 8), norm_num_groups=2)
    >>> model, images = AutoencoderKL(config), jnp.zeros((1, 8, 8, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> jax.eval_shape(
    ...     lambda v, x: model.apply(v, x, method="encode").mean, variables, images)
    ShapeDtypeStruct(shape=(1, 4, 4, 4), dtype=float32)
    """

    config: VaeConfig
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        latents = config.latent_channels
        fields = {"config": config, "remat": self.remat, "dtype": dtype}
        self.encoder = Coder(**fields, outputs=2 * latents, decodes=False)
        self.decoder = Coder(**fields, outputs=config.out_channels, decodes=True)
        self.quant_conv = nn.Conv(2 * latents, (1, 1), dtype=dtype)
        self.post_quant_conv = nn.Conv(latents, (1, 1), dtype=dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return what `decode` makes of the mean of `encode`."""
        return self.decode(self.encode(images).mean)

    def encode(self, images: jax.Array) -> Gaussian:
        """Return the Gaussian of the latents, float32.

        Args:
            images: `[batch, height, width, in_channels]` in [-1, 1], sides in multiples
                of 2 to the number of levels less one; the original has channels first.

        Raises:
            ValueError: the images do not fit.
        """
        unit = 2 ** (len(self.config.block_out_channels) - 1)
        self._check("images", images, self.config.in_channels, unit)
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, log_variance.clip(-30.0, 20.0))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Return images, float32.

        Args:
            latents: `[batch, height, width, latent_channels]`, without the scaling
                factor.

        Raises:
            ValueError: the latents do not fit.
        """
        self._check("latents", latents, self.config.latent_channels, 1)
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def _check(self, what: str, x: jax.Array, channels: int, unit: int) -> None:
        if (
            x.ndim != 4
            or x.shape[3] != channels
            or any(side == 0 or side % unit for side in x.shape[1:3])
        ):
            raise ValueError(
                f"AutoencoderKL: expected {what} [batch, height, width, {channels}], "
                f"sides in multiples of {unit}, found {list(x.shape)}"
            )
