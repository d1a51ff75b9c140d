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

from peftjax.core.jaxpr import (
    JIT,
    REMAT,
    Symbol,
    evaluate,
    opened,
    scan_parts,
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
        gates: `[heads]`, constants for a gated method.

    Returns:
        `(K', b')`; b' is None where the formula adds nothing to a layer without a bias.

    Raises:
        NotMergeable: the formula is not affine in x.
    """
    d_in, d_out = kernel.shape
    rest = jax.tree.map(_widen, (p, kernel, bias, gates))

    def row(x: Any, p: Any, kernel: Any, bias: Any, gates: Any) -> Any:
        return method.evaluate(p, x, kernel, 0.0 if bias is None else bias, gates=gates)

    with jax.default_matmul_precision("highest"):
        x = jax.ShapeDtypeStruct((1, d_in), rest[1].dtype)
        jaxpr = jax.make_jaxpr(row)(x, *rest)
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
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


class _NotAffine(Exception):
    def __init__(self, primitive: str):
        self.primitive = primitive


def _not_affine(eqn: Any, operands: Sequence[Any]) -> Any:
    raise _NotAffine(eqn.primitive.name)


def _zero(value: Any) -> bool:
    """Whether a value is a zero known while tracing, such as the bias 0.0."""
    return isinstance(value, int | float | np.generic | np.ndarray) and not np.any(
        value
    )


def _jointly(positions: slice):
    """A rule for a primitive linear in all operands of `positions` taken together."""

    def rule(eqn: Any, operands: list[Any]) -> list[Any]:
        joint = range(len(operands))[positions]
        outside = set(range(len(operands))) - set(joint)
        if any(isinstance(operands[i], Affine) for i in outside):
            _not_affine(eqn, operands)
        symbols = [i for i in joint if isinstance(operands[i], Affine)]
        rows = [operands[i].dense() for i in symbols]
        shapes = [var.aval for var in eqn.invars]

        def linear(*parts: Any) -> list[Any]:
            values = list(operands)
            for i in joint:
                if not isinstance(operands[i], Affine):
                    values[i] = jnp.zeros(shapes[i].shape, shapes[i].dtype)
            for i, part in zip(symbols, parts):
                values[i] = part
            return evaluate(eqn, values)

        matrices = jax.vmap(linear)(*rows)
        if all(
            operands[i].const is None if i in symbols else _zero(operands[i])
            for i in joint
        ):
            return [Affine(matrix, None, None) for matrix in matrices]
        values = list(operands)
        for i in symbols:
            const = operands[i].const
            zeros = jnp.zeros(shapes[i].shape, shapes[i].dtype)
            values[i] = zeros if const is None else const
        consts = evaluate(eqn, values)
        return [Affine(m, None, c) for m, c in zip(matrices, consts, strict=True)]

    return rule


def _bilinear(eqn: Any, operands: list[Any]) -> list[Any]:
    if sum(isinstance(operand, Affine) for operand in operands) > 1:
        _not_affine(eqn, operands)
    index = next(i for i, value in enumerate(operands) if isinstance(value, Affine))
    return _jointly(slice(index, index + 1))(eqn, operands)


def _dot(eqn: Any, operands: list[Any]) -> list[Any]:
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


def _scale(eqn: Any, operands: list[Any]) -> list[Any]:
    """Element-wise product; a diagonal stays one."""
    x, factor = operands if isinstance(operands[0], Affine) else operands[::-1]
    if isinstance(factor, Affine) or x.diagonal is None:
        return _bilinear(eqn, operands)
    if eqn.outvars[0].aval.shape != (1, x.diagonal.size):
        return _bilinear(eqn, operands)
    diagonal = x.diagonal * jnp.broadcast_to(factor, (1, x.diagonal.size))[0]
    const = None if x.const is None else x.const * factor
    return [Affine(None, diagonal, const)]


def _cast(eqn: Any, operands: list[Any]) -> list[Any]:
    (x,) = operands
    if x.diagonal is None:
        return _jointly(slice(0, 1))(eqn, operands)
    const = None if x.const is None else evaluate(eqn, [x.const])[0]
    return [Affine(None, x.diagonal.astype(eqn.params["new_dtype"]), const)]


def _inline(name: str):
    def rule(eqn: Any, operands: list[Any]) -> list[Any]:
        return _walk(eqn.params[name], operands)

    return rule


_Level = int  # of a scan's value: 0 an array, 1 x M, 2 x M + c


def _level(value: Any) -> _Level:
    return (2 if value.const is not None else 1) if isinstance(value, Affine) else 0


def _scan(eqn: Any, operands: list[Any]) -> list[Any]:
    """A scan with affine carry or stacked inputs: carry M and c beside each other."""
    parts = scan_parts(eqn)
    inner, _ = opened(parts.body)
    consts, carry, stacked = parts.split(operands)
    width = next(v for v in operands if isinstance(v, Affine)).dense().shape[0]
    levels = [_level(value) for value in carry]
    out_levels: list[_Level] = []

    def packed(value: Any, level: _Level, aval: Any) -> Any:
        """Bring a value to the pytree of a level at least its own."""
        if level == 0:
            return value
        zeros = jnp.zeros(aval.shape, aval.dtype)
        if not isinstance(value, Affine):
            return jnp.zeros((width, *aval.shape), aval.dtype), zeros + value
        filled = zeros if value.const is None else value.const
        return value.dense(), filled if level == 2 else None

    def unpacked(value: Any, level: _Level) -> Any:
        return value if level == 0 else Affine(value[0], None, value[1])

    def step(carried: Any, sliced: Any) -> Any:
        inputs = [unpacked(v, level) for v, level in zip(carried, levels)]
        inputs += [unpacked(v, _level(s)) for v, s in zip(sliced, stacked)]
        outputs = _walk(parts.body, [*consts, *inputs])
        known = levels + [0] * (len(outputs) - len(levels))
        out_levels[:] = [
            max(k, _level(v), 2 * (k > 0 and not isinstance(v, Affine)))
            for v, k in zip(outputs, known)
        ]
        pairs = [
            packed(value, level, var.aval)
            for value, level, var in zip(outputs, out_levels, inner.outvars)
        ]
        return pairs[: len(carry)], pairs[len(carry) :]

    def start() -> list[Any]:
        avals = [var.aval for var in inner.invars][len(consts) :]
        return [packed(v, level, a) for v, level, a in zip(carry, levels, avals)]

    xs = [
        (jnp.moveaxis(value.dense(), 1, 0), value.const)
        if isinstance(value, Affine)
        else value
        for value in stacked
    ]
    while True:
        first = jax.tree.map(lambda leaf: jax.eval_shape(lambda a: a[0], leaf), xs)
        jax.eval_shape(step, start(), first)
        if out_levels[: len(levels)] == levels:
            break
        levels = out_levels[: len(levels)]
    carried, ys = jax.lax.scan(step, start(), xs, **parts.options)
    moved = [
        (jnp.moveaxis(value[0], 0, 1), value[1]) if level else value
        for value, level in zip(ys, out_levels[len(levels) :])
    ]
    return [unpacked(v, level) for v, level in zip([*carried, *moved], out_levels)]


_UNARY = (
    "broadcast_in_dim copy copy_p cumsum dynamic_slice expand_dims gather neg "
    "optimization_barrier reduce_precision reduce_sum reshape rev sharding_constraint "
    "slice split squeeze transpose unstack"
).split()

_RULES = {
    **dict.fromkeys(_UNARY, _jointly(slice(0, 1))),
    **dict.fromkeys(
        ("add", "sub", "add_any", "concatenate", "stack"), _jointly(slice(0, None))
    ),
    **dict.fromkeys(("pad", "dynamic_update_slice"), _jointly(slice(0, 2))),
    **dict.fromkeys(JIT, _inline("jaxpr")),
    **dict.fromkeys(REMAT, _inline("jaxpr")),
    "custom_jvp_call": _inline("call_jaxpr"),
    "custom_vjp_call": _inline("call_jaxpr"),
    "closed_call": _inline("call_jaxpr"),
    "conv_general_dilated": _bilinear,
    "convert_element_type": _cast,
    "div": _jointly(slice(0, 1)),
    "dot_general": _dot,
    "mul": _scale,
    "scan": _scan,
    "select_n": _jointly(slice(1, None)),
}


def _walk(jaxpr: Any, values: Sequence[Any]) -> list[Any]:
    return walk(jaxpr, values, _RULES, _not_affine)
