"""The walker: equations as they are, symbols to their rules, loops read from shapes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from peftjax.core.jaxpr import (
    Call,
    Symbol,
    as_function,
    called,
    evaluate,
    opened,
    scan_loop,
    walk,
    while_loops,
)

X = jnp.arange(6.0).reshape(2, 3)


@dataclass
class Named(Symbol):
    name: str


def refuse(eqn, operands):
    raise AssertionError(f"no rule for {eqn.primitive.name}")


def equation(function, *arguments, name=None):
    """The only equation of a function's jaxpr, or the one of that name."""
    eqns = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    (eqn,) = [e for e in eqns if name is None or e.primitive.name == name]
    return eqn


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x.T + 2,
        lambda x: jax.jit(jnp.tanh)(x),
        lambda x: lax.scan(lambda c, row: (c + row, c), jnp.zeros(3), x),
        lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.checkpoint(jnp.exp)(x),
        lambda x: jax.nn.relu(x),
    ],
)
def test_without_symbols_a_jaxpr_is_evaluated_as_it_is(function):
    found = walk(jax.make_jaxpr(function)(X), [X], {}, refuse)
    expected = jax.tree.leaves(function(X))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_symbol_goes_to_the_rule_of_its_primitive_and_on():
    jaxpr = jax.make_jaxpr(lambda x, y: (jnp.sin(x) + y, jnp.cos(y)))(X, X)
    seen = []

    def sin(eqn, operands):
        seen.append(operands[0].name)
        return [Named("sine")]

    def otherwise(eqn, operands):
        seen.append((eqn.primitive.name, operands[0].name))
        return [operands[1]]

    found = walk(jaxpr, [Named("x"), X], {"sin": sin}, otherwise)
    assert seen == ["x", ("add", "sine")]
    jax.tree.map(np.testing.assert_array_equal, found, [X, jnp.cos(X)])


def test_plain_equations_may_be_evaluated_otherwise():
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) + 1)(X)
    names = []

    def plain(eqn, values):
        names.append(eqn.primitive.name)
        return [None] * len(eqn.outvars)

    assert walk(jaxpr, [None], {}, refuse, plain) == [None]
    assert names == ["sin", "add"]


def test_an_equation_with_literals_is_evaluated():
    eqn = equation(lambda x: x + 1.0, X)
    np.testing.assert_array_equal(evaluate(eqn, [X, 1.0])[0], X + 1)


def test_a_called_jaxpr_is_a_function():
    eqn = equation(lambda x: jax.jit(lambda x: x * 2)(x), X)
    np.testing.assert_array_equal(as_function(called(eqn))(X)[0], 2 * X)
    assert len(opened(called(eqn))[0].eqns) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_the_operands_of_a_scan_divide_by_their_shapes(reverse):
    def function(constant, carry, rows):
        body = lambda c, row: (c * constant + row, row)  # noqa: E731
        return lax.scan(body, carry, rows, reverse=reverse)

    eqn = equation(function, jnp.ones(3), jnp.zeros(3), X, name="scan")
    loop = scan_loop(eqn, ["constant", "carry", "rows"])
    assert (loop.consts, loop.carry, loop.stacked) == (
        ["constant"],
        ["carry"],
        ["rows"],
    )
    assert (loop.options["length"], loop.options["reverse"]) == (2, reverse)


def test_the_operands_of_a_while_divide():
    def function(limit, step, x):
        return lax.while_loop(lambda x: x < limit, lambda x: x + step, x)

    eqn = equation(function, 3.0, 1.0, 0.0, name="while")
    cond, body = while_loops(eqn, ["limit", "step", "x"])
    assert (cond.consts, cond.carry) == (["limit"], ["x"])
    assert (body.consts, body.carry) == (["step"], ["x"])


def test_a_call_keeps_python_values_and_traces_arrays():
    def apply_fn(v, x, double, scale=1.0):
        assert isinstance(double, bool) and isinstance(scale, float)
        return {"y": (2 if double else 1) * scale * (x @ v)}

    structure = jax.tree.structure(0)
    call = Call.of(apply_fn, structure, (X, True), {"scale": 3.0})
    assert [a.shape for a in call.dynamic] == [(2, 3)] and call.examples == 2
    assert call.arguments(["other"]) == (("other", True), {"scale": 3.0})
    jaxpr, out = call.trace([jnp.ones((3, 4))])
    assert out == jax.tree.structure({"y": 0})
    (y,) = as_function(jaxpr)(jnp.ones((3, 4)), X)
    np.testing.assert_array_equal(y, 6 * X @ jnp.ones((3, 4)))
