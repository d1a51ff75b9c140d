"""Compacter: a bottleneck whose matrices are sums of Kronecker products.

Karimi Mahabadi, Henderson and Ruder, "Compacter: Efficient Low-Rank Hypercomplex
Adapter Layers", arXiv 2106.04647.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Layer, OutputMethod, Params, dropout
from peftjax.methods.settings import check_count, check_dropout


@dataclass(frozen=True)
class Compacter(OutputMethod):
    """`z = y + f(y D + d) U + u`, `D = Σ_i A_i ⊗ (s_i t_i)`, U likewise (Eq. 5 to 7).

    Parameters, float32, with n terms of rank r: `a [n, n, n]` (the A_i), one for D and
    U of all layers; `down_s [n, out / n, r]`, `down_t [n, r, width / n]`, `down_bias
    [width]` (d) and `up_s [n, width / n, r]`, `up_t [n, r, out / n]`, `up_bias [out]`
    (u). The f between them is the exact GELU. D and U are not formed.

    As in AdapterHub's code the A_i are normal with deviation 1e-4, each s_i and t_i is
    by itself normal with Glorot's deviation, and the biases are zero: a fresh adapter
    is nothing but for some 1e-8 of y. The authors' code draws s_i and t_i uniformly
    with that deviation, and approximates the GELU by a tanh.

    Compacter puts one behind attention and one behind the MLP, Compacter++ behind the
    MLP alone.

    Attributes:
        width: of the bottleneck, a multiple of n.
        terms: n; divides the module's width too.
        rank: r, the paper's is 1.
        dropout: rate on what U returns.

    >>> method, layer = Compacter(width=4, terms=2, rank=1), Layer(6, 6, "output")
    >>> p = method.init(jax.random.key(0), layer)
    >>> method.edit({**p, "up_bias": jnp.ones(6)}, jnp.zeros((1, 6)), None)
    Array([[1., 1., 1., 1., 1., 1.]], dtype=float32)
    """

    shared: ClassVar[tuple[str, ...]] = ("a",)

    width: int
    rank: int
    terms: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "width", "rank", "terms")
        check_dropout(self)

    @property
    def at_init(self) -> AtInit:
        return "rounding"

    def check(self, layer: Layer) -> None:
        n, limit = self.terms, min(self.width, layer.d_out) // self.terms
        if self.width % n or layer.d_out % n or not 1 <= self.rank <= limit:
            raise ValueError(
                f"{layer.path or 'module'}: Compacter(width={self.width}, terms={n}, "
                f"rank={self.rank}) does not fit an output of width {layer.d_out}: "
                "expected terms that divide both widths, and a rank of at most the "
                "quotients"
            )

    def count(self, layer: Layer) -> int:
        """Return the parameters of the layer alone."""
        width = self.width + layer.d_out
        return width * (2 * self.rank + 1)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        n, r, out = self.terms, self.rank, layer.d_out
        sides = {"down": (out // n, self.width // n), "up": (self.width // n, out // n)}
        keys = iter(jax.random.split(key, 5))
        p = {"a": 1e-4 * jax.random.normal(next(keys), (n, n, n))}
        for side, (rows, columns) in sides.items():
            s = jax.random.normal(next(keys), (n, rows, r))
            t = jax.random.normal(next(keys), (n, r, columns))
            p[f"{side}_s"] = sqrt(2 / (rows + r)) * s
            p[f"{side}_t"] = sqrt(2 / (r + columns)) * t
            p[f"{side}_bias"] = jnp.zeros(n * columns)
        return p

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        h = jax.nn.gelu(self._product(p, "down", y), approximate=False)
        return y + dropout(self._product(p, "up", h), self.dropout, key)

    def _product(self, p: Params, side: str, h: Any) -> Any:
        """Return `h (Σ_i A_i ⊗ (s_i t_i))` and the bias, `[..., columns]`."""
        blocks = h.reshape(*h.shape[:-1], self.terms, -1)
        low = jnp.einsum("...pk,ikr->...pir", blocks, p[f"{side}_s"])
        low = jnp.einsum("...pir,ipq->...qir", low, p["a"])
        full = jnp.einsum("...qir,irl->...ql", low, p[f"{side}_t"])
        return full.reshape(*h.shape[:-1], -1) + p[f"{side}_bias"]
