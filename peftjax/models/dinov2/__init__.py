"""DINOv2."""

from peftjax.models.dinov2.config import Dinov2Config
from peftjax.models.dinov2.model import Dinov2

__all__ = ["Dinov2", "Dinov2Config"]
