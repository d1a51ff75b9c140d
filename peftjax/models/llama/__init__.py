"""Llama 1 to 3."""

from peftjax.models.llama.config import LlamaConfig
from peftjax.models.llama.model import Llama
from peftjax.models.llama.places import Cache

__all__ = ["Cache", "Llama", "LlamaConfig"]
