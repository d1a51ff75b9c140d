"""Full: a trainable copy, for full fine-tuning, linear probing and BitFit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from peftjax.core.method import Key, Kind, Layer, Method, Params


@dataclass(frozen=True)
class Full(Method):
    """Replace the leaf by a trainable copy, `value`, in the leaf's own shape; float32.

    `{".*": Full()}` is full fine-tuning, `{"head/.*": Full()}` linear probing and
    `{".*/bias": Full(), "head/.*": Full()}` BitFit (arXiv 2106.10199).
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "conv", "embedding", "other")
    needs_kernel: ClassVar[bool] = True
    replaces: ClassVar[bool] = True

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {"value": layer.weight}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        return x @ p["value"] + bias
