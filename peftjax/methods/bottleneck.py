"""Adapters: a small two-layer network on what a module returns, or beside the module.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751.
Pfeiffer et al., "AdapterFusion", arXiv 2005.00247.
Chen et al., "AdaptFormer", arXiv 2205.13535.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, OutputMethod, Params, dropout
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_dropout,
    check_strength,
)

Activation = Literal["relu", "gelu", "silu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


@dataclass(frozen=True)
class Bottleneck(OutputMethod):
    """`z = y + s (f(h D + d) U + u)`, f the activation, h the output y or the input.

    Parameters, float32: `down` (D) `[h, rank]` and `down_bias` (d); `up` (U)
    `[rank, out]` and `up_bias` (u). D is uniform within `±1/sqrt(h)`, as Kaiming's of a
    linear layer is in torch; the others are zero, so that a fresh adapter is nothing.

    In series (`side="output"`, h = y) after attention and after the MLP, before the
    residual sum, it is Houlsby's; after the MLP alone, Pfeiffer's. Beside the MLP
    (`side="input"`, h = x, the normalised input; Eq. 2 and 3) with `scale=0.1` it is
    AdaptFormer.

    The start is that of AdaptFormer's code (`init_option="lora"`). Houlsby's code draws
    D and U from normals cut off at two deviations of 1e-3 (AdapterHub's: 1e-2), so that
    a fresh adapter is only nearly nothing; its GELU is approximated by a tanh.
    AdaptFormer's code reads what is before the norm, and drops entries of f(..) where
    `dropout` here drops those of what U returns, as AdapterHub's does. AdapterHub's
    Pfeiffer puts the residual sum and the norm in front of the adapter, and both behind
    it once more; here the adapter is in front of them alone. Norms that the papers
    train are rules of `Full`.

    Attributes:
        rank: width of the bottleneck.
        scale: s.
        side: `"output"` or `"input"`: what it reads.
        activation: `"relu"`, `"gelu"` (exact), `"silu"` or `"tanh"`.
        dropout: rate on what U returns, before s.

    >>> import jax.numpy as jnp
    >>> method, layer = Bottleneck(rank=2), Layer(4, 4, "output")
    >>> p = method.init(jax.random.key(0), layer)
    >>> method.edit({**p, "up_bias": jnp.ones(4)}, jnp.zeros((1, 4)), None)
    Array([[1., 1., 1., 1.]], dtype=float32)
    """

    rank: int
    scale: float = 1.0
    side: Literal["output", "input"] = "output"
    activation: Activation = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, "side", ("output", "input"))
        check_choice(self, "activation", tuple(_ACTIVATIONS))
        check_count(self, "rank")
        check_dropout(self)
        check_strength(self, "scale")

    def check(self, layer: Layer) -> None:
        width, limit = self._reads(layer), max(layer.d_in, layer.d_out)
        if not width or not 1 <= self.rank <= limit:
            raise ValueError(
                f"{layer.path or 'module'}: {type(self).__name__}(rank={self.rank}, "
                f"side={self.side!r}): expected 1 <= rank <= {limit} and a module "
                f"whose {self.side} is an array [..., width], found width {width}"
            )

    def _reads(self, layer: Layer) -> int:
        return layer.d_out if self.side == "output" else layer.d_in

    def count(self, layer: Layer) -> int:
        h, out = self._reads(layer), layer.d_out
        return self.rank * (h + 1) + out * (self.rank + 1)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        h, bound = self._reads(layer), self._reads(layer) ** -0.5
        return {
            "down": jax.random.uniform(
                key, (h, self.rank), minval=-bound, maxval=bound
            ),
            "down_bias": jnp.zeros(self.rank),
            "up": jnp.zeros((self.rank, layer.d_out)),
            "up_bias": jnp.zeros(layer.d_out),
        }

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        h = y if self.side == "output" else x.astype(y.dtype)
        h = _ACTIVATIONS[self.activation](h @ p["down"] + p["down_bias"])
        change = dropout(h @ p["up"] + p["up_bias"], self.dropout, key)
        return y + self.scale * change
