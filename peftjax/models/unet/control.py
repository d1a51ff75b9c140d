"""A U-Net that a second image steers, by a small encoder of that image.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv
2306.07280, whose code HRA's experiments (arXiv 2405.17484) go on from: the encoder of
ControlNet's condition (Zhang et al., arXiv 2302.05543) is trained beside the adapters,
and there is no copy of the U-Net. Its result is added to the first convolution's.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.unet.blocks import conv3
from peftjax.models.unet.config import UNetConfig
from peftjax.models.unet.model import UNet2DConditionModel

WIDTHS = (16, 32, 96, 256)


class SignalEncoder(nn.Module):
    """Convolutions from an image to features of latents; zero at the start.

    Parameters: `conv_in`, two of `blocks_i` for each further width, the second of which
    halves the sides, and `conv_out`, which starts at zero: the U-Net as it was.

    Attributes:
        features: of the result.
        widths: of the convolutions; sides become 2 to their number less one times
            smaller.
        dtype: dtype of the computation.

    >>> image = jnp.ones((1, 16, 16, 3))
    >>> y, _ = SignalEncoder(8).init_with_output(jax.random.key(0), image)
    >>> y.shape, float(jnp.abs(y).max())
    ((1, 2, 2, 8), 0.0)
    """

    features: int
    widths: tuple[int, ...] = WIDTHS
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Return `[batch, height, width, features]` of an image in [0, 1]."""
        x = nn.silu(conv3(self.widths[0], self.dtype, "conv_in")(image))
        for i, (now, then) in enumerate(zip(self.widths, self.widths[1:])):
            x = nn.silu(conv3(now, self.dtype, f"blocks_{2 * i}")(x))
            half = {"strides": 2, "padding": 1, "dtype": self.dtype}
            x = nn.silu(nn.Conv(then, (3, 3), **half, name=f"blocks_{2 * i + 1}")(x))
        zero = nn.initializers.zeros
        return nn.Conv(
            *(self.features, (3, 3)),
            padding=1,
            dtype=self.dtype,
            kernel_init=zero,
            name="conv_out",
        )(x)


class ControlledUNet(nn.Module):
    """A `UNet2DConditionModel` under `unet`, and a `SignalEncoder` under `signal`.

    Attributes:
        config: of the U-Net.
        widths: of the encoder: one more than the autoencoder halves the sides.
        remat: as in `UNet2DConditionModel`.
        dtype: as there.
    """

    config: UNetConfig
    widths: tuple[int, ...] = WIDTHS
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, sample: jax.Array, t: jax.Array, context: jax.Array, image: jax.Array
    ) -> jax.Array:
        """Return the prediction, float32 `[batch, height, width, out_channels]`.

        Args:
            sample: as in `UNet2DConditionModel`.
            t: as there.
            context: as there.
            image: the condition, `[batch, H, W, 3]` in [0, 1], of the image's size.

        Raises:
            ValueError: an input does not fit.
        """
        features = self.config.block_out_channels[0]
        encoder = SignalEncoder(features, self.widths, self.dtype, name="signal")
        unet = UNet2DConditionModel(self.config, self.remat, self.dtype, name="unet")
        return unet(sample, t, context, signal=encoder(image))
