"""LoHa: a delta that is the Hadamard product of two low-rank ones.

Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient
Federated Learning", arXiv 2108.06098; as an adapter in Yeh et al., arXiv 2309.14859.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, check_rank
from peftjax.methods.settings import check_count, check_strength


@dataclass(frozen=True)
class LoHa(Method):
    """`y = x K + b + (alpha / r) x [(A_1 B_1) ∘ (A_2 B_2)]`, a delta of rank r².

    Parameters: `a1`, `a2` `[in, r]`, `b1`, `b2` `[r, out]`; float32. A_2 starts at
    zero, the others uniform on `±1/sqrt(rows)`.

    Row by row the delta is a product of width r²: `(A_1 ⊙ A_2) (B_1 ⊙ B_2)`, with all
    products of a row of A_1 with that row of A_2. Where that costs less than a matrix
    of the kernel's size (and its gradient), r² below about a sixth of the width, x is
    multiplied by it: 1.13 of LoRA's FLOPs at width 768 and r = 8, which is the price
    of a rank of 64. Otherwise the delta is formed.

    The torch library also drops rows and whole layers while training; here there is no
    dropout. Its other form on convolutions (Tucker's) is not here.

    Attributes:
        rank: r.
        alpha: the strength.

    >>> method, one = LoHa(rank=1, alpha=2.0), jnp.ones((1, 1))
    >>> method({"a1": one, "b1": 3 * one, "a2": one, "b2": one}, one, one)
    Array([[7.]], dtype=float32)
    """

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")

    @property
    def forms_kernel(self) -> bool:
        return True

    def check(self, layer: Layer) -> None:
        check_rank("LoHa", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return 2 * self.rank * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shapes = {"a": (layer.d_in, self.rank), "b": (self.rank, layer.d_out)}
        p: dict[str, jax.Array] = {"a2": jnp.zeros(shapes["a"])}
        for draw, name in zip(jax.random.split(key, 3), ("a1", "b1", "b2")):
            shape = shapes[name[0]]
            bound = 1 / sqrt(shape[0])
            p[name] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
        return p

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        a1, b1, a2, b2 = (p[name] for name in ("a1", "b1", "a2", "b2"))
        s = self.alpha / self.rank
        if 3 * self.rank**2 * sum(kernel.shape) > kernel.size:
            return x @ (kernel + s * (a1 @ b1) * (a2 @ b2)) + bias
        a = (a1[:, :, None] * a2[:, None, :]).reshape(len(a1), -1)
        b = (b1[:, None, :] * b2[None, :, :]).reshape(-1, b1.shape[1])
        return x @ kernel + bias + s * ((x @ a) @ b)
