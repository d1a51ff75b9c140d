"""DeBERTa-v3."""

from peftjax.models.deberta.config import DebertaConfig
from peftjax.models.deberta.model import Deberta

__all__ = ["Deberta", "DebertaConfig"]
