"""Adapter files of the torch library, read and written."""

from peftjax.hub.torch.load import load_torch
from peftjax.hub.torch.save import save_torch

__all__ = ["load_torch", "save_torch"]
