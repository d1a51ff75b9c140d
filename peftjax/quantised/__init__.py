"""A frozen base in 8 or 4 bits, without touching the model."""

from peftjax.quantised.formats import NF4, Format, Int4, Int8, Quantised
from peftjax.quantised.tree import dequantise, quantise

__all__ = ["NF4", "Format", "Int4", "Int8", "Quantised", "dequantise", "quantise"]
