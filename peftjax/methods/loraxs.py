"""LoRA-XS: a small trained matrix between frozen singular vectors of the weight.

Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
arXiv 2405.17604.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import (
    check_count,
    check_dropout,
    check_size,
    check_strength,
)


@dataclass(frozen=True)
class LoRAXS(Method):
    """`y = x K + b + (alpha / r) ((x A) R) B`, with `A = U_r S_r` and `B = V_rᵀ`.

    `K = U S Vᵀ` (Eq. 2 of the paper, whose weight is Kᵀ).

    Parameters: frozen `a [in, r]`, `b [r, out]`; `r [r, r]` (R), normal with deviation
    `std`; float32. A fresh adapter is therefore not quite the frozen layer, unless
    `std=0`, from where it trains as well.

    Attributes:
        rank: r.
        alpha: numerator of the scale.
        std: of the start of R; 1e-5 in the paper.
        dropout: probability of dropping an input entry.

    >>> p = {"a": jnp.ones((2, 1)), "r": jnp.full((1, 1), 3.0), "b": jnp.ones((1, 1))}
    >>> LoRAXS(rank=1, alpha=2.0)(p, jnp.ones((1, 2)), jnp.zeros((2, 1)))
    Array([[12.]], dtype=float32)
    """

    frozen: ClassVar[tuple[str, ...]] = ("a", "b")
    needs_kernel: ClassVar[bool] = True

    rank: int
    alpha: float
    std: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_size(self, "std")
        check_dropout(self)

    @property
    def at_init(self) -> AtInit:
        return "none" if self.std else "exact"

    def check(self, layer: Layer) -> None:
        check_rank("LoRAXS", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank**2

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        kernel, r = layer.weight.astype(jnp.float32), self.rank
        u, s, vt = jnp.linalg.svd(kernel, full_matrices=False)
        noise = self.std * jax.random.normal(key, (r, r))
        return {"a": u[:, :r] * s[:r], "r": noise, "b": vt[:r]}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        low = dropout(x, self.dropout, key) @ p["a"] @ p["r"]
        return x @ kernel + bias + (self.alpha / self.rank * low) @ p["b"]
