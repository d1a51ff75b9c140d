"""Adapters into other adapters that compute the same, or nearly."""

from peftjax.convert import combine
from peftjax.convert.glora import Subnet, to_glora
from peftjax.convert.lora import Converted, to_lora

__all__ = ["Converted", "Subnet", "combine", "to_glora", "to_lora"]
