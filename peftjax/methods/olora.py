"""OLoRA: a low-rank delta that starts from the weight's orthonormal columns.

Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv
2406.01775.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from peftjax.methods.offset import OffsetLoRA


@dataclass(frozen=True)
class OLoRA(OffsetLoRA):
    """`y = x K + b + s [(x A) B − (x A_0) B_0]`, with `s = alpha / r`.

    `Kᵀ = Q R`; `A_0 = R_rᵀ` and `B_0 = Q_rᵀ`, the first r rows of R and columns of Q
    (Algorithm 1 of the paper). K stays as it is (`OffsetLoRA`).

    Parameters: `a [in, r]`, `b [r, out]`, which start as the frozen `a0`, `b0`;
    float32.

    Attributes:
        rank: r.
        alpha: numerator of the scale; positive.
        rs: the scale is `alpha / sqrt(r)`.
        dropout: probability of dropping an input entry of A.

    >>> import jax, jax.numpy as jnp
    >>> from peftjax.core.method import Layer
    >>> layer = Layer(2, 2, kernel=jnp.array([[3.0, 4.0], [1.0, 1.0]]))
    >>> p = OLoRA(rank=1, alpha=1.0).init(jax.random.key(0), layer)
    >>> print(jnp.abs(p["b"]))
    [[0.6 0.8]]
    """

    def factors(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, r = jnp.linalg.qr(kernel.T)
        return r[: self.rank].T, q[:, : self.rank].T
