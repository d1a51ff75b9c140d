"""Rule table 2, `merge`: a formula with functions of `x` as symbols.

The formula is traced once on an abstract row of `x` and its jaxpr walked with x as the
identity map. Each value that depends on x is `v(x) = x M + c`; at the end M is the
merged kernel and c the merged bias. There is nothing to derive by hand, so training
and merging cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from peftjax.core.axes import wide
from peftjax.core.jaxpr import (
    JIT,
    REMAT,
    Rule,
    Symbol,
    as_function,
    called,
    evaluate,
    scan_loop,
    walk,
)
from peftjax.core.method import Method


class NotMergeable(ValueError):
    """A formula that is not affine in x, or that creates a bias no leaf can hold."""


@dataclass
class Affine(Symbol):
    """A value `v(x) = x M + c` of some shape S, for one row x of width `in`.

    Attributes:
        matrix: M, `[in, *S]`; or None where `diagonal` holds it.
        diagonal: `[in]`; M is then `diag(diagonal)` and S is `(1, in)`.
        const: c, of shape S; None is a zero that no one needs to store.
    """

    matrix: jax.Array | None
    diagonal: jax.Array | None
    const: jax.Array | None

    def dense(self) -> jax.Array:
        if self.matrix is not None:
            return self.matrix
        assert self.diagonal is not None
        return jnp.diag(self.diagonal)[:, None, :]


def merge_layer(
    method: Method,
    p: dict[str, jax.Array],
    kernel: jax.Array,
    bias: jax.Array | None,
    gates: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Return the merged kernel and bias of one layer, `[in, out]` and `[out]`, float32.

    Args:
        method: the adapter.
        p: its arrays.
        kernel: `[in, out]`.
        bias: `[out]`, or None for a layer without one.
        gates: `[heads]` of a gated method, constant.

    Returns:
        `(K', b')`; b' is None where the formula adds nothing to a layer without a bias.

    Raises:
        NotMergeable: the formula is not affine in x.
    """
    d_in, d_out = kernel.shape
    rest = jax.tree.map(_widen, (p, kernel, bias, gates))

    def row(x: Any, p: Any, kernel: Any, bias: Any, gates: Any) -> Any:
        constant = {} if gates is None else {"gates": gates}
        return method.formula(p, x, kernel, 0.0 if bias is None else bias, **constant)

    with jax.default_matmul_precision("highest"):
        x = jax.ShapeDtypeStruct((1, d_in), rest[1].dtype)
        jaxpr = jax.make_jaxpr(row)(x, *rest)
        # x itself: the identity, of which only the diagonal is held
        identity = Affine(None, jnp.ones(d_in, x.dtype), None)
        arrays = jax.tree.leaves(rest)
        try:
            (y,) = _walk(jaxpr, [identity, *arrays])
        except _NotAffine as error:
            raise NotMergeable(
                f"{type(method).__name__} cannot be merged: `{error.primitive}` of its "
                "formula is not affine in x. Keep the adapter separate"
                + (", or pass constant gates" if method.gated else "")
            ) from None
    if not isinstance(y, Affine):
        zeros = jnp.zeros((d_in, d_out), x.dtype)
        return zeros, jnp.broadcast_to(y, (1, d_out))[0]
    const = None if y.const is None else jnp.broadcast_to(y.const, (1, d_out))[0]
    return y.dense().reshape(d_in, d_out), const


def _widen(value: Any) -> Any:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return value.astype(wide(value.dtype))


class _NotAffine(Exception):
    def __init__(self, primitive: str):
        self.primitive = primitive


def _not_affine(eqn: Any, operands: Sequence[Any]) -> Any:
    raise _NotAffine(eqn.primitive.name)


def _zero(value: Any) -> bool:
    """Whether a value is a zero known while tracing, such as the bias 0.0."""
    known = isinstance(value, int | float | np.generic | np.ndarray)
    return known and not np.any(value)


def _jointly(positions: slice) -> Rule:
    """A rule for a primitive linear in all operands of `positions` taken together."""

    def rule(eqn: Any, operands: list[Any]) -> list[Any]:
        joint = range(len(operands))[positions]
        symbols = [i for i, value in enumerate(operands) if isinstance(value, Affine)]
        if not set(symbols) <= set(joint):
            _not_affine(eqn, operands)
        zeros = [jnp.zeros(var.aval.shape, var.aval.dtype) for var in eqn.invars]

        def linear(*parts: Any) -> list[Any]:
            values = [zeros[i] if i in joint else o for i, o in enumerate(operands)]
            for i, part in zip(symbols, parts):
                values[i] = part
            return evaluate(eqn, values)

        matrices = jax.vmap(linear)(*(operands[i].dense() for i in symbols))
        # M is linear in the symbols alone: other terms of a sum are part of c
        consts = [o.const if isinstance(o, Affine) else o for o in operands]
        # no constant stays none, so that a layer without a bias needs none
        if all(consts[i] is None or _zero(consts[i]) for i in joint):
            return [Affine(matrix, None, None) for matrix in matrices]
        values = [zeros[i] if c is None else c for i, c in enumerate(consts)]
        pairs = zip(matrices, evaluate(eqn, values), strict=True)
        return [Affine(matrix, None, const) for matrix, const in pairs]

    return rule


def _bilinear(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    if sum(isinstance(operand, Affine) for operand in operands) > 1:
        _not_affine(eqn, operands)
    index = next(i for i, value in enumerate(operands) if isinstance(value, Affine))
    return _jointly(slice(index, index + 1))(eqn, operands)


def _dot(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """`x M` for a diagonal x without forming the identity."""
    x, matrix = operands
    contract, batch = eqn.params["dimension_numbers"]
    keeps_diagonal = (
        isinstance(x, Affine)
        and x.diagonal is not None
        and not isinstance(matrix, Affine)
        and tuple(contract[0]) == (1,)
        and not batch[0]
    )
    if not keeps_diagonal:
        return _bilinear(eqn, operands)
    rows = jnp.moveaxis(jnp.asarray(matrix), contract[1][0], 0)
    scaled = rows * jnp.reshape(jnp.asarray(x.diagonal), (-1, *[1] * (rows.ndim - 1)))
    const = None if x.const is None else evaluate(eqn, [x.const, matrix])[0]
    return [Affine(scaled.astype(eqn.outvars[0].aval.dtype)[:, None], None, const)]


def _scale(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """Element-wise product; a diagonal stays one."""
    x, factor = operands if isinstance(operands[0], Affine) else operands[::-1]
    if isinstance(factor, Affine) or x.diagonal is None:
        return _bilinear(eqn, operands)
    if eqn.outvars[0].aval.shape != (1, x.diagonal.size):
        return _bilinear(eqn, operands)
    diagonal = x.diagonal * jnp.broadcast_to(factor, (1, x.diagonal.size))[0]
    const = None if x.const is None else x.const * factor
    return [Affine(None, diagonal, const)]


def _cast(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    (x,) = operands
    if x.diagonal is None:
        return _jointly(slice(0, 1))(eqn, operands)
    const = None if x.const is None else evaluate(eqn, [x.const])[0]
    return [Affine(None, x.diagonal.astype(eqn.params["new_dtype"]), const)]


def _inline(eqn: Any, operands: list[Any]) -> list[Any]:
    return _walk(called(eqn), operands)


def _scan(eqn: Any, operands: list[Any]) -> list[Any]:
    """A scan over affine values, unrolled."""

    def unrolled(*values: Any) -> list[Any]:
        loop = scan_loop(eqn, values)
        length, carry = loop.options["length"], loop.carry
        rows: list[Any] = [None] * length
        for i in range(length)[:: -1 if loop.options["reverse"] else 1]:
            members = [lax.index_in_dim(x, i, 0, keepdims=False) for x in loop.stacked]
            outputs = as_function(loop.body)(*loop.consts, *carry, *members)
            carry, rows[i] = outputs[: len(carry)], outputs[len(carry) :]
        return [*carry, *map(jnp.stack, zip(*rows))]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return _walk(jax.make_jaxpr(unrolled)(*shapes), operands)


_UNARY = (
    "broadcast_in_dim copy copy_p cumsum dynamic_slice expand_dims fft gather neg "
    "optimization_barrier reduce_precision reduce_sum reshape rev sharding_constraint "
    "slice split squeeze transpose unstack"
).split()

# primitive to the operands in which, taken together, it is linear
JOINTLY = {
    **dict.fromkeys((*_UNARY, "div"), slice(0, 1)),
    **dict.fromkeys(("add", "sub", "add_any", "concatenate", "stack"), slice(0, None)),
    **dict.fromkeys(("pad", "dynamic_update_slice"), slice(0, 2)),
    "select_n": slice(1, None),
}

_RULES = {
    **{name: _jointly(positions) for name, positions in JOINTLY.items()},
    **dict.fromkeys((*JIT, *REMAT, "custom_jvp_call", "custom_vjp_call"), _inline),
    "conv_general_dilated": _bilinear,
    "convert_element_type": _cast,
    "dot_general": _dot,
    "mul": _scale,
    "scan": _scan,
}


def _walk(jaxpr: Any, values: Sequence[Any]) -> list[Any]:
    return walk(jaxpr, values, _RULES, _not_affine)
