"""Adapter files, and repositories of them."""

from peftjax.hub.files import load, read_module, read_rules, save
from peftjax.hub.merged import save_merged
from peftjax.hub.repositories import pull, push
from peftjax.hub.tensors import AdapterFileError
from peftjax.hub.torch import load_torch, save_torch

__all__ = [
    "AdapterFileError",
    "load",
    "load_torch",
    "pull",
    "push",
    "read_module",
    "read_rules",
    "save",
    "save_merged",
    "save_torch",
]
