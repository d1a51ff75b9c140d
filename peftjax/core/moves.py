"""Rule table 1, first half: what leaves a symbol what it is.

Its axes change, or it is scaled, or control flow carries it to where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import frexp
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import axes, jaxpr
from peftjax.core.axes import shape
from peftjax.core.coded import Coded
from peftjax.core.jaxpr import Loop, Rule, Symbol
from peftjax.core.uses import Leaf, Merged, Product, Token, Weight

ENTERS = Leaf, Merged  # the symbols that go into loops and branches


class Moves:
    """What becomes of a symbol that is not used yet.

    A subclass says what the end of a symbol and a loop amount to, and may build the
    rest of control flow and plain equations otherwise.

    Attributes:
        table: the rule of each primitive.
    """

    table: Mapping[str, Rule]
    switch: Callable[..., Any] = staticmethod(lax.switch)
    checkpoint: Callable[..., Any] = staticmethod(jax.checkpoint)
    evaluate: Callable[[Any, Sequence[Any]], list[Any]] = staticmethod(jaxpr.evaluate)

    def scan(self, token: Token, step: Any, carry: Any, xs: Any, **options: Any) -> Any:
        """Run a scan; `token` stands for it in what its members have dropped."""
        raise NotImplementedError

    def while_loop(self, cond: Any, body: Any, carry: Any) -> Any:
        """Run a loop."""
        raise NotImplementedError

    def ended(self, symbol: Any, why: str) -> Any:
        """Return the array that a symbol stands for, where no rule knows more."""
        raise NotImplementedError

    def has_members(self, leaf: Leaf) -> bool:
        """Whether the first axis of a leaf is a stacked one."""
        raise NotImplementedError

    def walk(self, closed: Any, values: Sequence[Any]) -> list[Any]:
        return jaxpr.walk(closed, values, self.table, self._unknown, self.evaluate)

    def end(self, values: Sequence[Any], why: str, keep: Any = ()) -> list[Any]:
        """End all symbols but those of the types to keep."""
        return [
            self.ended(value, why)
            if isinstance(value, Symbol) and not isinstance(value, keep)
            else value
            for value in values
        ]

    def _unknown(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        return self.evaluate(eqn, self.end(operands, f"used by `{eqn.primitive.name}`"))

    # --- the axes change, the value does not

    def _move(self, eqn: Any, operands: list[Any]) -> list[Any]:
        symbol, *others = operands
        if not isinstance(symbol, Leaf | Product):
            return self._unknown(eqn, operands)
        view = axes.MOVES[eqn.primitive.name](eqn, symbol.view)
        grown = view is not None and shape(view) != eqn.outvars[0].aval.shape
        if view is None or (grown and isinstance(symbol, Weight)):
            return self._unknown(eqn, operands)
        if isinstance(symbol, Product) and symbol.asked.out_dtype.itemsize == 1:
            # a sum in 8 bits would lose what adapters add
            if eqn.primitive.name == "convert_element_type":
                return [symbol.cast(eqn.outvars[0].aval.dtype)]
        return [symbol.moved(lambda v: self.evaluate(eqn, [v, *others])[0], view)]

    def _scale(self, eqn: Any, operands: list[Any]) -> list[Any]:
        name, place = eqn.primitive.name, 0 if isinstance(operands[0], Weight) else 1
        weight, var = operands[place], eqn.invars[1 - place]
        if (
            not isinstance(weight, Weight)
            or isinstance(operands[1 - place], Weight)
            or eqn.outvars[0].aval.shape != shape(weight.view)
            or (place and name == "div")
        ):
            return self._unknown(eqn, operands)
        quantised, dtype = weight.site.quantised, var.aval.dtype
        number = getattr(var, "val", None)
        exact = number is not None and abs(frexp(float(number))[0]) == 0.5
        if quantised:
            values = self.end(operands, "the scale of a quantised weight", keep=Weight)
            values[place] = weight.value
            value = self.evaluate(eqn, values)[0]
            # a number such as 2.0 is not what integers were divided by
            whole_number = number is not None and float(number).is_integer()
            scales = name == "div" or (name == "mul" and not whole_number)
            scaled = weight.scaled or (scales and jnp.issubdtype(dtype, jnp.floating))
            return [replace(weight.moved(lambda _: value, weight.view), scaled=scaled)]
        if name == "sub" or not (exact or dtype.itemsize >= 4):
            return self._unknown(eqn, operands)
        factor = self.end(operands, "the factor of a weight", keep=Weight)[1 - place]
        if factor is not None and name == "div":
            factor = 1 / factor
        return [weight.times(factor, var.aval.shape or (1,) * len(weight.view), exact)]

    def _index(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf, *start = operands
        if (
            not isinstance(leaf, Leaf)
            or any(isinstance(o, Symbol) for o in start)
            or not axes.leading_index(eqn)
            # a row of a matrix is no layer
            or len(leaf.view) < (3 if isinstance(leaf, Weight) else 2)
            or not self.has_members(leaf)
        ):
            return self._unknown(eqn, operands)
        # a bias and its weight belong together if one index took both members
        static = eqn.params.get("start_indices")
        token = static[0] if static else id(eqn.invars[1])

        def take(array: jax.Array) -> jax.Array:
            index = static[0] if static else jnp.reshape(start[0], ())
            return lax.dynamic_index_in_dim(array, index, 0, keepdims=False)

        member = leaf.leading().map(take).member(("index", token))
        kept = eqn.outvars[0].aval.ndim == len(leaf.view)
        if isinstance(leaf.value, Coded):
            member = replace(member, value=jax.tree.map(take, leaf.value))
            lay = (lambda v: v[None]) if kept else (lambda v: v)
        else:
            value = self.evaluate(eqn, [leaf.value, *start])[0]
            lay = lambda _: value  # noqa: E731
        return [member.moved(lay, (*((),) * kept, *member.view))]

    # --- control flow: go inside, and build it anew

    def _inline(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        return self.walk(jaxpr.called(eqn), operands)

    def _remat(self, eqn: Any, operands: list[Any]) -> list[Any]:
        def inside(*values: Any) -> list[Any]:
            return self.end(
                self.walk(jaxpr.called(eqn), values), "passed out of a remat"
            )

        # an awaited product cannot leave: it would be computed, and kept, outside
        prevent_cse = eqn.params.get("prevent_cse", True)
        policy = eqn.params.get("policy")
        inside = self.checkpoint(inside, prevent_cse=prevent_cse, policy=policy)
        return inside(*self.end(operands, "enters a remat", keep=ENTERS))

    def _scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        # the equation lives as long as the walk, so that its id stands for it
        token = ("scan", id(eqn))
        loop = jaxpr.scan_loop(eqn, self.end(operands, "enters a scan", keep=ENTERS))
        xs = loop.stacked
        for i, value in enumerate(xs):
            if isinstance(value, Leaf):
                stacked = self.has_members(value)
                xs[i] = value.leading() if stacked else self.ended(value, "scanned")

        def step(carried: list[Any], sliced: list[Any]) -> Any:
            members = [v.member(token) if isinstance(v, Leaf) else v for v in sliced]
            outputs = self.walk(loop.body, [*loop.consts, *carried, *members])
            outputs = self.end(outputs, "passed out of a loop")
            return outputs[: len(carried)], outputs[len(carried) :]

        carry = self.end(loop.carry, "carried by `scan`")
        carried, ys = self.scan(token, step, carry, xs, **loop.options)
        return [*carried, *ys]

    def _while(self, eqn: Any, operands: list[Any]) -> list[Any]:
        operands = self.end(operands, "enters a loop", keep=ENTERS)
        conds, bodies = jaxpr.while_loops(eqn, operands)

        def inside(loop: Loop, carry: list[Any]) -> list[Any]:
            outputs = self.walk(loop.body, [*loop.consts, *carry])
            return self.end(outputs, "passed out of a loop")

        carry = self.end(conds.carry, "carried by `while`")
        cond = lambda carry: inside(conds, carry)[0]  # noqa: E731
        return self.while_loop(cond, partial(inside, bodies), carry)

    def _cond(self, eqn: Any, operands: list[Any]) -> list[Any]:
        def inside(branch: Any, *values: Any) -> list[Any]:
            return self.end(self.walk(branch, values), "passed out of a branch")

        index, *operands = self.end(operands, "enters a branch", keep=ENTERS)
        branches = [partial(inside, branch) for branch in eqn.params["branches"]]
        return self.switch(index, branches, *operands)
