"""Rule table 1, `lift`: the model, with adapted weights as symbols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.layout import LAYOUT, leading_index
from peftjax.core.method import Rows
from peftjax.core.rows import ConvInput, Lookup
from peftjax.core.site import Precision, Site, apply_formula
from peftjax.core.views import TOKENS, Axis, arrange, group, restore, shape, whole
from peftjax.core.walker import (
    JIT,
    REMAT,
    evaluate,
    remat,
    scan_parts,
    walk,
    while_parts,
)
from peftjax.core.weight import Weight


def lift(jaxpr: Any, values: Sequence[Any]) -> list[jax.Array]:
    """Evaluate a model some of whose inputs are `Weight`s."""
    return _Lift().walk(jaxpr, values)


class _Lift:
    """One evaluation: the rules, and how often each site was used so far."""

    def __init__(self) -> None:
        self.uses: dict[str, int] = {}
        self.rules = {
            **dict.fromkeys(LAYOUT, self._layout),
            **dict.fromkeys(JIT, self._inline),
            **dict.fromkeys(REMAT, self._remat),
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
        return walk(jaxpr, values, self.rules, self._unknown)

    def _unknown(self, eqn: Any, operands: list[Any]) -> list[Any]:
        raise AssertionError(
            f"`{eqn.primitive.name}` received an adapted weight; discovery should have "
            "merged it"
        )

    def _layout(self, eqn: Any, operands: list[Any]) -> list[Any]:
        (weight,) = operands
        view = LAYOUT[eqn.primitive.name](eqn, weight.view)
        value = evaluate(eqn, [weight.value])[0]
        return [replace(weight, value=value, view=view)]

    def _dequantise(self, eqn: Any, operands: list[Any]) -> list[Any]:
        weight = next(o for o in operands if isinstance(o, Weight))
        values = [o.value if o is weight else o for o in operands]
        return [replace(weight, value=evaluate(eqn, values)[0])]

    def _index(self, eqn: Any, operands: list[Any]) -> list[Any]:
        weight, *start = operands
        match eqn.primitive.name:
            case "slice":
                index = eqn.params["start_indices"][0]
            case "dynamic_slice":
                index = start[0]
            case _:
                index = jnp.reshape(start[0], ())
        place = weight.place(weight.view[0])
        member = weight.map(
            lambda a: lax.dynamic_index_in_dim(a, index, place, keepdims=False)
        ).member()
        value = evaluate(eqn, [weight.value, *start])[0]
        kept = ((),) if value.ndim == len(weight.view) else ()
        return [replace(member, value=value, view=(*kept, *member.view))]

    def _inline(self, eqn: Any, operands: list[Any]) -> list[Any]:
        name = "jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"
        return self.walk(eqn.params[name], operands)

    def _remat(self, eqn: Any, operands: list[Any]) -> list[Any]:
        return remat(eqn, lambda *values: self.walk(eqn.params["jaxpr"], values))(
            *operands
        )

    def _scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        parts = scan_parts(eqn)
        consts, carry, stacked = parts.split(operands)
        xs = [v.leading() if isinstance(v, Weight) else v for v in stacked]

        def step(carried: list[Any], sliced: list[Any]) -> Any:
            members = [v.member() if isinstance(v, Weight) else v for v in sliced]
            outputs = self.walk(parts.body, [*consts, *carried, *members])
            return outputs[: len(carried)], outputs[len(carried) :]

        carried, ys = lax.scan(step, carry, xs, **parts.options)
        return [*carried, *ys]

    def _while(self, eqn: Any, operands: list[Any]) -> list[Any]:
        parts = while_parts(eqn, operands)

        def cond(carry: list[Any]) -> Any:
            return self.walk(parts.cond, [*parts.cond_consts, *carry])[0]

        def body(carry: list[Any]) -> list[Any]:
            return self.walk(parts.body, [*parts.body_consts, *carry])

        return lax.while_loop(cond, body, parts.carry)

    def _cond(self, eqn: Any, operands: list[Any]) -> list[Any]:
        branches = [
            lambda *values, branch=branch: self.walk(branch, values)
            for branch in eqn.params["branches"]
        ]
        return lax.switch(operands[0], branches, *operands[1:])

    def _key(self, weight: Weight) -> jax.Array | None:
        if weight.key is None:
            return None
        count = self.uses.get(weight.site.path, 0)
        self.uses[weight.site.path] = count + 1
        fold = partial(jax.random.fold_in, data=count)
        for _ in weight.stack:
            fold = jax.vmap(fold)
        return fold(weight.key)

    def _dot(self, eqn: Any, operands: list[Any]) -> list[Any]:
        side = next(i for i in (0, 1) if isinstance(operands[i], Weight))
        weight, x = operands[side], operands[1 - side]
        contract, batch = eqn.params["dimension_numbers"]
        contracted, batched = contract[side], batch[side]
        # x's own axes get the atoms of the weight's axes that they meet
        x_view: list[Axis] = [
            whole((n,), TOKENS + axis)[0] for axis, n in enumerate(x.shape)
        ]
        for mine, theirs in zip(contract[1 - side], contracted, strict=True):
            x_view[mine] = weight.view[theirs]
        for mine, theirs in zip(batch[1 - side], batched, strict=True):
            x_view[mine] = weight.view[theirs]
        used = {*contract[1 - side], *batch[1 - side]}
        tokens = [x_view[axis] for axis in range(x.ndim) if axis not in used]
        free = [
            axis
            for i, axis in enumerate(weight.view)
            if i not in contracted and i not in batched
        ]
        _, d_in, d_out = weight.site.atoms
        met = group([weight.view[axis] for axis in contracted])
        source, target = (d_in, d_out) if met == d_in else (d_out, d_in)

        xs = arrange(x, tuple(x_view), [*weight.stack, *tokens, source])
        y = self._formula(
            weight, xs, len(tokens), Precision.of(eqn), transposed=met != d_in
        )
        out_batch = [weight.view[axis] for axis in batched]
        sides = [free, tokens] if side == 0 else [tokens, free]
        out_view = (*out_batch, *sides[0], *sides[1])
        return [restore(y, out_view, [*weight.stack, *tokens, target])]

    def _formula(
        self,
        weight: Weight,
        x: Any,
        tokens: int,
        precision: Precision,
        transposed: bool = False,
    ) -> jax.Array:
        """Evaluate the site's formula for all stacked layers at once.

        `x` is `[*stack, *tokens, in]` with that many token axes, or `Rows`.
        """
        site = weight.site
        groups = [*weight.stack, *site.atoms[1:]]
        kernel = arrange(weight.value, weight.view, groups)
        lengths = ()
        if not isinstance(x, Rows):
            lengths = x.shape[len(weight.stack) : len(weight.stack) + tokens]
            if _may_flatten(site, x, len(weight.stack), tokens):
                x = x.reshape(*x.shape[: len(weight.stack)], -1, x.shape[-1])

        def layer(p: Any, x: Any, kernel: Any, bias: Any, key: Any) -> jax.Array:
            if transposed:
                return _transpose(site, p, x, kernel, precision)
            return apply_formula(site, p, x, kernel, bias, key, precision)

        arrays = weight.params, x, kernel, weight.bias, self._key(weight)
        for _ in weight.stack:
            layer = jax.vmap(layer)
        y = layer(*arrays)
        if isinstance(x, Rows):
            return y
        return y.reshape(*y.shape[: len(weight.stack)], *lengths, y.shape[-1])

    def _conv(self, eqn: Any, operands: list[Any]) -> list[Any]:
        x, weight = operands
        rows = ConvInput(x, eqn, weight)
        y = self._formula(weight, rows, 0, Precision.of(eqn))
        channel = eqn.params["dimension_numbers"].out_spec[1]
        out_shape = list(eqn.outvars[0].aval.shape)
        features = out_shape.pop(channel)
        return [jnp.moveaxis(y.reshape(*out_shape, features), -1, channel)]

    def _gather(self, eqn: Any, operands: list[Any]) -> list[Any]:
        weight, ids = operands
        if leading_index(eqn) and len(weight.view) > 2:
            return self._index(eqn, operands)
        y = self._formula(weight, Lookup(ids, eqn, weight), 0, Precision.of(eqn))
        out_shape = eqn.outvars[0].aval.shape
        offset = eqn.params["dimension_numbers"].offset_dims
        batch = [n for axis, n in enumerate(out_shape) if axis not in offset]
        y = y.reshape(*batch, *shape(weight.view[1:]))
        last = range(len(batch), len(out_shape))
        return [jnp.moveaxis(y, tuple(last), tuple(offset))]


def _may_flatten(site: Site, x: jax.Array, stack: int, tokens: int) -> bool:
    """Flatten unless a second leading axis is sharded over an explicit mesh."""
    if tokens == 1 or not site.flatten:
        return False
    spec = getattr(getattr(jax.typeof(x), "sharding", None), "spec", ())
    return all(part is None for part in spec[stack + 1 : stack + tokens])


def _transpose(
    site: Site, p: Any, h: jax.Array, kernel: jax.Array, precision: Precision
) -> jax.Array:
    """Return `h K'^T`, `[..., in]`: the transpose of the formula's linear part at h."""
    x = jnp.zeros((*h.shape[:-1], site.d_in), kernel.dtype)
    wide = Precision(precision.precision, None, kernel.dtype)

    def forward(x: jax.Array) -> jax.Array:
        return apply_formula(site, p, x, kernel, None, None, wide)

    _, pull = jax.vjp(forward, x)
    return pull(h.astype(kernel.dtype))[0].astype(precision.out_dtype)
