"""(IA)³: one trained factor for each unit.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", arXiv 2205.05638.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, Rows
from peftjax.methods.settings import check_choice


@dataclass(frozen=True)
class IA3(Method):
    """`y = (x K + b) ∘ l`, or `y = (x ∘ l) K + b` for `side="input"`.

    Parameter: `scale` (l), `[out]` or `[in]`; a convolution has one for each input
    channel. Float32, ones at first. The paper scales the output of the key and value
    projections and the input of the second feed-forward layer.

    Attributes:
        side: `"output"` or `"input"`.

    >>> import jax.numpy as jnp
    >>> p = {"scale": jnp.array([2.0])}
    >>> IA3()(p, jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones(1))
    Array([[6.]], dtype=float32)
    """

    side: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        check_choice(self, "side", ("output", "input"))

    @property
    def uses_bias(self) -> bool:
        return self.side == "output"

    def count(self, layer: Layer) -> int:
        return (
            layer.d_out if self.side == "output" else layer.d_in // prod(layer.spatial)
        )

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {"scale": jnp.ones(self.count(layer))}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        if self.side == "output":
            return (x @ kernel + bias) * p["scale"]
        # The rows of a convolution's kernel run over (kh, kw, c_in).
        scale = jnp.tile(p["scale"], kernel.shape[0] // p["scale"].shape[0])
        if isinstance(x, Rows):
            return x @ (scale[:, None] * kernel) + bias
        return (x * scale) @ kernel + bias
