"""LoRA: a low-rank delta beside the frozen weight.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, LowRank, Method, Params, check_rank, dropout
from peftjax.methods.settings import (
    check_count,
    check_dropout,
    check_flag,
    check_strength,
)


@dataclass(frozen=True)
class LoRA(Method):
    """`y = x K + b + s (x A) B`, with `s = alpha / r` (Eq. 3 of the paper).

    Parameters: `a [in, r]`, `b [r, out]`; float32.

    `rs=True` takes `s = alpha / sqrt(r)` (rsLoRA, arXiv 2312.03732). Dropout acts on
    the input of A. As in the released code A is uniform on `±1/sqrt(in)` (Kaiming, a =
    √5) and B zero; for an embedding A is zero and B standard normal.

    Attributes:
        rank: r.
        alpha: numerator of the scale.
        rs: rank-stabilised scale.
        dropout: probability of dropping an input entry.

    >>> import jax, jax.numpy as jnp
    >>> method = LoRA(rank=2, alpha=6.0)
    >>> p = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
    >>> method(p, jnp.ones((1, 3)), jnp.zeros((3, 4)))
    Array([[18., 18., 18., 18.]], dtype=float32)
    """

    rank: int
    alpha: float
    rs: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_flag(self, "rs")
        check_dropout(self)

    @property
    def scale(self) -> float:
        return self.alpha / (sqrt(self.rank) if self.rs else self.rank)

    def check(self, layer: Layer) -> None:
        check_rank("LoRA", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shape_a, shape_b = (layer.d_in, self.rank), (self.rank, layer.d_out)
        if layer.kind == "embedding":
            return {"a": jnp.zeros(shape_a), "b": jax.random.normal(key, shape_b)}
        bound = 1 / sqrt(layer.d_in)
        a = jax.random.uniform(key, shape_a, minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros(shape_b)}

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        if self.dropout:
            return None
        return LowRank(p["a"], self.scale * p["b"], bias)

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        low = dropout(x, self.dropout, key) @ p["a"]
        return x @ kernel + bias + (self.scale * low) @ p["b"]
