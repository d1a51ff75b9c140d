"""HRA: a chain of Householder reflections of a layer's input.

Yuan, Liu, Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via
Householder Reflection Adaptation", arXiv 2405.17484.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from peftjax.core.method import (
    AtInit,
    Key,
    Layer,
    LowRank,
    Method,
    Params,
    Rows,
    check_rank,
)
from peftjax.methods.settings import check_choice, check_count, check_flag, check_size

_STARTS = ("auto", "pairs", "pairs_hf", "independent", "small", "identity")


@dataclass(frozen=True)
class HRA(Method):
    """`y = x H_r … H_1 K + b`, `H_i = I - 2 u_i u_iᵀ`, `u_i = v_i / ‖v_i‖`.

    Parameter: `u [in, r]` (`[out, r]` for the output side), the columns v_i; float32.

    Nothing of size in by in is formed. With U of unit columns the compact WY form is
    `H_1 … H_r = I - U T Uᵀ`, `T⁻¹ = I/2 + striu(UᵀU)`, and so
    `y = x K - (x U) (Tᵀ UᵀK) + b`, with one r by r triangular solve. `form="scan"` is
    the paper's chain, one reflection after the other.

    The start pairs equal columns, `H_1 H_2 = I`, as the released code does since June
    2024; that needs an even rank. Gram–Schmidt has no such start, since
    `I - 2 Q Qᵀ = I` only for r = 0.

    Attributes:
        rank: r; odd only with `allow_non_identity`.
        orthogonal: orthonormalise the columns by Gram–Schmidt: `H_1 … H_r` becomes
            `I - 2 Q Qᵀ` (the paper's λ = ∞).
        penalty_weight: λ of the loss term that pulls unit columns apart.
        start: `"pairs"`, also by the name `"pairs_hf"`; `"independent"`, uniform on
            `±1/sqrt(r)`; `"small"`, the LLaMA code's, uniform on `±eps sqrt(6/r)`;
            `"identity"`, its columns of the identity matrix for Gram–Schmidt. `"auto"`
            is small where eps > 0, pairs for an even rank without Gram–Schmidt,
            independent otherwise.
        allow_non_identity: accept an odd rank, whose start is not the frozen layer.

    Departures:
        side: `"input"`, or `"output"` as in the released LLaMA code,
            `y = x K H_1 … H_r + b`.
        form: `"wy"` or `"scan"`.
        eps: under the root of ‖v‖; the released LLaMA code takes 1e-4 (and so its
            factors are not quite reflections). Gram–Schmidt goes without it.
        penalty_norm: `"frobenius"`, `λ ‖I - UᵀU‖` (all released code), or `"squared"`,
            `λ ‖I - UᵀU‖²` (the paper's text).

    >>> import jax.numpy as jnp
    >>> method = HRA(rank=1, allow_non_identity=True)
    >>> method({"u": jnp.array([[3.0], [0.0]])}, jnp.ones((1, 2)), jnp.eye(2))
    Array([[-1.,  1.]], dtype=float32)
    """

    float32: ClassVar[tuple[str, ...]] = ("u",)

    rank: int
    orthogonal: bool = False
    penalty_weight: float = 0.0
    side: Literal["input", "output"] = "input"
    form: Literal["wy", "scan"] = "wy"
    eps: float = 0.0
    start: Literal["auto", "pairs", "pairs_hf", "independent", "small", "identity"] = (
        "auto"
    )
    penalty_norm: Literal["frobenius", "squared"] = "frobenius"
    allow_non_identity: bool = False

    def __post_init__(self) -> None:
        check_count(self, "rank")
        check_flag(self, "orthogonal", "allow_non_identity")
        check_choice(self, "side", ("input", "output"))
        check_choice(self, "form", ("wy", "scan"))
        check_choice(self, "start", _STARTS)
        check_choice(self, "penalty_norm", ("frobenius", "squared"))
        check_size(self, "penalty_weight", "eps")
        odd = self.rank % 2 == 1
        if odd and not self.orthogonal and not self.allow_non_identity:
            raise ValueError(
                f"HRA(rank={self.rank}): reflections cancel in pairs, so an odd rank "
                "does not start at the frozen layer; use an even rank, or accept it "
                "with allow_non_identity=True"
            )
        if odd and self._start == "pairs":
            raise ValueError(
                f"HRA(rank={self.rank}, start={self.start!r}): needs an even rank"
            )
        if self.start == "small" and self.eps == 0:
            raise ValueError(
                f"HRA(eps={self.eps}, start='small'): expected eps > 0; choose another "
                "start where it is 0"
            )
        if self.orthogonal and self.form == "scan":
            raise ValueError(
                "HRA(form='scan'): Gram–Schmidt is no chain; use form='wy'"
            )

    @property
    def at_init(self) -> AtInit:
        plain = not self.orthogonal and self.eps == 0
        return "rounding" if plain and self._start == "pairs" else "none"

    @property
    def _start(self) -> str:
        if self.start != "auto":
            return self.start.removesuffix("_hf")
        if self.eps > 0:
            return "small"
        paired = not self.orthogonal and self.rank % 2 == 0
        return "pairs" if paired else "independent"

    def _width(self, layer: Layer) -> int:
        return layer.d_in if self.side == "input" else layer.d_out

    def check(self, layer: Layer) -> None:
        width = self._width(layer)
        check_rank("HRA", "rank", self.rank, replace(layer, d_in=width, d_out=width))

    def count(self, layer: Layer) -> int:
        return self._width(layer) * self.rank

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        width, r = self._width(layer), self.rank
        if self._start == "pairs":
            bound = sqrt(2 / r)
            half = jax.random.uniform(key, (width, r // 2), minval=-bound, maxval=bound)
            return {"u": jnp.repeat(half, 2, axis=1)}
        if self._start == "identity":
            return {"u": jnp.eye(width, r)}
        small = self._start == "small"
        bound = sqrt(6 / (r * (1 + self.eps**-2))) if small else 1 / sqrt(r)
        return {"u": jax.random.uniform(key, (width, r), minval=-bound, maxval=bound)}

    def _unit(self, p: Params) -> jax.Array:
        """Return the columns `u_i`, or Q, `[width, r]` float32."""
        v = p["u"].astype(jnp.float32)
        if self.orthogonal:
            return _orthonormal(v)
        return _unit(v, self.eps)

    def penalty(self, p: Params) -> jax.Array | float:
        if self.penalty_weight == 0:
            return 0.0
        v = p["u"].astype(jnp.float32)
        u = _unit(v)
        squared = jnp.sum((jnp.eye(self.rank) - u.T @ u) ** 2)
        # The root has no gradient at 0, which orthonormal columns reach.
        tiny = jnp.finfo(jnp.float32).eps ** 2
        term = squared if self.penalty_norm == "squared" else jnp.sqrt(squared + tiny)
        return self.penalty_weight * term

    def _solve(self, u: jax.Array, rows: jax.Array) -> jax.Array:
        """Return `Tᵀ rows`, `[r, …]` (2 rows for orthonormal columns)."""
        if self.orthogonal:
            return 2 * rows
        return _substitute(u.T @ u) @ rows

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        if self.side == "output" or self.form == "scan":
            return None
        u = self._unit(p)
        low = -self._solve(u, u.T @ kernel)
        return LowRank(u.astype(kernel.dtype), low.astype(kernel.dtype), bias)

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        u = self._unit(p)
        if self.side == "output":
            z = x @ kernel
            low = u.astype(z.dtype)
            if self.form == "scan":
                return _chain(z, low) + bias
            return z + (z @ -self._solve(u, u.T).T.astype(z.dtype)) @ low.T + bias
        if self.form == "scan":
            low = u.astype(kernel.dtype)
            if isinstance(x, Rows):
                return x @ _chain(kernel.T, low).T + bias
            return _chain(x, low, reverse=True) @ kernel + bias
        low = -self._solve(u, u.T @ kernel)
        return (
            x @ kernel + (x @ u.astype(kernel.dtype)) @ low.astype(kernel.dtype) + bias
        )

    def unmerge(self, p: Params, kernel: jax.Array) -> jax.Array:
        """Return K from the merged `K' [in, out]`.

        `(I - U Tᵀ Uᵀ)⁻¹ = I + U (T⁻ᵀ - UᵀU)⁻¹ Uᵀ`: the chain in reverse order, exact
        for eps > 0 as well. Gram–Schmidt is its own inverse.
        """
        if self.side == "output":  # K' = K H_1 … H_r, transposed, is the input side
            return replace(self, side="input").unmerge(p, kernel.T).T
        u = self._unit(p)
        rows = u.T @ kernel
        if self.orthogonal:
            return kernel - 2 * u @ rows
        inverse = 0.5 * jnp.eye(u.shape[1]) - jnp.triu(u.T @ u)
        return kernel + u @ solve_triangular(inverse, rows, lower=False)


def _unit(v: jax.Array, eps: float = 0.0) -> jax.Array:
    """Return unit columns; one of zeros, which pads a lower rank, stays as it is."""
    squares = jnp.sum(v * v, axis=0) + eps
    return v / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


@jax.custom_jvp
def _substitute(gram: jax.Array) -> jax.Array:
    """Return `(I/2 + tril(gram, -1))⁻¹`, `[r, r]`, by forward substitution.

    Row by row and not by LAPACK, whose threads on a CPU wait spinning and take the
    cores from the products that run beside it: a third more time per step.
    """
    eye = jnp.eye(len(gram))

    def row(i: Any, inverse: jax.Array) -> jax.Array:
        # Rows from i on are still zero, so the upper triangle has no part.
        return inverse.at[i].set(2 * (eye[i] - gram[i] @ inverse))

    return lax.fori_loop(0, len(gram), row, jnp.zeros_like(gram))


@_substitute.defjvp
def _substitute_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The derivative of an inverse, which is two products and no second loop."""
    inverse = _substitute(*primals)
    return inverse, -inverse @ jnp.tril(tangents[0], -1) @ inverse


def _chain(z: Any, u: jax.Array, reverse: bool = False) -> Any:
    """Return `z H_1 … H_r` (`z H_r … H_1` in reverse), one reflection at a time."""

    def reflect(z: Any, column: jax.Array) -> tuple[Any, None]:
        return z - 2 * (z @ column[:, None]) @ column[None, :], None

    return lax.scan(reflect, z, u.T, reverse=reverse)[0]


def _orthonormal(v: jax.Array) -> jax.Array:
    """Orthonormalise columns in order, by modified Gram–Schmidt."""
    tiny = jnp.finfo(jnp.float32).tiny
    q: list[jax.Array] = []
    for i in range(v.shape[1]):
        residual = v[:, i]
        for column in q:
            residual = residual - (residual @ column) * column
        q.append(residual / jnp.sqrt(residual @ residual + tiny))
    return jnp.stack(q, axis=1)
