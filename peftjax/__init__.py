"""Parameter-efficient fine-tuning for JAX and Flax: an adapter is one formula."""

from importlib import import_module
from typing import Any

from peftjax.core.affine import NotMergeable
from peftjax.core.bank import bank
from peftjax.core.method import Layer, Method, dropout
from peftjax.core.peft import Peft, adapt
from peftjax.methods.composition import Composition
from peftjax.methods.convert import to_lora
from peftjax.methods.dora import DoRA
from peftjax.methods.full import Full
from peftjax.methods.glora import GLoRA
from peftjax.methods.glora_supernet import GLoRASupernet
from peftjax.methods.hra import HRA
from peftjax.methods.hydra import Hydra
from peftjax.methods.hydralora import HydraLoRA
from peftjax.methods.ia3 import IA3
from peftjax.methods.lora import LoRA
from peftjax.methods.oft import OFT
from peftjax.methods.ssf import SSF
from peftjax.search.subnet import to_glora

__all__ = [
    "Composition",
    "DoRA",
    "Full",
    "GLoRA",
    "GLoRASupernet",
    "HRA",
    "Hydra",
    "HydraLoRA",
    "IA3",
    "Layer",
    "LoRA",
    "Method",
    "NotMergeable",
    "OFT",
    "Peft",
    "SSF",
    "adapt",
    "bank",
    "dropout",
    "from_nnx",
    "to_glora",
    "to_lora",
    "to_nnx",
]

__version__ = "0.2.0.dev0"

_ROOMS = (
    "data",
    "hub",
    "models",
    "parallel",
    "presets",
    "search",
    "testing",
    "training",
)
_NNX = ("from_nnx", "to_nnx")


def __getattr__(name: str) -> Any:
    """Import a room of the package when it is first used, `pj.models` for one."""
    if name in _NNX:
        return getattr(import_module("peftjax.nnx"), name)
    if name in _ROOMS:
        return import_module(f"peftjax.{name}")
    raise AttributeError(f"module 'peftjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
