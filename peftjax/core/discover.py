"""Find how a model uses each of its parameters, from its jaxpr alone.

The walker is run with no arrays at all: parameters are `Leaf` symbols, and what comes
out of a layer is a `Product` until something other than the layer's bias is done to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax.numpy as jnp

from peftjax.core.layout import LAYOUT, leading_index, row_lookup
from peftjax.core.method import Kind
from peftjax.core.uses import Findings, Leaf, Product, Use, bias_groups
from peftjax.core.views import TOKENS, Atom, Axis, group, shape, whole
from peftjax.core.walker import (
    JIT,
    REMAT,
    Symbol,
    opened,
    scan_parts,
    walk,
    while_parts,
)


class GroupedConvolution(ValueError):
    """A convolution with groups > 1, on which no formula is defined."""


def discover(jaxpr: Any, leaves: int, adapted: set[int]) -> Findings:
    """Read the uses of the first `leaves` inputs of a jaxpr.

    Args:
        jaxpr: the model, its parameters first.
        leaves: how many inputs are parameters.
        adapted: those on which a formula is to be evaluated.
    """
    pass_ = _Pass()
    inner, _ = opened(jaxpr)
    values: list[Any] = [None] * len(inner.invars)
    for index, var in enumerate(inner.invars[:leaves]):
        integer = jnp.issubdtype(var.aval.dtype, jnp.integer)
        view = whole(var.aval.shape)
        values[index] = Leaf(
            index, view, adapted=index in adapted, integer=bool(integer)
        )
    for value in pass_.walk(jaxpr, values):
        pass_.lost(value, "returned by the model")
    return pass_.found


class _Pass:
    """One walk: the rules and what they find."""

    def __init__(self) -> None:
        self.found = Findings()
        self.repeat = 1
        self.rules = {
            **dict.fromkeys(LAYOUT, self._layout),
            **dict.fromkeys(JIT, self._inline),
            **dict.fromkeys(REMAT, self._inline),
            **dict.fromkeys(("add", "add_any"), self._add),
            **dict.fromkeys(("mul", "div", "sub"), self._dequantise),
            **dict.fromkeys(("slice", "dynamic_slice"), self._index),
            "cond": self._cond,
            "conv_general_dilated": self._conv,
            "dot_general": self._dot,
            "gather": self._gather,
            "scan": self._scan,
            "while": self._while,
        }

    def walk(self, jaxpr: Any, values: Sequence[Any]) -> list[Any]:
        plain = lambda eqn, _: [None] * len(eqn.outvars)  # noqa: E731
        for value in values:
            if isinstance(value, Leaf):
                self.found.seen.add(value.index)
        return walk(jaxpr, values, self.rules, self._unknown, plain)

    def lost(self, value: Any, why: str) -> None:
        """Note that a symbol ends where nothing more is known of it."""
        if isinstance(value, Product):
            value.use.others.append(why)
        elif isinstance(value, Leaf):
            notes = self.found.opaque if value.adapted else self.found.elsewhere
            notes.setdefault(value.index, []).append(why)

    def _unknown(self, eqn: Any, operands: list[Any]) -> list[Any]:
        for operand in operands:
            self.lost(operand, f"used by `{eqn.primitive.name}`")
        return [None] * len(eqn.outvars)

    def _layout(self, eqn: Any, operands: list[Any]) -> list[Any]:
        symbol = operands[0]
        view = LAYOUT[eqn.primitive.name](eqn, symbol.view)
        grown = view is not None and shape(view) != eqn.outvars[0].aval.shape
        if view is None or (grown and isinstance(symbol, Leaf) and symbol.adapted):
            return self._unknown(eqn, operands)
        return [replace(symbol, view=view)]

    def _inline(self, eqn: Any, operands: list[Any]) -> list[Any]:
        name = "jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"
        return self.walk(eqn.params[name], operands)

    def _inside(self, jaxpr: Any, operands: list[Any], repeat: int = 1) -> None:
        """Walk a loop's body or a branch, out of which no symbol comes."""
        values = [
            replace(v, repeat=v.repeat * repeat) if isinstance(v, Leaf) else v
            for v in operands
        ]
        for value in self.walk(jaxpr, values):
            self.lost(value, "passed out of a loop or branch")

    def _carried(self, eqn: Any, carry: list[Any]) -> list[None]:
        for value in carry:
            self.lost(value, f"carried by `{eqn.primitive.name}`")
        return [None] * len(carry)

    def _only_leaves(self, operands: list[Any], why: str) -> list[Any]:
        for value in operands:
            if isinstance(value, Product):
                self.lost(value, why)
        return [value if isinstance(value, Leaf) else None for value in operands]

    def _scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        parts = scan_parts(eqn)
        operands = self._only_leaves(operands, "enters a scan")
        consts, carry, stacked = parts.split(operands)
        members = [
            replace(
                value,
                view=value.view[1:],
                dropped=(*value.dropped, (value.view[0], ("scan", id(eqn)))),
            )
            if isinstance(value, Leaf)
            else None
            for value in stacked
        ]
        repeat = eqn.params["length"]
        looped = [
            replace(v, repeat=v.repeat * repeat) if isinstance(v, Leaf) else v
            for v in consts
        ]
        inside = [*looped, *self._carried(eqn, carry), *members]
        self._inside(parts.body, inside)
        return [None] * len(eqn.outvars)

    def _while(self, eqn: Any, operands: list[Any]) -> list[Any]:
        parts = while_parts(eqn, self._only_leaves(operands, "enters a loop"))
        carry = self._carried(eqn, parts.carry)
        self._inside(parts.cond, [*parts.cond_consts, *carry])
        self._inside(parts.body, [*parts.body_consts, *carry])
        return [None] * len(eqn.outvars)

    def _cond(self, eqn: Any, operands: list[Any]) -> list[Any]:
        operands = self._only_leaves(operands, "enters a branch")
        for branch in eqn.params["branches"]:
            self._inside(branch, operands[1:])
        return [None] * len(eqn.outvars)

    def _index(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf = operands[0]
        deep = 3 if getattr(leaf, "adapted", False) else 2
        if (
            not isinstance(leaf, Leaf)
            or any(isinstance(o, Symbol) for o in operands[1:])
            or not leading_index(eqn)
            or len(leaf.view) < deep
        ):
            return self._unknown(eqn, operands)
        where = eqn.params.get("start_indices", (None,))[0]
        token = ("index", id(eqn.invars[1]) if where is None else where)
        kept = len(eqn.outvars[0].aval.shape) == len(leaf.view)
        view = (((),) if kept else ()) + leaf.view[1:]
        dropped = (*leaf.dropped, (leaf.view[0], token))
        return [replace(leaf, view=view, dropped=dropped)]

    def _dequantise(self, eqn: Any, operands: list[Any]) -> list[Any]:
        first = operands[0] if isinstance(operands[0], Leaf) else operands[-1]
        same = first is not None and (
            tuple(eqn.outvars[0].aval.shape)
            == eqn.invars[operands.index(first)].aval.shape
        )
        if not (
            isinstance(first, Leaf) and first.adapted and first.integer and same
        ) or (eqn.primitive.name == "div" and operands[0] is not first):
            return self._unknown(eqn, operands)
        for operand in operands:
            if operand is not first:
                self.lost(operand, "the scale of a quantised weight")
        return [first]

    def _add(self, eqn: Any, operands: list[Any]) -> list[Any]:
        products = [o for o in operands if isinstance(o, Product)]
        leaves = [o for o in operands if isinstance(o, Leaf) and not o.adapted]
        if len(products) == len(leaves) == 1:
            groups = bias_groups(products[0], leaves[0])
            if groups is not None:
                products[0].use.biases.append((leaves[0].index, groups))
                return [None]
        return self._unknown(eqn, operands)

    def _dot(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaves = [i for i in (0, 1) if getattr(operands[i], "adapted", False)]
        if len(leaves) != 1:
            return self._unknown(eqn, operands)
        side = leaves[0]
        leaf, other = operands[side], operands[1 - side]
        self.lost(other, "multiplied by a weight")
        contract, batch = eqn.params["dimension_numbers"]
        contracted, batched = list(contract[side]), list(batch[side])
        free = [
            axis
            for axis in range(len(leaf.view))
            if axis not in contracted and axis not in batched
        ]
        if not free or not contracted:
            return self._unknown(eqn, [leaf])
        x_free = _free(
            eqn.invars[1 - side].aval.ndim, contract[1 - side], batch[1 - side]
        )
        lengths = [eqn.invars[1 - side].aval.shape[axis] for axis in x_free]
        tokens = [_token(i, n) for i, n in enumerate(lengths)]
        weight_axes = [leaf.view[axis] for axis in free]
        sides = [weight_axes, tokens] if side == 0 else [tokens, weight_axes]
        view = (*(leaf.view[axis] for axis in batched), *sides[0], *sides[1])
        use = self._use(
            leaf,
            "dense",
            batched=tuple(leaf.view[axis] for axis in batched),
            d_in=group([leaf.view[axis] for axis in contracted]),
            d_out=group(weight_axes),
            rows=prod(lengths),
        )
        return [Product(use, view)]

    def _conv(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf = operands[1]
        self.lost(operands[0], "convolved")
        if not (isinstance(leaf, Leaf) and leaf.adapted):
            self.lost(leaf, "a convolution's kernel")
            return [None]
        groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
        if groups != (1, 1):
            raise GroupedConvolution(leaf.index, groups[0])
        spec = eqn.params["dimension_numbers"]
        out_axis, *in_axes = spec.rhs_spec
        window = tuple(eqn.invars[1].aval.shape[axis] for axis in in_axes[1:])
        out_shape = eqn.outvars[0].aval.shape
        view = [_token(i, n) for i, n in enumerate(out_shape)]
        channel = spec.out_spec[1]
        view[channel] = leaf.view[out_axis]
        use = self._use(
            leaf,
            "conv",
            d_in=group([leaf.view[axis] for axis in in_axes]),
            d_out=group([leaf.view[out_axis]]),
            rows=prod(n for i, n in enumerate(out_shape) if i != channel),
            spatial=window,
        )
        return [Product(use, tuple(view))]

    def _gather(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf = operands[0]
        if isinstance(operands[1], Symbol) or not isinstance(leaf, Leaf):
            return self._unknown(eqn, operands)
        if leading_index(eqn) and len(leaf.view) > 2:
            return self._index(eqn, operands)
        if not leaf.adapted or not row_lookup(eqn):
            return self._unknown(eqn, operands)
        out_shape = eqn.outvars[0].aval.shape
        view = [_token(i, n) for i, n in enumerate(out_shape)]
        offset = eqn.params["dimension_numbers"].offset_dims
        for axis, atoms in zip(offset, leaf.view[1:], strict=True):
            view[axis] = atoms
        use = self._use(
            leaf,
            "embedding",
            d_in=group(leaf.view[:1]),
            d_out=group(leaf.view[1:]),
            rows=prod(n for i, n in enumerate(out_shape) if i not in offset),
        )
        return [Product(use, tuple(view))]

    def _use(
        self, leaf: Leaf, kind: Kind, batched: tuple[Axis, ...] = (), **facts: Any
    ) -> Use:
        stack = [*(axis for axis, _ in leaf.dropped), *batched]
        stack.sort(
            key=lambda axis: (axis[0].axis, -axis[0].stride) if axis else (-1, 0)
        )
        use = Use(
            leaf=leaf.index,
            kind=kind,
            stack=tuple(stack),
            dropped=leaf.dropped,
            repeat=leaf.repeat,
            **facts,
        )
        self.found.uses.setdefault(leaf.index, []).append(use)
        return use


def _free(ndim: int, *taken: Sequence[int]) -> list[int]:
    return [axis for axis in range(ndim) if not any(axis in t for t in taken)]


def _token(index: int, size: int) -> Axis:
    return (Atom(TOKENS + index, 1, size),)
