"""Diffusion Transformers."""

from peftjax.models.dit.model import DiT

__all__ = ["DiT"]
