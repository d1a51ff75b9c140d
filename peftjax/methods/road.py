"""RoAd: rotations and scales of pairs of a layer's outputs.

Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient
Batching and Composability", arXiv 2409.00119.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params
from peftjax.methods.settings import check_count


@dataclass(frozen=True)
class RoAd(Method):
    """`y = R (x K + b)`, R turns and scales pairs of entries (Eq. 4 of the paper).

    A pair `(z_1, z_2)` becomes `(α_1 cos θ_1 z_1 − β_1 sin φ_1 z_2, α_2 cos θ_2 z_2 +
    β_2 sin φ_2 z_1)`. In variant 1 a pair has one angle and one scale; in variant 2
    each entry has, so `β = α`, `φ = θ`; in variant 4 each term has.

    Parameters: `theta`, zeros, and `alpha`, ones; `[out / 2]`, `[out]` or `[2 out]`;
    float32. Entries of a pair are half a group apart, as in the torch library; the
    paper pairs neighbours, `group=2`.

    Attributes:
        variant: 1, 2 or 4, how many numbers of a kind a pair has.
        group: entries in a group; even, and a divisor of the layer's output.

    >>> p = {"theta": jnp.array([jnp.pi / 2]), "alpha": jnp.array([2.0])}
    >>> y = RoAd(group=2)(p, jnp.ones((1, 1)), jnp.array([[1.0, 3.0]]))
    >>> print(y.round().astype(int))
    [[-6  2]]
    """

    variant: int = 1
    group: int = 64

    def __post_init__(self) -> None:
        check_count(self, "variant", "group")
        if self.variant not in (1, 2, 4) or self.group % 2:
            raise ValueError(
                f"RoAd(variant={self.variant}, group={self.group}): expected variant "
                "1, 2 or 4 and an even group"
            )

    @property
    def uses_bias(self) -> bool:
        return True

    def check(self, layer: Layer) -> None:
        if layer.d_out % self.group:
            raise ValueError(
                f"{layer.path or 'layer'}: RoAd(group={self.group}) does not divide "
                f"the layer's output, {layer.d_out}; expected a divisor"
            )

    def count(self, layer: Layer) -> int:
        return self.variant * layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        size = self.variant * layer.d_out // 2
        return {"theta": jnp.zeros(size), "alpha": jnp.ones(size)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        z, half = x @ kernel + bias, self.group // 2
        halves = z.reshape(*z.shape[:-1], -1, 2, half)
        swapped = jnp.concatenate([-halves[..., 1:, :], halves[..., :1, :]], axis=-2)
        cos = self._spread(p["alpha"], 0) * jnp.cos(self._spread(p["theta"], 0))
        sin = self._spread(p["alpha"], 1) * jnp.sin(self._spread(p["theta"], 1))
        return z * cos + swapped.reshape(z.shape) * sin

    def _spread(self, value: jax.Array, which: int) -> jax.Array:
        """Return one number for each output, of the cosines or of the sines."""
        if self.variant == 4:
            return value.reshape(-1, 2, self.group)[:, which].reshape(-1)
        if self.variant == 2:
            return value
        return jnp.repeat(value.reshape(-1, self.group // 2), 2, axis=0).reshape(-1)
