"""Rule table 1, `lift`: the model, with adapted weights as symbols.

`Rules` says once what a model may do with a weight. `run.Runner` applies the rules to
arrays; `plan.Planner` applies them to shapes, to learn how each weight is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp

from peftjax.core import axes, jaxpr
from peftjax.core.axes import Axis, shape, whole
from peftjax.core.formula import ConvInput, Lookup, on_stack
from peftjax.core.jaxpr import Symbol
from peftjax.core.method import Kind, Rows
from peftjax.core.moves import Moves
from peftjax.core.uses import Asked, Leaf, Product, Use, Weight, bias_groups


class Rules(Moves):
    """What becomes of a weight, a leaf or a product under each primitive.

    A subclass says what a use and an added bias amount to.
    """

    def used(self, product: Product) -> Any:
        """Return a use of a weight, or its array; None where it is not recognised."""
        raise NotImplementedError

    def added(self, product: Product, leaf: Leaf, groups: Any) -> list[Any] | None:
        """Return `[sum]` of a product and its bias, or None where it is none."""
        raise NotImplementedError

    def consumed(self, weight: Weight, function: Callable[[Weight], Any]) -> Any:
        """Return what a product makes of a weight."""
        return function(weight)

    def __init__(self) -> None:
        self.table = {
            **dict.fromkeys(axes.MOVES, self._move),
            **dict.fromkeys(jaxpr.JIT, self._inline),
            **dict.fromkeys(jaxpr.REMAT, self._remat),
            **dict.fromkeys(("add", "add_any"), self._add),
            **dict.fromkeys(("mul", "div", "sub"), self._scale),
            **dict.fromkeys(("slice", "dynamic_slice"), self._index),
            "cond": self._cond,
            "conv_general_dilated": self._conv,
            "dot_general": self._dot,
            "gather": self._gather,
            "scan": self._scan,
            "while": self._while,
        }

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
        weight, use, why = product.weight, product.use, ""
        dtype = eqn.invars[[o is weight for o in operands].index(True)].aval.dtype
        if weight.site.quantised and not weight.scaled:
            why = f"used by `{eqn.primitive.name}` before it is scaled"
        elif weight.varies is not None:
            use.scaled, free = True, [use.d_out, *use.stack]
            if any(axes.inside(atom, free) is None for atom in weight.varies):
                why = "scaled along its input"
            elif weight.site.method.uses_bias:
                why = "scaled, and the formula takes the bias"
            elif dtype.itemsize < 4 and not weight.exact:
                why = f"scaled and rounded to {dtype}"
        result = None if why else self.used(product)
        if result is None:
            why = why or f"used by `{eqn.primitive.name}`"
            return self.evaluate(eqn, self.end(operands, why))
        return [result]

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

        def compute(bias: Any, key: Any, asked: Asked) -> Any:
            groups, swapped = [*weight.stack, *tokens], source != weight.site.atoms[1]
            rows = axes.arrange(x, x_view, [*groups, source])
            y = self.consumed(
                weight,
                lambda taken: on_stack(
                    taken, rows, len(tokens), asked, bias, key, swapped
                ),
            )
            return axes.restore(y, view, [*groups, target])

        stack, rows = _stack(weight, batched), prod(shape(tuple(tokens)))
        times = prod(shape(tuple(batched)))
        use = Use("dense", stack, source, target, rows, times=times)
        product = Product(weight, use, view, Asked.by(eqn), compute)
        return self._product(eqn, operands, product)

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

        def compute(bias: Any, key: Any, asked: Asked) -> Any:
            y = self.consumed(
                weight, lambda taken: on_stack(taken, x(), 0, asked, bias, key)
            )
            y = y.reshape(*batch, *shape(tuple(out)))
            return jnp.moveaxis(y, range(len(batch), y.ndim), places)

        use = Use(kind, _stack(weight), d_in, axes.group(out), prod(batch), window)
        product = Product(weight, use, tuple(view), Asked.by(eqn), compute)
        return self._product(eqn, operands, product)


def _stack(weight: Weight, batched: Sequence[Axis] = ()) -> tuple[Axis, ...]:
    def order(axis: Axis) -> tuple[int, int]:
        return (axis[0].axis, -axis[0].stride) if axis else (-1, 0)

    return tuple(sorted([*(axis for axis, _ in weight.dropped), *batched], key=order))
