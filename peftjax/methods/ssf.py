"""SSF: scale and shift of a layer's output.

Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model
Tuning", arXiv 2210.08823.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from peftjax.core.method import AtInit, Key, Layer, Method, Params
from peftjax.methods.settings import check_size


@dataclass(frozen=True)
class SSF(Method):
    """`y = γ ∘ (x K + b) + β` (Eq. 2 of the paper).

    Parameters: `scale [out]` (γ), `shift [out]` (β); float32, ones and zeros at first.

    Attributes:
        std: standard deviation of the start around 1 and 0. The authors' code takes
            0.02, with which a fresh adapter is not the frozen layer.

    >>> import jax.numpy as jnp
    >>> p = {"scale": jnp.array([2.0]), "shift": jnp.array([1.0])}
    >>> SSF()(p, jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones(1))
    Array([[7.]], dtype=float32)
    """

    std: float = 0.0

    def __post_init__(self) -> None:
        check_size(self, "std")

    @property
    def at_init(self) -> AtInit:
        return "none" if self.std else "exact"

    @property
    def uses_bias(self) -> bool:
        return True

    def count(self, layer: Layer) -> int:
        return 2 * layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        noise = self.std * jax.random.normal(key, (2, layer.d_out))
        return {"scale": 1 + noise[0], "shift": noise[1]}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        return p["scale"] * (x @ kernel + bias) + p["shift"]
