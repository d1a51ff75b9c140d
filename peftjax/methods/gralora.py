"""GraLoRA: a grid of blocks of the weight, each with a low-rank delta of its own.

Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient
Fine-Tuning", arXiv 2505.20355.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Kind, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import check_count, check_dropout, check_strength


@dataclass(frozen=True)
class GraLoRA(Method):
    """`y = x K + b + s y'`, `y'_o = Σ_i (x_i A_{i,o}) B_{i,o}`, over a k by k grid.

    x and y are cut into k parts; each block has rank r / k, so parameters and FLOPs are
    those of LoRA of rank r (Eq. 6 of the paper). With `hybrid` h a LoRA of rank h is
    added. `s = alpha / (r + h)`.

    Parameters: `a [k, in/k, r]`, all A_{i,o} of one i side by side, uniform on
    `±1/sqrt(in/k)`; `b [k, r, out/k]`, all B_{i,o} of one o on each other, zeros; with
    `hybrid` also `wide_a [in, h]`, `wide_b [h, out]`; float32.

    Attributes:
        rank: r, a multiple of k.
        alpha: numerator of the scale.
        parts: k; divides the layer's input and output.
        hybrid: h.
        dropout: probability of dropping an input entry.

    >>> p = {"a": jnp.ones((2, 1, 2)), "b": jnp.ones((2, 2, 1))}
    >>> x = jnp.array([[1.0, 2.0]])
    >>> GraLoRA(rank=2, alpha=4.0)(p, x, jnp.zeros((2, 2)))
    Array([[6., 6.]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)

    rank: int
    alpha: float
    parts: int = 2
    hybrid: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank", "parts", *["hybrid"] * (self.hybrid != 0))
        check_strength(self, "alpha")
        check_dropout(self)
        if self.rank % self.parts:
            raise ValueError(
                f"GraLoRA(rank={self.rank}, parts={self.parts}): expected a rank that "
                "parts divides"
            )

    def check(self, layer: Layer) -> None:
        check_rank("GraLoRA", "rank", self.rank, layer)
        if layer.d_in % self.parts or layer.d_out % self.parts:
            raise ValueError(
                f"{layer.path or 'layer'}: GraLoRA(parts={self.parts}) does not divide "
                f"a [{layer.d_in}, {layer.d_out}] weight; expected a divisor of both"
            )

    def count(self, layer: Layer) -> int:
        return (self.rank + self.hybrid) * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        k, (key_a, key_wide) = self.parts, jax.random.split(key)
        shape_a = k, layer.d_in // k, self.rank
        bound = 1 / sqrt(shape_a[1])
        p = {
            "a": jax.random.uniform(key_a, shape_a, minval=-bound, maxval=bound),
            "b": jnp.zeros((k, self.rank, layer.d_out // k)),
        }
        if self.hybrid:
            bound, shape = 1 / sqrt(layer.d_in), (layer.d_in, self.hybrid)
            wide = jax.random.uniform(key_wide, shape, minval=-bound, maxval=bound)
            p |= {"wide_a": wide, "wide_b": jnp.zeros((self.hybrid, layer.d_out))}
        return p

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        k, z = self.parts, dropout(x, self.dropout, key)
        low = z.reshape(*x.shape[:-1], k, -1)
        low = jnp.einsum("...ic,icr->...ir", low, p["a"])
        low = low.reshape(*x.shape[:-1], k, k, -1).swapaxes(-3, -2)  # by output
        low = low.reshape(*x.shape[:-1], k, -1)
        s = self.alpha / (self.rank + self.hybrid)
        delta = jnp.einsum("...or,orc->...oc", s * low, p["b"])
        delta = delta.reshape(*x.shape[:-1], kernel.shape[1])
        if self.hybrid:
            delta = delta + (s * (z @ p["wide_a"])) @ p["wide_b"]
        return x @ kernel + bias + delta
