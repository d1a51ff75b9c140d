"""VeRA: two trained vectors around frozen random matrices that all layers share.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, dropout
from peftjax.methods.settings import check_count, check_dropout, check_size


@dataclass(frozen=True)
class VeRA(Method):
    """`y = x K + b + (((x A) ∘ d) B) ∘ l` (Eq. 2 of the paper; l is its vector b).

    Parameters: frozen `a [d_in, r]` (A) and `b [r, d_out]` (B), one pair for all
    layers; `d [r]` and `l [out]`; float32. A and B are uniform with variance 2 / rows
    (Kaiming), d is `d_initial` and l zero at first. A layer narrower than the pair
    takes its first rows and columns, as in the torch library.

    Attributes:
        rank: r.
        d_in: rows of A, `None` for the layer's own; at least those of every layer.
        d_out: columns of B, the same.
        d_initial: the start of d.
        dropout: probability of dropping an input entry.

    >>> method = VeRA(rank=1)
    >>> p = {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2)), "d": jnp.array([0.5])}
    >>> method({**p, "l": jnp.array([1.0, 3.0])}, jnp.ones((1, 2)), jnp.zeros((2, 2)))
    Array([[1., 3.]], dtype=float32)
    """

    frozen: ClassVar[tuple[str, ...]] = ("a", "b")
    shared: ClassVar[tuple[str, ...]] = ("a", "b")

    rank: int
    d_in: int | None = None
    d_out: int | None = None
    d_initial: float = 0.1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name in ("d_in", "d_out") if getattr(self, name) is not None]
        check_count(self, "rank", *given)
        check_size(self, "d_initial")
        check_dropout(self)

    def pair(self, layer: Layer) -> tuple[int, int]:
        """Return the rows of A and the columns of B."""
        return self.d_in or layer.d_in, self.d_out or layer.d_out

    def check(self, layer: Layer) -> None:
        d_in, d_out = self.pair(layer)
        if d_in < layer.d_in or d_out < layer.d_out:
            raise ValueError(
                f"{layer.path or 'layer'}: VeRA shares A with {d_in} rows and B with "
                f"{d_out} columns, too few for a [{layer.d_in}, {layer.d_out}] weight; "
                "expected d_in and d_out of the largest layer"
            )

    def count(self, layer: Layer) -> int:
        return self.rank + layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        p: dict[str, jax.Array] = {}
        d_in, d_out = self.pair(layer)
        shapes = {"a": (d_in, self.rank), "b": (self.rank, d_out)}
        for draw, (name, shape) in zip(jax.random.split(key), shapes.items()):
            bound = sqrt(6 / shape[0])
            p[name] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
        d = jnp.full(self.rank, self.d_initial)
        return {**p, "d": d, "l": jnp.zeros(layer.d_out)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        d_in, d_out = kernel.shape
        low = (dropout(x, self.dropout, key) @ p["a"][:d_in]) * p["d"]
        return x @ kernel + bias + (low @ p["b"][:, :d_out]) * p["l"]
