"""LoKr: a delta that is a Kronecker product.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
Evaluation", arXiv 2309.14859.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Kind, Layer, Method, Params
from peftjax.methods.settings import check_count, check_flag, check_strength


@dataclass(frozen=True)
class LoKr(Method):
    """`y = x K + b + (alpha / r) x (W_1 ⊗ W_2)`, with `in = m n` and `out = l k`.

    Parameters: `w1 [m, l]`, or in low rank `w1_a [m, r]`, `w1_b [r, l]`; `w2 [n, k]`,
    or in low rank `w2_a [n, r]`, `w2_b [r, k]`; float32. A factor is in low rank where
    r is below half of its larger side, W_1 only with `decompose_both`. W_1, or its last
    factor, starts at zero; the others start uniform on `±1/sqrt(rows)`.

    The product is never formed: with x seen as `[m, n]` it is `W_1ᵀ (x W_2)`, and with
    W_2 in low rank W_1 works on what has r columns.

    Attributes:
        rank: r.
        alpha: the strength.
        factor: m and l, where it divides `in` and `out`; otherwise each is the largest
            divisor below it and the square root. -1 takes the divisors nearest to the
            square root (`divisors`).
        decompose_both: W_1 may be in low rank, too.

    The torch library also has LoKr on convolutions, and drops rows and whole layers
    while training; here it is defined on dense layers, without dropout.

    >>> method = LoKr(rank=8, alpha=4.0)
    >>> p = {"w1": jnp.eye(2), "w2": jnp.ones((2, 3))}
    >>> method(p, jnp.arange(4.0)[None], jnp.zeros((4, 6)))
    Array([[0.5, 0.5, 0.5, 2.5, 2.5, 2.5]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)

    rank: int
    alpha: float
    factor: int = -1
    decompose_both: bool = False

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_flag(self, "decompose_both")
        if self.factor != -1:
            check_count(self, "factor")

    def shapes(self, layer: Layer) -> dict[str, tuple[int, int]]:
        """Return the shape of each array on a layer."""
        rows = divisors(layer.d_in, self.factor)
        columns = divisors(layer.d_out, self.factor)
        shapes: dict[str, tuple[int, int]] = {}
        for name, size, may in zip(
            ("w1", "w2"), zip(rows, columns), (self.decompose_both, True)
        ):
            if may and 2 * self.rank < max(size):
                shapes[f"{name}_a"] = size[0], self.rank
                shapes[f"{name}_b"] = self.rank, size[1]
            else:
                shapes[name] = size
        return shapes

    def count(self, layer: Layer) -> int:
        return sum(rows * columns for rows, columns in self.shapes(layer).values())

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shapes = self.shapes(layer)
        zero = "w1_b" if "w1_b" in shapes else "w1"
        p: dict[str, jax.Array] = {}
        for draw, (name, shape) in zip(
            jax.random.split(key, len(shapes)), shapes.items()
        ):
            bound = 1 / sqrt(shape[0])
            p[name] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
        p[zero] = jnp.zeros(shapes[zero])
        return p

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        w1, (first, *last) = _factors(p, "w1"), _factors(p, "w2")
        z = x.reshape(*x.shape[:-1], len(w1[0]), len(first)) @ first
        z = z.swapaxes(-1, -2)
        for factor in w1:
            z = z @ factor
        z = self.alpha / self.rank * z.swapaxes(-1, -2)
        for factor in last:
            z = z @ factor
        return x @ kernel + bias + z.reshape(*x.shape[:-1], kernel.shape[1])


def _factors(p: Params, name: str) -> list[jax.Array]:
    return [p[name]] if name in p else [p[f"{name}_a"], p[f"{name}_b"]]


def divisors(size: int, factor: int = -1) -> tuple[int, int]:
    """Return two integers whose product is `size`, as the torch library takes them.

    Args:
        size: of one side of the weight.
        factor: the first one, where it divides; otherwise the first is the largest
            divisor up to the root of `size`, and to `factor` if that is not -1.

    >>> divisors(768), divisors(768, factor=8), divisors(768, factor=7)
    ((24, 32), (8, 96), (6, 128))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = isqrt(size) if factor == -1 else min(isqrt(size), factor)
    first = max(n for n in range(1, most + 1) if size % n == 0)
    return first, size // first
