"""LoReFT: an edit of what a module returns, within a subspace of few dimensions.

Wu et al., "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from peftjax.core.method import (
    AtInit,
    Key,
    Layer,
    OutputMethod,
    Params,
    check_rank,
    dropout,
)
from peftjax.methods.settings import check_count, check_dropout


@dataclass(frozen=True)
class LoReFT(OutputMethod):
    r"""`z = y + (y W + b - y R) Rᵀ`, R with orthonormal columns (Eq. 2 of the paper).

    Parameters, float32: `v [out, r]` (V), orthonormal columns at first, all such
    equally likely; `w [out, r]` (W) and `b [r]`, uniform on `±1/sqrt(out)` as torch's
    linear layer starts. A fresh adapter is not nothing.

    R is V with its columns made orthonormal in order: `R = V L⁻ᵀ` with `L Lᵀ = Vᵀ V`.
    It is V itself while these are orthonormal, and V moves freely.

    The paper edits what whole layers return, `r"layers_\d+:output"`, at the first and
    last tokens of a prompt. Here they are counted in the array of a call: padding
    counts too, and each token that a cache is given alone is a first and a last one.

    The authors' code writes R as Householder reflections of a frozen matrix of out by
    out, other coordinates of the same matrices, in which an optimizer takes other
    steps. It may give first and last tokens weights of their own; here they share them.

    Attributes:
        rank: r.
        first: how many tokens at the beginning are edited; all where this and `last`
            are None.
        last: how many at the end.
        dropout: rate on the edited state as a whole, as in the authors' code.

    >>> method, e = LoReFT(rank=1, last=1), jnp.array([[1.0], [0.0]])
    >>> p = {"v": 3 * e, "w": 0 * e, "b": jnp.array([5.0])}
    >>> print(method.edit(p, jnp.ones((2, 2)), None))
    [[1. 1.]
     [5. 1.]]
    """

    float32: ClassVar[tuple[str, ...]] = ("v",)

    rank: int
    first: int | None = None
    last: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        ends = [name for name in ("first", "last") if getattr(self, name) is not None]
        check_count(self, "rank", *ends)
        check_dropout(self)

    @property
    def at_init(self) -> AtInit:
        return "none"

    def check(self, layer: Layer) -> None:
        width = Layer(layer.d_out, layer.d_out, "output", path=layer.path)
        check_rank("LoReFT", "rank", self.rank, width)

    def count(self, layer: Layer) -> int:
        return self.rank * (2 * layer.d_out + 1)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        keys, width = jax.random.split(key, 3), layer.d_out
        v = jax.random.normal(keys[0], (width, self.rank))
        bound = width**-0.5
        w, b = (
            jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
            for draw, shape in zip(keys[1:], ((width, self.rank), (self.rank,)))
        )
        return {"v": orthonormal(v), "w": w, "b": b}

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        r = orthonormal(p["v"]).astype(y.dtype)
        new = y + (y @ (p["w"] - r) + p["b"]) @ r.T
        new = dropout(new, self.dropout, key)
        if self.first is None and self.last is None:
            return new
        tokens = y.shape[-2]
        place = jnp.arange(tokens)[:, None]
        ends = (place < (self.first or 0)) | (place >= tokens - (self.last or 0))
        return jnp.where(ends, new, y)


def orthonormal(v: jax.Array) -> jax.Array:
    """Return the columns of `v [d, r]` made orthonormal in order, float32.

    Differentiable, and made of products but for a triangle of r by r.
    """
    with jax.default_matmul_precision("highest"):
        lower = jnp.linalg.cholesky(v.T @ v)
        return solve_triangular(lower, v.T, lower=True).T
