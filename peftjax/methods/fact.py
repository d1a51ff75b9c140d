"""FacT: low-rank deltas of all layers as one factorised tensor.

Jie and Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer",
arXiv 2212.03145.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Kind, Layer, Method, Params, dropout
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_dropout,
    check_strength,
)


@dataclass(frozen=True)
class FacT(Method):
    """`y = x K + b + s (x U) Σ V`, with U and V of all layers the same.

    A weight of `m d` by `n d` is m by n matrices of width d, each with a Σ of its own
    (section 3.2 of the paper): in a ViT q, k, v and the output have one each, the MLP's
    two layers four each.

    Parameters: `u [d, r]`, uniform on `±1/sqrt(d)`, `v [r, d]`, zeros, for all layers.
    In the tensor-train form `sigma [m, r, n, r]`, uniform on `±1/sqrt(m r)`. In the
    Tucker form `Σ = C ×₃ P`, with `core [r, r, r]` for all layers, uniform on
    `±sqrt(3)/r`, and `p [r, m, n]`, on `±sqrt(6/(r + matrices))`. Float32.

    In the released Tucker code the four matrices of an MLP's layer are interleaved by a
    reshape; here each is its own, as in the paper. Dropout acts between Σ and V.

    Attributes:
        rank: r.
        scale: s.
        form: `"tt"`, tensor train, or `"tk"`, Tucker.
        width: d, `None` for the narrower side of the layer.
        matrices: how many matrices the model has (`12 L`), for the start of P.
        dropout: probability of dropping an entry.

    >>> p = {"u": jnp.ones((1, 1)), "v": jnp.full((1, 1), 2.0)}
    >>> p["sigma"] = jnp.array([1.0, 10.0]).reshape(1, 1, 2, 1)
    >>> FacT(rank=1, scale=0.5)(p, jnp.ones((1, 1)), jnp.zeros((1, 2)))
    Array([[ 1., 10.]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)

    rank: int
    scale: float = 1.0
    form: Literal["tt", "tk"] = "tt"
    width: int | None = None
    matrices: int = 144
    dropout: float = 0.0

    def __post_init__(self) -> None:
        given = ["width"] if self.width is not None else []
        check_count(self, "rank", "matrices", *given)
        check_strength(self, "scale")
        check_choice(self, "form", ("tt", "tk"))
        check_dropout(self)

    @property
    def shared(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("u", "v") if self.form == "tt" else ("u", "v", "core")

    def _grid(self, layer: Layer) -> tuple[int, int, int]:
        """Return d, m and n."""
        d = self.width or min(layer.d_in, layer.d_out)
        return d, layer.d_in // d, layer.d_out // d

    def check(self, layer: Layer) -> None:
        d, m, n = self._grid(layer)
        if (m * d, n * d) != (layer.d_in, layer.d_out) or self.rank > d:
            raise ValueError(
                f"{layer.path or 'layer'}: FacT(rank={self.rank}, width={d}) does not "
                f"fit a [{layer.d_in}, {layer.d_out}] weight: expected a width that "
                "divides both, and a rank of at most the width"
            )

    def count(self, layer: Layer) -> int:
        """Return the parameters of the layer alone."""
        _, m, n = self._grid(layer)
        return m * n * self.rank * (self.rank if self.form == "tt" else 1)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        (d, m, n), r = self._grid(layer), self.rank
        bounds: dict[str, tuple[tuple[int, ...], float]] = {"u": ((d, r), 1 / sqrt(d))}
        if self.form == "tt":
            bounds["sigma"] = (m, r, n, r), 1 / sqrt(m * r)
        else:
            bounds["core"] = (r, r, r), sqrt(3) / r
            bounds["p"] = (r, m, n), sqrt(6 / (r + self.matrices))
        keys = jax.random.split(key, len(bounds))
        p = {
            name: jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
            for draw, (name, (shape, bound)) in zip(keys, bounds.items())
        }
        return {**p, "v": jnp.zeros((r, d))}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        if self.form == "tt":
            sigma = p["sigma"]
        else:
            sigma = jnp.einsum("abc,cmn->manb", p["core"], p["p"])
        m, _, n, _ = sigma.shape
        low = x.reshape(*x.shape[:-1], m, -1) @ p["u"]
        low = low.reshape(*x.shape[:-1], -1) @ sigma.reshape(m * self.rank, -1)
        low = dropout(low, self.dropout, key).reshape(*x.shape[:-1], n, -1)
        delta = ((self.scale * low) @ p["v"]).reshape(*x.shape[:-1], kernel.shape[1])
        return x @ kernel + bias + delta
