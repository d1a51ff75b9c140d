"""PiSSA: a low-rank delta that starts from the weight's principal part.

Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
Language Models", arXiv 2404.02948.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from peftjax.methods.offset import OffsetLoRA


@dataclass(frozen=True)
class PiSSA(OffsetLoRA):
    """`y = x K + b + s [(x A) B − (x A_0) B_0]`, with `s = alpha / r`.

    `K = U S Vᵀ`; `A_0 = U_r (S_r / s)^½` and `B_0 = (S_r / s)^½ V_rᵀ` (Eqs. 2 and 3 of
    the paper), the r largest singular values. K stays as it is (`OffsetLoRA`).

    Parameters: `a [in, r]`, `b [r, out]`, which start as the frozen `a0`, `b0`;
    float32. The torch library's fast, randomised SVD (`pissa_niter_…`) is not here.

    Attributes:
        rank: r.
        alpha: numerator of the scale; positive.
        rs: the scale is `alpha / sqrt(r)`.
        dropout: probability of dropping an input entry of A.

    >>> import jax, jax.numpy as jnp
    >>> from peftjax.core.method import Layer
    >>> layer = Layer(3, 2, kernel=jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    >>> p = PiSSA(rank=1, alpha=1.0).init(jax.random.key(0), layer)
    >>> print(p["a"] @ p["b"])
    [[3. 0.]
     [0. 0.]
     [0. 0.]]
    """

    def factors(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, s, vt = jnp.linalg.svd(kernel, full_matrices=False)
        root, r = jnp.sqrt(s[: self.rank] / self.scale), self.rank
        return u[:, :r] * root, root[:, None] * vt[:r]
