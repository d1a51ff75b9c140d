"""HiRA: a delta that is the weight times a low-rank matrix, entry by entry.

Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large
Language Models", ICLR 2025; no preprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import check_count, check_dropout


@dataclass(frozen=True)
class HiRA(Method):
    """`y = x K + b + x (K ∘ A B)`.

    Parameters: `a [in, r]`, `b [r, out]`; float32. A is uniform on `±1/sqrt(in)` and B
    zero; for an embedding A is zero and B standard normal.

    `K ∘ A B` has a rank above r and is formed, with its gradient: 1.3 of the bound's
    FLOPs. Products with K row by row would cost r times the layer.

    Attributes:
        rank: r.
        dropout: probability of dropping an input entry of the second product.

    >>> p = {"a": jnp.ones((2, 1)), "b": jnp.array([[0.5]])}
    >>> HiRA(rank=1)(p, jnp.ones((1, 2)), jnp.array([[2.0], [4.0]]))
    Array([[9.]], dtype=float32)
    """

    rank: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_dropout(self)

    @property
    def forms_kernel(self) -> bool:
        return True

    def check(self, layer: Layer) -> None:
        check_rank("HiRA", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shape_a, shape_b = (layer.d_in, self.rank), (self.rank, layer.d_out)
        if layer.kind == "embedding":
            return {"a": jnp.zeros(shape_a), "b": jax.random.normal(key, shape_b)}
        bound = 1 / sqrt(layer.d_in)
        a = jax.random.uniform(key, shape_a, minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros(shape_b)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        delta = kernel * (p["a"] @ p["b"])
        if key is None or not self.dropout:
            return x @ (kernel + delta) + bias
        return x @ kernel + bias + dropout(x, self.dropout, key) @ delta
