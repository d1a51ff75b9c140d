"""The conditional U-Net of latent diffusion."""

from peftjax.models.unet.config import UNetConfig
from peftjax.models.unet.model import UNet2DConditionModel

__all__ = ["UNet2DConditionModel", "UNetConfig"]
