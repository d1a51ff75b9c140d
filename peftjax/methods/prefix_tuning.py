"""Prefix tuning: keys and values that are learned, in front of those of every layer.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
arXiv 2101.00190; for encoders as Liu et al., "P-Tuning v2", arXiv 2110.07602.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Kind, Layer, OutputMethod, Params
from peftjax.methods.settings import check_count


@dataclass(frozen=True)
class PrefixTuning(OutputMethod):
    """`y = softmax(q [P_k; k]ᵀ) [P_v; v]`: rows P before keys k and values v (Eq. 3).

    Of a `Llama` or `Bert` its rule is `"prefix:output"`; it never merges. A row of P
    holds key and value of every layer, `width = layers 2 heads d`, the first layer's
    first, as the torch library has them.

    Parameters, float32: `prefix [length, width]`, P, standard normal as in the torch
    library; with `hidden`, k, instead `prefix [length, k]` (P', standard normal) of
    which a network makes `P = tanh(P' D + d) U + u` (section 4.3): `down` (D) `[k, k]`,
    `down_bias` (d), `up` (U) `[k, width]`, `up_bias` (u), as torch's linear layers
    start.

    The network's hidden layer has the width k of P' here; the authors' code lets the
    two differ. Positions begin behind the prefix, as in a cache that holds it.

    Attributes:
        length: number of rows.
        hidden: width of P' (the paper's k, 512 and 800) of a network that makes the
            prefix; None for none.

    >>> layer = Layer(0, 12, "prefix")
    >>> p = PrefixTuning(length=2, hidden=3).init(jax.random.key(0), layer)
    >>> PrefixTuning(length=2, hidden=3).edit(p, None, None).shape
    (2, 12)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("prefix",)

    length: int
    hidden: int | None = None

    def __post_init__(self) -> None:
        check_count(self, "length")
        if self.hidden is not None:
            check_count(self, "hidden")

    @property
    def at_init(self) -> AtInit:
        return "none"

    def count(self, layer: Layer) -> int:
        k, width = self.hidden, layer.d_out
        if k is None:
            return self.length * width
        return self.length * k + k * (k + 1) + (k + 1) * width

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        if self.hidden is None:
            return {"prefix": jax.random.normal(key, (self.length, layer.d_out))}
        k, keys = self.hidden, jax.random.split(key, 5)
        shapes = {
            "down": (k, k),
            "down_bias": (k,),
            "up": (k, layer.d_out),
            "up_bias": (layer.d_out,),
        }
        bound = k**-0.5
        network = {
            name: jax.random.uniform(one, shape, minval=-bound, maxval=bound)
            for one, (name, shape) in zip(keys, shapes.items())
        }
        return {"prefix": jax.random.normal(keys[-1], (self.length, k)), **network}

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        if self.hidden is None:
            return p["prefix"]
        h = jnp.tanh(p["prefix"] @ p["down"] + p["down_bias"])
        return h @ p["up"] + p["up_bias"]
