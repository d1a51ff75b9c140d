"""Rule table 1, `lift`: the model, with adapted weights as symbols.

`Rules` says once what a model may do with a weight. `run.Runner` applies the rules to
arrays; `plan.Planner` applies them to shapes, to learn how each weight is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import axes, jaxpr
from peftjax.core.axes import Axis, shape, whole
from peftjax.core.formula import Asked, ConvInput, Lookup, on_stack
from peftjax.core.jaxpr import Loop, Symbol
from peftjax.core.method import Kind, Rows
from peftjax.core.uses import Leaf, Product, Use, Weight, bias_groups


class Rules:
    """What becomes of a weight, a leaf or a product under each primitive.

    A subclass says what a use, an added bias and the end of a symbol amount to, and may
    build control flow and plain equations otherwise.
    """

    scan: Callable[..., Any] = staticmethod(lax.scan)
    while_loop: Callable[..., Any] = staticmethod(lax.while_loop)
    switch: Callable[..., Any] = staticmethod(lax.switch)
    checkpoint: Callable[..., Any] = staticmethod(jax.checkpoint)
    evaluate: Callable[[Any, Sequence[Any]], list[Any]] = staticmethod(jaxpr.evaluate)

    def ended(self, symbol: Any, why: str) -> Any:
        """Return the array that a symbol stands for, where no rule knows more."""
        raise NotImplementedError

    def used(self, product: Product) -> Any:
        """Return a use of a weight, or its array; None where it is not recognised."""
        raise NotImplementedError

    def added(self, product: Product, leaf: Leaf, groups: Any) -> list[Any] | None:
        """Return `[sum]` of a product and its bias, or None where it is none."""
        raise NotImplementedError

    def has_members(self, leaf: Leaf) -> bool:
        """Whether the first axis of a leaf is a stacked one."""
        raise NotImplementedError

    def __init__(self) -> None:
        self.table = {
            **dict.fromkeys(axes.MOVES, self._move),
            **dict.fromkeys(jaxpr.JIT, self._inline),
            **dict.fromkeys(jaxpr.REMAT, self._remat),
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
        return [symbol.moved(lambda v: self.evaluate(eqn, [v, *others])[0], view)]

    def _dequantise(self, eqn: Any, operands: list[Any]) -> list[Any]:
        place = 0 if isinstance(operands[0], Weight) else 1
        weight = operands[place]
        if (
            not (isinstance(weight, Weight) and weight.site.quantised)
            or eqn.outvars[0].aval.shape != shape(weight.view)
            or (place and eqn.primitive.name == "div")
        ):
            return self._unknown(eqn, operands)
        values = self.end(operands, "the scale of a quantised weight", keep=Weight)
        values[place] = weight.value
        value = self.evaluate(eqn, values)[0]
        return [weight.moved(lambda _: value, weight.view)]

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
        value = self.evaluate(eqn, [leaf.value, *start])[0]
        kept = ((),) if eqn.outvars[0].aval.ndim == len(leaf.view) else ()
        return [member.moved(lambda _: value, (*kept, *member.view))]

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
        return inside(*self.end(operands, "enters a remat", keep=Leaf))

    def _scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        # the equation lives as long as the walk, so that its id stands for it
        token = ("scan", id(eqn))
        loop = jaxpr.scan_loop(eqn, self.end(operands, "enters a scan", keep=Leaf))
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
        carried, ys = self.scan(step, carry, xs, **loop.options)
        return [*carried, *ys]

    def _while(self, eqn: Any, operands: list[Any]) -> list[Any]:
        operands = self.end(operands, "enters a loop", keep=Leaf)
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

        index, *operands = self.end(operands, "enters a branch", keep=Leaf)
        branches = [partial(inside, branch) for branch in eqn.params["branches"]]
        return self.switch(index, branches, *operands)

    # --- uses

    def _add(self, eqn: Any, operands: list[Any]) -> list[Any]:
        product, leaf = operands if isinstance(operands[0], Product) else operands[::-1]
        if isinstance(product, Product) and type(leaf) is Leaf:
            groups = bias_groups(product, leaf)
            results = None if groups is None else self.added(product, leaf, groups)
            if results is not None:
                return results
        return self._unknown(eqn, operands)

    def _product(
        self, eqn: Any, operands: Sequence[Any], product: Product
    ) -> list[Any]:
        result = self.used(product)
        return self._unknown(eqn, operands) if result is None else [result]

    def _dot(self, eqn: Any, operands: list[Any]) -> list[Any]:
        sides = [i for i in (0, 1) if isinstance(operands[i], Weight)]
        if len(sides) != 1:
            return self._unknown(eqn, operands)
        mine, theirs = sides[0], 1 - sides[0]
        operands = self.end(operands, "multiplied by a weight", keep=Weight)
        weight, x = operands[mine], operands[theirs]
        contract, batch = eqn.params["dimension_numbers"]
        contracted, batched = (
            [weight.view[axis] for axis in place[mine]] for place in (contract, batch)
        )
        taken = {*contract[mine], *batch[mine]}
        free = [axis for i, axis in enumerate(weight.view) if i not in taken]
        if not free or not contracted:
            return self._unknown(eqn, operands)
        # x's own axes get the atoms of the weight's axes that they meet
        met = dict(zip((*contract[theirs], *batch[theirs]), contracted + batched))
        own = whole(eqn.invars[theirs].aval.shape, axes.TOKENS)
        x_view = tuple(met.get(i, axis) for i, axis in enumerate(own))
        tokens = [axis for i, axis in enumerate(own) if i not in met]
        view = (*batched, *(free + tokens if mine == 0 else tokens + free))
        source, target = axes.group(contracted), axes.group(free)

        def compute(bias: Any, key: Any) -> Any:
            groups, swapped = [*weight.stack, *tokens], source != weight.site.atoms[1]
            rows = axes.arrange(x, x_view, [*groups, source])
            asked = Asked.by(eqn)
            y = on_stack(weight, rows, len(tokens), asked, bias, key, swapped)
            return axes.restore(y, view, [*groups, target])

        stack, rows = _stack(weight, batched), prod(shape(tuple(tokens)))
        times = prod(shape(tuple(batched)))
        use = Use("dense", stack, source, target, rows, times=times)
        return self._product(eqn, operands, Product(weight, use, view, compute))

    def _conv(self, eqn: Any, operands: list[Any]) -> list[Any]:
        if isinstance(operands[0], Weight) or not isinstance(operands[1], Weight):
            return self._unknown(eqn, operands)
        x, weight = operands = self.end(operands, "convolved", keep=Weight)
        groups = eqn.params["feature_group_count"]
        if (groups, eqn.params["batch_group_count"]) != (1, 1):
            raise ValueError(
                f"{weight.site.path}: a convolution with {groups} groups cannot carry "
                f"{weight.site.method}; expected groups = 1. Leave it out of the rules "
                "or adapt it with Full()"
            )
        spec = eqn.params["dimension_numbers"]
        out_axis, *in_axes = spec.rhs_spec
        channels, *spatial = in_axes
        # rows run over (kh, kw, c_in), however the kernel is stored
        d_in = axes.group([weight.view[i] for i in (*spatial, channels)], True)
        window = tuple(eqn.invars[1].aval.shape[axis] for axis in spatial)
        out = weight.view[out_axis]
        rows = partial(ConvInput, x, eqn, weight)
        places = [spec.out_spec[1]]
        return self._rows(eqn, operands, "conv", rows, d_in, places, [out], window)

    def _gather(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf, ids = operands
        if isinstance(ids, Symbol) or not isinstance(leaf, Leaf):
            return self._unknown(eqn, operands)
        # one id looks up a row of a table, or takes a layer off a stack of matrices
        if axes.leading_index(eqn) and len(leaf.view) > 2:
            return self._index(eqn, operands)
        if not isinstance(leaf, Weight) or not axes.row_lookup(eqn):
            return self._unknown(eqn, operands)
        d_in, rows = axes.group(leaf.view[:1]), partial(Lookup, ids, eqn, leaf)
        places, out = eqn.params["dimension_numbers"].offset_dims, leaf.view[1:]
        return self._rows(eqn, operands, "embedding", rows, d_in, places, out)

    def _rows(
        self,
        eqn: Any,
        operands: Sequence[Any],
        kind: Kind,
        x: Callable[[], Rows],
        d_in: Axis,
        places: Sequence[int],
        out: Sequence[Axis],
        window: tuple[int, ...] = (),
    ) -> list[Any]:
        """A use whose x stands for rows; `out` are the weight's axes of the output."""
        (weight,) = (o for o in operands if isinstance(o, Weight))
        view = list(whole(eqn.outvars[0].aval.shape, axes.TOKENS))
        for place, axis in zip(places, out, strict=True):
            view[place] = axis
        batch = [shape((axis,))[0] for i, axis in enumerate(view) if i not in places]

        def compute(bias: Any, key: Any) -> Any:
            y = on_stack(weight, x(), 0, Asked.by(eqn), bias, key)
            y = y.reshape(*batch, *shape(tuple(out)))
            return jnp.moveaxis(y, range(len(batch), y.ndim), places)

        use = Use(kind, _stack(weight), d_in, axes.group(out), prod(batch), window)
        product = Product(weight, use, tuple(view), compute)
        return self._product(eqn, operands, product)


def _stack(weight: Weight, batched: Sequence[Axis] = ()) -> tuple[Axis, ...]:
    def order(axis: Axis) -> tuple[int, int]:
        return (axis[0].axis, -axis[0].stride) if axis else (-1, 0)

    return tuple(sorted([*(axis for axis, _ in weight.dropped), *batched], key=order))
