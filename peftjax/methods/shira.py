"""SHiRA: a sparse delta at places drawn once.

Bhardwaj et al., "Sparse High Rank Adapters", arXiv 2406.13175.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params
from peftjax.methods.settings import check_count


@dataclass(frozen=True)
class SHiRA(Method):
    """`y = x (K + S) + b`, S zero but for `r (in + out)` entries, as many as in LoRA.

    Parameters: `weight [n]`, zeros at first, float32; frozen `indices [2, n]`, int32,
    column and row of each entry of S, drawn without replacement (the paper's random
    mask; its masks by size, gradient and SNIP are given by other indices).

    The gradient of S is that of the kernel at those places, which is formed: 1.29 of
    the bound's FLOPs, as for full fine-tuning.

    Attributes:
        rank: r.

    >>> p = {"weight": jnp.array([5.0, 7.0]), "indices": jnp.array([[0, 1], [1, 1]])}
    >>> SHiRA(rank=1)(p, jnp.array([[1.0, 2.0]]), jnp.zeros((2, 2)))
    Array([[10., 14.]], dtype=float32)
    """

    frozen: ClassVar[tuple[str, ...]] = ("indices",)

    rank: int

    def __post_init__(self) -> None:
        check_count(self, "rank")

    @property
    def forms_kernel(self) -> bool:
        return True

    def check(self, layer: Layer) -> None:
        size = layer.d_in * layer.d_out
        if self.count(layer) > size:
            raise ValueError(
                f"{layer.path or 'layer'}: SHiRA(rank={self.rank}) has "
                f"{self.count(layer)} entries, more than the {size} of the weight"
            )

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        size, n = layer.d_in * layer.d_out, self.count(layer)
        drawn = jax.random.choice(key, size, (n,), replace=False).astype(jnp.int32)
        indices = jnp.stack([drawn % layer.d_out, drawn // layer.d_out])
        return {"weight": jnp.zeros(n), "indices": indices}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        columns, rows = p["indices"]
        changed = jnp.asarray(kernel).at[rows, columns].add(p["weight"])
        return x @ changed + bias
