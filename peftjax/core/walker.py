"""One walker for jaxprs in which some values are symbols that only rules understand.

`walk` evaluates a jaxpr equation by equation. An equation none of whose operands is a
`Symbol` is evaluated as it is; any other goes to the rule of its primitive. Everything
here that depends on the JAX version stands in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex


class Symbol:
    """A value that stands for more than an array; only rules can use it."""


Rule = Callable[[Any, list[Any]], Sequence[Any]]


def evaluate(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on arrays, whatever its primitive."""
    inputs: dict[Any, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            inputs[var] = value
    name = jex.DebugInfo("evaluate", eqn.primitive.name, None, None)
    outputs = list(eqn.outvars)
    single = jex.Jaxpr((), list(inputs), outputs, [eqn], eqn.effects, name)
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(single, ()))(*inputs.values())


def walk(
    jaxpr: Any,
    values: Sequence[Any],
    rules: Mapping[str, Rule],
    otherwise: Rule,
    plain: Rule = evaluate,
) -> list[Any]:
    """Evaluate a jaxpr whose inputs may be symbols; return its outputs.

    Args:
        jaxpr: a closed jaxpr.
        values: one array or symbol per input.
        rules: primitive name to rule `(eqn, operands) -> results`.
        otherwise: the rule for a primitive that is not in `rules`.
        plain: evaluates an equation without symbols.
    """
    open_jaxpr, consts = opened(jaxpr)
    env: dict[Any, Any] = dict(zip(open_jaxpr.constvars, consts, strict=True))
    env.update(zip(open_jaxpr.invars, values, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex.Literal) else env[var]

    for eqn in open_jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        if any(isinstance(operand, Symbol) for operand in operands):
            results = rules.get(eqn.primitive.name, otherwise)(eqn, operands)
        else:
            results = plain(eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in open_jaxpr.outvars]


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Return the bare jaxpr and its constants; newer JAX stores some without a pair."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


class Scan(NamedTuple):
    """A scan equation's body and how its operands divide."""

    body: Any
    num_consts: int
    num_carry: int
    options: dict[str, Any]

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Divide operands into constants, carry and stacked ones."""
        ends = self.num_consts, self.num_consts + self.num_carry
        operands = list(operands)
        return operands[: ends[0]], operands[ends[0] : ends[1]], operands[ends[1] :]


def scan_parts(eqn: Any) -> Scan:
    """Read a scan equation.

    What is carried and what is stacked is read off the shapes, since the names of the
    parameters differ between JAX versions: a stacked value has one more axis outside.
    """
    body = eqn.params["jaxpr"]
    inner, _ = opened(body)

    def stacked(outer: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(
            o.aval.ndim > i.aval.ndim for o, i in zip(outer, inside, strict=True)
        )

    num_carry = len(eqn.outvars) - stacked(eqn.outvars, inner.outvars)
    num_consts = len(eqn.invars) - num_carry - stacked(eqn.invars, inner.invars)
    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    return Scan(body, num_consts, num_carry, options)


class While(NamedTuple):
    """A while equation's condition and body with the constants of each."""

    cond: Any
    body: Any
    cond_consts: list[Any]
    body_consts: list[Any]
    carry: list[Any]


def while_parts(eqn: Any, operands: Sequence[Any]) -> While:
    """Read a while equation and divide its operands."""
    first = eqn.params["cond_nconsts"]
    second = first + eqn.params["body_nconsts"]
    return While(
        eqn.params["cond_jaxpr"],
        eqn.params["body_jaxpr"],
        list(operands[:first]),
        list(operands[first:second]),
        list(operands[second:]),
    )


def remat(eqn: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in the rematerialisation that an equation asks for."""
    return jax.checkpoint(
        function,
        prevent_cse=eqn.params.get("prevent_cse", True),
        policy=eqn.params.get("policy"),
    )


JIT = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("checkpoint", "remat", "remat2")
