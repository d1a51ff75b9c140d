"""DeLoRA: a low-rank delta whose direction and strength are trained apart.

Bini et al., "DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation", arXiv
2503.18225.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import check_count, check_dropout, check_strength


@dataclass(frozen=True)
class DeLoRA(Method):
    """`y = x K + b + (λ / r) ((x ∘ n) A) Ξ B`, `Ξ = diag(1 / (‖A_i‖ ‖B_i‖))`.

    A_i are the columns of A, B_i the rows of B (Eq. 7 of the paper), so the delta is at
    most λ times the weight, whatever A and B.

    Parameters: `a [in, r]`, uniform on `±1/sqrt(in)`, `b [r, out]`, zeros, `strength
    []` (λ); frozen `norm [in]` (n), the norm of each row of K; float32.

    Departures from the paper, as in the torch library: n is a number for each input in
    place of the norm of all of K; B starts at zero instead of subtracting a frozen
    copy; norms are at least 1e-4.

    Attributes:
        rank: r.
        alpha: the start of λ.
        dropout: probability of dropping an input entry.

    >>> p = {"a": jnp.ones((1, 1)), "b": jnp.full((1, 1), 5.0), "norm": jnp.ones(1)}
    >>> p["strength"] = jnp.array(0.5)
    >>> DeLoRA(rank=1, alpha=2.0)(p, jnp.ones((1, 1)), jnp.zeros((1, 1)))
    Array([[0.5]], dtype=float32)
    """

    frozen: ClassVar[tuple[str, ...]] = ("norm",)
    needs_kernel: ClassVar[bool] = True

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_dropout(self)

    def check(self, layer: Layer) -> None:
        check_rank("DeLoRA", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out) + 1

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        bound, shape = 1 / sqrt(layer.d_in), (layer.d_in, self.rank)
        return {
            "a": jax.random.uniform(key, shape, minval=-bound, maxval=bound),
            "b": jnp.zeros((self.rank, layer.d_out)),
            "strength": jnp.array(self.alpha, jnp.float32),
            "norm": jnp.linalg.norm(layer.weight.astype(jnp.float32), axis=1),
        }

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        a, b = p["a"], p["b"]
        xi = p["strength"] / self.rank / (_norm(a, 0) * _norm(b, 1))
        low = dropout(x, self.dropout, key) @ (p["norm"][:, None] * a)
        return x @ kernel + bias + (low * xi) @ b


def _norm(v: jax.Array, axis: int) -> jax.Array:
    """Return norms of at least 1e-4; below it they have no gradient."""
    return jnp.sqrt(jnp.maximum(jnp.sum(v * v, axis=axis), 1e-8))
