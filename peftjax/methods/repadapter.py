"""RepAdapter: a linear adapter in front of a layer, merged into it.

Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization",
arXiv 2302.08106.
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
class RepAdapter(Method):
    """`y = f(x) K + b`, with `f(x) = x + s (φ_u(φ_d(x)))` (Eqs. 4 to 6 of the paper).

    `φ_d(x) = x A + a` and `φ_u(h) = h B + c`, B block-diagonal with `groups` blocks.
    `B K` and `c K` are formed instead of f(x), which adds r rows of the kernel's width
    in place of another copy of x.

    Parameters: `a [in, r]`, uniform with variance `2 / (in + r)` (Xavier), `b [groups,
    r/groups, in/groups]`, and the biases `a_bias [r]`, `b_bias [in]`, zeros; float32.
    Dropout acts on `φ_d(x)`.

    Attributes:
        rank: r.
        scale: s.
        groups: blocks of B; divides rank and input.
        dropout: probability of dropping an entry.

    >>> p = {"a": jnp.ones((2, 2)), "a_bias": jnp.ones(2), "b": jnp.ones((2, 1, 1))}
    >>> p["b_bias"] = jnp.zeros(2)
    >>> RepAdapter(rank=2)(p, jnp.ones((1, 2)), jnp.eye(2))
    Array([[4., 4.]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)

    rank: int
    scale: float = 1.0
    groups: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank", "groups")
        check_strength(self, "scale")
        check_dropout(self)
        if self.rank % self.groups:
            raise ValueError(
                f"RepAdapter(rank={self.rank}, groups={self.groups}): expected a rank "
                "that groups divides"
            )

    def check(self, layer: Layer) -> None:
        check_rank("RepAdapter", "rank", self.rank, layer)
        if layer.d_in % self.groups:
            raise ValueError(
                f"{layer.path or 'layer'}: RepAdapter(groups={self.groups}) does not "
                f"divide the layer's input, {layer.d_in}; expected a divisor"
            )

    def count(self, layer: Layer) -> int:
        r, d_in = self.rank, layer.d_in
        return r * d_in + r * d_in // self.groups + r + d_in

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        r, d_in, g = self.rank, layer.d_in, self.groups
        bound = sqrt(6 / (d_in + r))
        return {
            "a": jax.random.uniform(key, (d_in, r), minval=-bound, maxval=bound),
            "a_bias": jnp.zeros(r),
            "b": jnp.zeros((g, r // g, d_in // g)),
            "b_bias": jnp.zeros(d_in),
        }

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        blocks = kernel.reshape(self.groups, -1, kernel.shape[1])
        up = jnp.einsum("gri,gio->gro", p["b"], blocks).reshape(-1, kernel.shape[1])
        low = dropout(x @ p["a"] + p["a_bias"], self.dropout, key)
        constant = bias + self.scale * (p["b_bias"] @ kernel)
        return x @ kernel + constant + (self.scale * low) @ up
