"""Parameter-efficient fine-tuning for JAX and Flax: an adapter is one formula."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftjax import methods
from peftjax.convert import to_glora, to_lora
from peftjax.core.affine import NotMergeable
from peftjax.core.bank import bank
from peftjax.core.method import Layer, Method, OutputMethod, dropout
from peftjax.core.peft import Peft, adapt
from peftjax.methods import *  # noqa: F403 (its list of names is the methods')

if TYPE_CHECKING:
    from peftjax.nnx import from_nnx, to_nnx
    from peftjax.quantised import NF4, Int4, Int8, dequantise, quantise

__all__ = [
    "Int4",
    "Int8",
    "Layer",
    "Method",
    "NF4",
    "NotMergeable",
    "OutputMethod",
    "Peft",
    "adapt",
    "bank",
    "dequantise",
    "dropout",
    "from_nnx",
    "quantise",
    "to_glora",
    "to_lora",
    "to_nnx",
]
__all__ += methods.__all__

__version__ = "0.2.0.dev0"

_ROOMS = (
    "convert",
    "data",
    "hub",
    "models",
    "parallel",
    "presets",
    "quantised",
    "search",
    "starts",
    "testing",
    "training",
)
# Names of this module that live in rooms which only some need.
_LATER = {
    "nnx": ("from_nnx", "to_nnx"),
    "quantised": ("Int4", "Int8", "NF4", "dequantise", "quantise"),
}


def __getattr__(name: str) -> Any:
    """Import a room of the package when it is first used, `pj.models` for one."""
    if name in _ROOMS:
        return import_module(f"peftjax.{name}")
    for room, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"peftjax.{room}"), name)
    raise AttributeError(f"module 'peftjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
