"""MiSS: one small matrix shared by all stretches of a layer's input.

Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
Structure", arXiv 2409.15371.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, dropout
from peftjax.methods.settings import check_count, check_dropout


@dataclass(frozen=True)
class MiSS(Method):
    """`y = x K + b + (Σ_g x_g) D`, with x cut into stretches `x_g` of length r.

    Parameter: `d [r, out]` (D), zeros at first; float32. The sum over stretches is
    `x S`, S stacking identities; a last, shorter stretch is filled with zeros.

    Not here: the authors' earlier Bat, whose delta is a product with the weight, and
    the torch library's `mini`, which repeats D along the outputs.

    Attributes:
        rank: r.
        dropout: probability of dropping an input entry of the sum.

    >>> p = {"d": jnp.array([[1.0], [10.0]])}
    >>> MiSS(rank=2)(p, jnp.array([[1.0, 2.0, 3.0]]), jnp.zeros((3, 1)))
    Array([[24.]], dtype=float32)
    """

    rank: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_dropout(self)

    def check(self, layer: Layer) -> None:
        if self.rank > layer.d_in:
            raise ValueError(
                f"{layer.path or 'layer'}: MiSS(rank={self.rank}): expected at most "
                f"the layer's input, {layer.d_in}"
            )

    def count(self, layer: Layer) -> int:
        return self.rank * layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {"d": jnp.zeros((self.rank, layer.d_out))}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        stretches = -(-kernel.shape[0] // self.rank)
        s = jnp.tile(jnp.eye(self.rank, dtype=kernel.dtype), (stretches, 1))
        low = dropout(x, self.dropout, key) @ s[: kernel.shape[0]]
        return x @ kernel + bias + low @ p["d"]
