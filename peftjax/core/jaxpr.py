"""A call of a model as a jaxpr, the walker for jaxprs that hold symbols, and liveness.

`walk` evaluates a jaxpr equation by equation. An equation none of whose operands is a
`Symbol` is evaluated as it is; any other goes to the rule of its primitive. Everything
here that depends on the JAX version stands in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from peftjax.core.coded import Coded

Rule = Callable[[Any, list[Any]], Sequence[Any]]

JIT = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("checkpoint", "remat", "remat2")


class Symbol:
    """A value that stands for more than an array; only rules can use it."""


def evaluate(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on arrays, whatever its primitive."""
    # a variable may stand at several places of an equation, but once among the inputs
    inputs: dict[Any, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            inputs[var] = value
    name = jex.DebugInfo("evaluate", eqn.primitive.name, None, None)
    outputs = list(eqn.outvars)
    single = jex.Jaxpr((), list(inputs), outputs, [eqn], eqn.effects, name)
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(single, ()))(*inputs.values())


def rebound(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on arrays of other types than its own."""
    found = eqn.primitive.bind(*values, **eqn.params)
    return list(found) if eqn.primitive.multiple_results else [found]


def walk(
    jaxpr: Any,
    values: Sequence[Any],
    rules: Mapping[str, Rule],
    otherwise: Rule,
    plain: Rule = evaluate,
) -> list[Any]:
    """Evaluate a jaxpr whose inputs may be symbols; return its outputs.

    Args:
        jaxpr: closed.
        values: one array or symbol per input.
        rules: primitive name to rule `(eqn, operands) -> results`.
        otherwise: the rule of any other primitive.
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


def as_function(jaxpr: Any) -> Callable[..., list[Any]]:
    """Return a jaxpr as a function of arrays."""
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(*opened(jaxpr)))


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Return the bare jaxpr and its constants; newer JAX stores some without a pair."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def called(eqn: Any) -> Any:
    """Return the jaxpr that a `jit`, `remat` or `custom_jvp` equation calls."""
    return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]


class Loop(NamedTuple):
    """A scan or while equation: its operands divided, and what it runs."""

    consts: list[Any]
    carry: list[Any]
    stacked: list[Any]
    body: Any
    options: dict[str, Any]


def scan_loop(eqn: Any, operands: Sequence[Any]) -> Loop:
    """Read a scan equation."""
    body = eqn.params["jaxpr"]
    inner, _ = opened(body)

    # The names of the parameters that say so differ between JAX versions; the shapes do
    # not: a stacked value has one more axis outside.
    def stacked(outer: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(o.aval.ndim > i.aval.ndim for o, i in zip(outer, inside))

    last = len(eqn.invars) - stacked(eqn.invars, inner.invars)
    first = last - len(eqn.outvars) + stacked(eqn.outvars, inner.outvars)
    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    values = list(operands)
    return Loop(values[:first], values[first:last], values[last:], body, options)


def while_loops(eqn: Any, operands: Sequence[Any]) -> tuple[Loop, Loop]:
    """Read a while equation: its condition and its body, which have one carry."""
    first = eqn.params["cond_nconsts"]
    second = first + eqn.params["body_nconsts"]
    values = list(operands)
    carry = values[second:]
    return (
        Loop(values[:first], carry, [], eqn.params["cond_jaxpr"], {}),
        Loop(values[first:second], carry, [], eqn.params["body_jaxpr"], {}),
    )


def live_inputs(jaxpr: Any, wanted: Sequence[bool] | None = None) -> list[bool]:
    """Return for each input whether an output depends on it.

    Args:
        jaxpr: what computes the outputs.
        wanted: the outputs that count; all by default.
    """
    inner, _ = opened(jaxpr)
    # what goes into a reference may come out of it again, whoever holds it
    live = {var for var in inner.invars if _is_reference(var)}
    live |= _chosen(inner.outvars, wanted or [True] * len(inner.outvars))
    for eqn in reversed(inner.eqns):
        used = [var in live for var in eqn.outvars]
        if any(used) or any(var in live for var in filter(_is_reference, eqn.invars)):
            rule = _LIVE.get(eqn.primitive.name, _all)
            live |= _chosen(eqn.invars, rule(eqn, used, inner))
    return [var in live for var in inner.invars]


def _is_reference(var: Any) -> bool:
    return hasattr(var.aval, "inner_aval")


def _chosen(variables: Sequence[Any], flags: Sequence[bool]) -> set[Any]:
    pairs = zip(variables, flags, strict=True)
    return {var for var, on in pairs if on and not isinstance(var, jex.Literal)}


def _all(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    return [True] * len(eqn.invars)


def _inside(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    return live_inputs(called(eqn), used)


def _fixpoint(
    body: Any, consts: int, carried: list[bool], ys: Sequence[bool] = ()
) -> tuple[list[bool], list[bool]]:
    """Return the live inputs of a loop's body, and which of its carry ever live."""
    while True:
        flags = live_inputs(body, [*carried, *ys])
        inside = flags[consts : consts + len(carried)]
        grown = [a or b for a, b in zip(carried, inside)]
        if grown == carried:
            return flags, carried
        carried = grown


def _scan_lives(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    loop = scan_loop(eqn, eqn.invars)
    n = len(loop.carry)
    return _fixpoint(loop.body, len(loop.consts), used[:n], used[n:])[0]


def _while_lives(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    conds, bodies = while_loops(eqn, eqn.invars)
    n, m = len(conds.consts), len(bodies.consts)
    asked = live_inputs(conds.body)
    carried = [a or b for a, b in zip(used, asked[n:])]
    flags, carried = _fixpoint(bodies.body, m, carried)
    return [*asked[:n], *flags[:m], *carried]


def _cond_lives(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    index, branches = _known(eqn.invars[0], around), eqn.params["branches"]
    if index is not None:
        branches = branches[max(index, 0) :][:1] or branches[-1:]
    each = [live_inputs(branch, used) for branch in branches]
    return [index is None, *map(any, zip(*each))]


def _known(var: Any, around: Any) -> int | None:
    """Return an index that is written into the jaxpr."""
    if isinstance(var, jex.Literal):
        return int(var.val)
    for eqn in around.eqns:
        if eqn.outvars == [var] and all(isinstance(v, jex.Literal) for v in eqn.invars):
            with jax.ensure_compile_time_eval():
                return int(evaluate(eqn, [v.val for v in eqn.invars])[0])
    return None


_LIVE = {
    **dict.fromkeys((*JIT, *REMAT), _inside),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "shard_map"), _inside),
    "cond": _cond_lives,
    "scan": _scan_lives,
    "while": _while_lives,
}


@dataclass(frozen=True)
class Call:
    """Arguments of a model, arrays apart from everything else.

    Arrays and `ShapeDtypeStruct`s are traced; Python values (`train=True`, names of
    mutable collections) stay what they are.
    """

    apply_fn: Callable[..., Any]
    variables: Any
    dynamic: list[Any]
    static: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(
        cls,
        apply_fn: Callable[..., Any],
        variables: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Call:
        """Sort the arguments of a call; `variables` is the structure of the first."""
        leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
        dynamic = [leaf for leaf in leaves if _is_array(leaf)]
        static = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
        return cls(apply_fn, variables, dynamic, static, structure)

    @property
    def examples(self) -> int:
        """The length of the first axis of the first array."""
        shapes = [leaf.shape for leaf in self.dynamic if len(leaf.shape)]
        return shapes[0][0] if shapes else 1

    def arguments(
        self, dynamic: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put arrays back among the Python values."""
        arrays = iter(dynamic)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.structure, leaves)

    def trace(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        """Return the jaxpr, with inputs `[*leaves, *dynamic]`, and the output tree."""

        def function(leaves: Sequence[Any], dynamic: Sequence[Any]) -> Any:
            args, kwargs = self.arguments(dynamic)
            variables = jax.tree.unflatten(self.variables, leaves)
            return self.apply_fn(variables, *args, **kwargs)

        avals = [leaf.aval if isinstance(leaf, Coded) else leaf for leaf in leaves]
        jaxpr, out = jax.make_jaxpr(function, return_shape=True)(avals, self.dynamic)
        return jaxpr, jax.tree.structure(out)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


_ARRAY: Any = object()  # marks the place of an array among the static arguments
