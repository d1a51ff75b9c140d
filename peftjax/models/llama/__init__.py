"""Llama 1 to 3."""

from peftjax.models.llama.config import LlamaConfig
from peftjax.models.llama.model import Cache, Llama

__all__ = ["Cache", "Llama", "LlamaConfig"]
