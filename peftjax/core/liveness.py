"""Which inputs of a jaxpr have a part in its outputs: dead-code analysis, backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core as jex

from peftjax.core.jaxpr import (
    JIT,
    REMAT,
    called,
    evaluate,
    opened,
    scan_loop,
    while_loops,
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
            rule = _RULES.get(eqn.primitive.name, _all)
            live |= _chosen(eqn.invars, rule(eqn, used, inner))
    return [var in live for var in inner.invars]


def _is_reference(var: Any) -> bool:
    return hasattr(var.aval, "inner_aval")


def _chosen(variables: Sequence[Any], flags: Sequence[bool]) -> set[Any]:
    pairs = zip(variables, flags, strict=True)
    return {var for var, on in pairs if on and not isinstance(var, jex.Literal)}


def _all(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    return [True] * len(eqn.invars)


def _inline(eqn: Any, used: list[bool], around: Any) -> list[bool]:
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


def _scan(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    loop = scan_loop(eqn, eqn.invars)
    n = len(loop.carry)
    return _fixpoint(loop.body, len(loop.consts), used[:n], used[n:])[0]


def _while(eqn: Any, used: list[bool], around: Any) -> list[bool]:
    conds, bodies = while_loops(eqn, eqn.invars)
    n, m = len(conds.consts), len(bodies.consts)
    asked = live_inputs(conds.body)
    carried = [a or b for a, b in zip(used, asked[n:])]
    flags, carried = _fixpoint(bodies.body, m, carried)
    return [*asked[:n], *flags[:m], *carried]


def _cond(eqn: Any, used: list[bool], around: Any) -> list[bool]:
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


_RULES = {
    **dict.fromkeys((*JIT, *REMAT), _inline),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "shard_map"), _inline),
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
