"""T5, T5 v1.1 and FLAN-T5."""

from peftjax.models.t5.cache import TargetCache
from peftjax.models.t5.config import T5Config
from peftjax.models.t5.model import T5

__all__ = ["T5", "T5Config", "TargetCache"]
