"""Low-rank factors taken from the weight itself, which stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import (
    check_count,
    check_dropout,
    check_flag,
    check_size,
    check_strength,
)


@dataclass(frozen=True)
class OffsetLoRA(Method):
    """`y = x K + b + s [(x A) B − (x A_0) B_0]`, with `s = alpha / r`.

    A and B start as `A_0` and `B_0`, which `factors` takes from K. The papers subtract
    `s A_0 B_0` from the weight once; here it is subtracted where x is, by the same
    product of width 2r, so that other adapters, banks and files see the same K.

    Parameters: `a [in, r]`, `b [r, out]`; frozen `a0`, `b0`; float32. With `rs` the
    scale is `alpha / sqrt(r)`.
    """

    frozen: ClassVar[tuple[str, ...]] = ("a0", "b0")
    needs_kernel: ClassVar[bool] = True

    rank: int
    alpha: float
    rs: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_strength(self, "alpha")
        check_size(self, "alpha")
        check_flag(self, "rs")
        check_dropout(self)

    def factors(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return `A_0` and `B_0` of `kernel [in, out]`."""
        raise NotImplementedError

    @property
    def at_init(self) -> AtInit:
        return "rounding"

    @property
    def scale(self) -> float:
        return self.alpha / (sqrt(self.rank) if self.rs else self.rank)

    def check(self, layer: Layer) -> None:
        check_rank(type(self).__name__, "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        a, b = self.factors(layer.weight.astype(jnp.float32))
        return {"a": a, "b": b, "a0": a, "b0": b}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        low = [dropout(x, self.dropout, key) @ p["a"], x @ p["a0"]]
        up = jnp.concatenate([p["b"], -p["b0"]])
        return x @ kernel + bias + (self.scale * jnp.concatenate(low, axis=-1)) @ up
