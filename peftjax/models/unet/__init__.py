"""The conditional U-Net of latent diffusion."""

from peftjax.models.unet.config import UNetConfig
from peftjax.models.unet.control import ControlledUNet, SignalEncoder
from peftjax.models.unet.model import UNet2DConditionModel

__all__ = ["ControlledUNet", "SignalEncoder", "UNet2DConditionModel", "UNetConfig"]
