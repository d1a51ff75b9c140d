"""DoRA: a low-rank direction and a trained column norm.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import (
    AtInit,
    Key,
    Layer,
    LowRank,
    Method,
    Params,
    check_rank,
    dropout,
)
from peftjax.methods.settings import check_count, check_dropout, check_strength


@dataclass(frozen=True)
class DoRA(Method):
    """`y = m / ‖V‖ ∘ (x V) + b`, `V = K + s A B`, `s = alpha / r` (Eq. 5 of the paper).

    Parameters: `a [in, r]`, `b [r, out]`, `magnitude [out]` (m); float32. A is uniform
    on `±1/sqrt(in)`, B zero and m the column norms of K.

    ‖V‖ is the norm of each column, a constant in the gradient (section 4.3 of the
    paper). It is summed from low-rank terms, `‖K‖² + 2 s (AᵀK)∘B + s² (AᵀA B)∘B`, so no
    matrix of the kernel's size is formed. As in the released code the bias is not
    scaled. Dropout acts on the input of A.

    Attributes:
        rank: r.
        alpha: numerator of the scale.
        dropout: probability of dropping an input entry.

    >>> import jax.numpy as jnp
    >>> p = {"a": jnp.zeros((2, 1)), "b": jnp.zeros((1, 1)), "magnitude": jnp.ones(1)}
    >>> DoRA(rank=1, alpha=2.0)(p, jnp.ones((1, 2)), jnp.array([[3.0], [4.0]]))
    Array([[1.4]], dtype=float32)
    """

    float32: ClassVar[tuple[str, ...]] = ("magnitude",)
    needs_kernel: ClassVar[bool] = True

    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_dropout(self)

    @property
    def at_init(self) -> AtInit:
        return "rounding"

    def check(self, layer: Layer) -> None:
        check_rank("DoRA", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out) + layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        bound = 1 / sqrt(layer.d_in)
        shape = (layer.d_in, self.rank)
        kernel = layer.weight.astype(jnp.float32)
        return {
            "a": jax.random.uniform(key, shape, minval=-bound, maxval=bound),
            "b": jnp.zeros((self.rank, layer.d_out)),
            "magnitude": jnp.linalg.norm(kernel, axis=0),
        }

    def _norm(self, p: Params, kernel: jax.Array) -> jax.Array:
        """Return ‖V‖ of each column, `[out]` float32."""
        s = self.alpha / self.rank
        a, b, k = (v.astype(jnp.float32) for v in (p["a"], p["b"], kernel))
        cross = 2 * s * (a.T @ k) + s**2 * (a.T @ a) @ b
        squared = jnp.sum(k * k, axis=0) + jnp.sum(cross * b, axis=0)
        # A dead unit has K = 0 and m = 0; without the bound it would be 0 / 0.
        return jnp.sqrt(jnp.maximum(squared, jnp.finfo(jnp.float32).tiny))

    def _scale(self, p: Params, kernel: jax.Array) -> jax.Array:
        """Return m / ‖V‖, `[out]` float32."""
        return p["magnitude"] / jax.lax.stop_gradient(self._norm(p, kernel))

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        if self.dropout:
            return None
        b = self.alpha / self.rank * p["b"]
        return LowRank(p["a"], b, bias, self._scale(p, kernel))

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        low = dropout(x, self.dropout, key) @ p["a"]
        y = x @ kernel + (self.alpha / self.rank * low) @ p["b"]
        return y * self._scale(p, kernel) + bias
