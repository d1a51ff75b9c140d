"""BOFT: rotations of a layer's input as a product of butterfly factors.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
arXiv 2311.06243.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Layer, Method, Params, Rows
from peftjax.methods.settings import check_count


@dataclass(frozen=True)
class BOFT(Method):
    """`y = [(x B_m … B_1) K] ∘ s + b`, with orthogonal butterfly factors B_i.

    B_i permutes x, rotates blocks of `block` entries, and permutes back (section 4 of
    the paper): of each stretch of `2^i block / 2` entries, i = 1 … m, halves of a block
    come from the first and the second half of the stretch. B_1 is OFT's.

    Parameters: `r [m, in / block, block, block]`, zeros at first; `scale [out]` (s),
    ones. A rotation is Cayley's, `(I - Q) (I + Q)⁻¹` with `Q = (r - rᵀ) / 2`. Float32.
    As in the authors' code all entries of r count as trained, of which the paper counts
    half, and the scale, which the paper does not have, is trained.

    Attributes:
        block: b, size of a block; even for more than one factor.
        factors: m, the number of butterfly factors.

    >>> p = {"r": jnp.zeros((2, 2, 2, 2)), "scale": jnp.full(1, 2.0)}
    >>> BOFT(block=2, factors=2)(p, jnp.arange(4.0)[None], jnp.ones((4, 1)))
    Array([[12.]], dtype=float32)
    """

    float32: ClassVar[tuple[str, ...]] = ("r",)

    block: int
    factors: int = 1

    def __post_init__(self) -> None:
        check_count(self, "block", "factors")
        if self.block == 1 or (self.block % 2 and self.factors > 1):
            raise ValueError(
                f"BOFT(block={self.block}, factors={self.factors}): expected a block "
                "of at least 2, and an even one for more than one factor"
            )

    @property
    def at_init(self) -> AtInit:
        return "rounding"

    def check(self, layer: Layer) -> None:
        stretch = self.block * 2 ** (self.factors - 1)
        if layer.d_in % stretch:
            raise ValueError(
                f"{layer.path or 'layer'}: BOFT(block={self.block}, "
                f"factors={self.factors}) permutes stretches of {stretch} entries, "
                f"which do not divide the layer's input, {layer.d_in}; choose a "
                "smaller block or fewer factors"
            )

    def count(self, layer: Layer) -> int:
        return self.factors * layer.d_in * self.block + layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shape = self.factors, layer.d_in // self.block, self.block, self.block
        return {"r": jnp.zeros(shape), "scale": jnp.ones(layer.d_out)}

    def rotations(self, p: Params) -> jax.Array:
        """Return the rotated blocks of every factor, `[m, n, block, block]` float32."""
        r, eye = p["r"].astype(jnp.float32), jnp.eye(self.block)
        q = (r - r.swapaxes(-1, -2)) / 2
        return jnp.linalg.solve(eye + q, eye - q)  # the two factors commute

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        rotations = self.rotations(p).astype(kernel.dtype)
        if isinstance(x, Rows):
            rows = kernel.T  # B K is (Kᵀ Bᵀ)ᵀ
            for i, blocks in enumerate(rotations):
                rows = self._rotate(rows, blocks.swapaxes(-1, -2), i)
            return (x @ rows.T) * p["scale"] + bias
        for i, blocks in reversed([*enumerate(rotations)]):
            x = self._rotate(x, blocks, i)
        return (x @ kernel) * p["scale"] + bias

    def _rotate(self, x: Any, blocks: jax.Array, i: int) -> Any:
        """Return `x B` of the factor with number i, from 0."""
        d_in, half = x.shape[-1], self.block // 2
        if i:
            halves = x.reshape(*x.shape[:-1], -1, 2, 2**i, half)
            z = halves.swapaxes(-3, -2)
        else:
            z = x
        z = z.reshape(*x.shape[:-1], len(blocks), self.block)
        z = jnp.einsum("...nb,nbc->...nc", z, blocks)
        if i:
            z = z.reshape(*x.shape[:-1], -1, 2**i, 2, half).swapaxes(-3, -2)
        return z.reshape(*x.shape[:-1], d_in)
