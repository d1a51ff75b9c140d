"""OFT: block-diagonal rotations of a layer's input.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv
2306.07280; the Neumann series is from Qiu et al., "Orthogonal Finetuning Made
Scalable", arXiv 2506.19847.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import AtInit, Key, Layer, Method, Params, Rows
from peftjax.methods.settings import check_count, check_flag


@dataclass(frozen=True)
class OFT(Method):
    """`y = (x diag(R_1, …, R_n)) K + b`, R orthogonal, `[block, block]`.

    Parameter: `r [n, block (block - 1) / 2]`, float32, zeros at first; the strict upper
    triangle, row by row, of Q, with `Q = upper - upperᵀ`. With `share` n is 1.

    R is Cayley's, exact, `(I - Q)(I + Q)⁻¹`. With `neumann` it is the torch library's
    series of five terms, `I + 2Q + 2Q² + 2Q³ + Q⁴`, which approximates the inverse
    rotation `(I + Q)(I - Q)⁻¹`: files must say which of the two trained them.

    Attributes:
        block: size of a block; divides the layer's input.
        neumann: the torch library's series in place of the exact inverse.
        share: one R for all blocks.

    >>> import jax.numpy as jnp
    >>> y = OFT(block=2)({"r": jnp.ones((1, 1))}, jnp.array([[1.0, 0.0]]), jnp.eye(2))
    >>> print(jnp.abs(y).round(4))
    [[0. 1.]]
    """

    float32: ClassVar[tuple[str, ...]] = ("r",)

    block: int
    neumann: bool = False
    share: bool = False

    def __post_init__(self) -> None:
        check_count(self, "block")
        check_flag(self, "neumann", "share")
        if self.block == 1:
            raise ValueError("OFT(block=1): a rotation needs a block of at least 2")

    @property
    def at_init(self) -> AtInit:
        return "rounding"

    def check(self, layer: Layer) -> None:
        if layer.d_in % self.block:
            near = [b for b in range(2, layer.d_in + 1) if layer.d_in % b == 0]
            near.sort(key=lambda b: abs(b - self.block))
            raise ValueError(
                f"{layer.path or 'layer'}: OFT(block={self.block}) does not divide the "
                f"layer's input, {layer.d_in}; expected a divisor such as "
                f"{', '.join(map(str, near[:3]))}"
            )

    def count(self, layer: Layer) -> int:
        blocks = 1 if self.share else layer.d_in // self.block
        return blocks * (self.block * (self.block - 1) // 2)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        blocks = 1 if self.share else layer.d_in // self.block
        return {"r": jnp.zeros((blocks, self.block * (self.block - 1) // 2))}

    def rotations(self, p: Params) -> jax.Array:
        """Return `R [n, block, block]`, float32."""
        rows, columns = np.triu_indices(self.block, 1)
        r = p["r"].astype(jnp.float32)
        upper = jnp.zeros((r.shape[0], self.block, self.block))
        upper = upper.at[:, rows, columns].set(r)
        q = upper - upper.transpose(0, 2, 1)
        eye = jnp.eye(self.block)
        if not self.neumann:
            return jnp.linalg.solve(eye + q, eye - q)  # the two factors commute
        q2 = q @ q
        return eye + 2 * (q + q2 + q2 @ q) + q2 @ q2

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        blocks = kernel.shape[0] // self.block
        r = self.rotations(p).astype(kernel.dtype)
        r = jnp.broadcast_to(r, (blocks, self.block, self.block))
        if isinstance(x, Rows):
            parts = kernel.reshape(blocks, self.block, -1)
            return x @ jnp.einsum("nij,njo->nio", r, parts).reshape(kernel.shape) + bias
        parts = x.reshape(*x.shape[:-1], blocks, self.block)
        return jnp.einsum("...ni,nij->...nj", parts, r).reshape(x.shape) @ kernel + bias
