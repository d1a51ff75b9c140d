"""Vision Transformers."""

from peftjax.models.vit.model import SIZES, ViT, vit
from peftjax.models.vit.positions import resize_pos_embed

__all__ = ["SIZES", "ViT", "resize_pos_embed", "vit"]
