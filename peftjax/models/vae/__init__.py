"""The autoencoder of latent diffusion."""

from peftjax.models.vae.config import VaeConfig
from peftjax.models.vae.model import AutoencoderKL

__all__ = ["AutoencoderKL", "VaeConfig"]
