"""Run the adapted model: put its weights in, and walk the rules on arrays."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import arrays, axes
from peftjax.core.affine import JOINTLY
from peftjax.core.axes import arrange, shape, whole
from peftjax.core.coded import decoded
from peftjax.core.fresh import fresh
from peftjax.core.jaxpr import rebound
from peftjax.core.lift import Rules
from peftjax.core.merge import merge_leaves, merge_used
from peftjax.core.site import Adapters, Given, Site
from peftjax.core.uses import Leaf, Merged, Product, Token, Trained, Weight


def run(
    closed: Any,
    sites: Sequence[Site],
    leaves: Sequence[Any],
    dynamic: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
    adapter_key: jax.Array | None,
    rounded: dict[str, str] | None = None,
    runner: Callable[..., Runner] | None = None,
) -> list[jax.Array]:
    """Evaluate a model's jaxpr on `[*leaves, *dynamic]` with adapters.

    In `rounded` is written, by path, what asks for a merged weight in a type narrower
    than float32. `runner` makes what applies the rules, a `Runner` by default.
    """
    values = arrays.replaced(sites, leaves, adapters, given)
    formulas = [site for site in sites if not site.method.replaces]
    slow = [site for site in formulas if not site.fast]

    def merged(site: Site, index: int, old: Any, delta: Any) -> Merged:
        return Merged(decoded(old), delta, site.path, index != site.index)

    values = merge_leaves(slow, values, adapters, given, merged)
    owners: dict[int, Site] = {}
    for site in formulas:
        if not site.fast:
            continue
        if site.takes_bias and site.bias_index is not None:
            owners[site.bias_index] = site
            bias = values[site.bias_index]
            values[site.bias_index] = Leaf(bias, site.bias_index, whole(bias.shape))
        values[site.index] = Weight(
            values[site.index],
            site.index,
            site.stored,
            site=site,
            given=arrays.of_site(site, adapters, given),
            key=site.key(adapter_key),
        )
    for site in sites:
        if site.method.replaces and site.index not in owners:
            values[site.index] = Trained(values[site.index])
    rounded = {} if rounded is None else rounded
    rules = (runner or Runner)(owners, rounded, adapter_key is not None)
    return rules.call(closed, values, dynamic)


def rehearse(
    closed: Any,
    sites: Sequence[Site],
    leaves: Sequence[Any],
    dynamic: Sequence[Any],
    route: Callable[..., Mapping[str, Given]],
) -> dict[str, str]:
    """Run on shapes alone, so that a bad formula fails early.

    `route(leaves, adapters)` are the gates that other modules give, see `routes`.
    Return, by path, what asks for a merged weight in a type narrower than float32.
    """
    rounded: dict[str, str] = {}

    def execute(key: jax.Array, leaves: Any, dynamic: Any) -> Any:
        adapters = fresh(sites, leaves, key)
        given = route(leaves, adapters)
        return run(closed, sites, leaves, dynamic, adapters, given, None, rounded)

    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(execute, key, list(leaves), dynamic)
    return rounded


class Runner(Rules):
    """The rules on arrays: a use is its formula, a loop is a loop."""

    def __init__(
        self, owners: Mapping[int, Site], rounded: dict[str, str], random: bool
    ) -> None:
        """Run.

        Args:
            owners: the sites by the index of their bias.
            rounded: see `run`.
            random: there is a key for dropout.
        """
        super().__init__()
        self.owners, self.rounded, self.random = owners, rounded, random
        self.rounds: list[tuple[Token, Any]] = []
        self.counts: dict[str, int] = {}

    def call(
        self, closed: Any, leaves: Sequence[Any], dynamic: Sequence[Any]
    ) -> list[Any]:
        """Evaluate a whole model."""
        results = self.walk(closed, [*leaves, *dynamic])
        return self.end(results, "returned by the model")

    def used(self, product: Product) -> Any:
        use, site = product.use, product.weight.site
        _, d_in, d_out = site.atoms
        straight = (use.d_in, use.d_out) == (d_in, d_out)
        swapped = (use.d_in, use.d_out) == (d_out, d_in) and use.kind == "dense"
        if use.stack != site.atoms[0] or not (straight or swapped):
            return None
        # transposed, only the linear part counts
        if site.takes_bias and straight:
            return product
        # in 8 bits it waits for the model's own cast
        return product if product.asked.out_dtype.itemsize == 1 else self._of(product)

    def added(self, product: Product, leaf: Leaf, groups: Any) -> list[Any] | None:
        weight, site = product.weight, product.weight.site
        if leaf.index != site.bias_index or groups != site.bias_groups:
            return None
        here = [
            g
            for g, axis in zip(site.bias_groups, site.atoms[0])
            if axis in weight.stack
        ]
        # a leaf that was broadcast repeats itself along the axes that hold no atoms
        bias = lax.slice(leaf.value, (0,) * leaf.value.ndim, shape(leaf.view))
        bias = arrange(bias, leaf.view, [*here, site.bias_groups[-1]])
        return [self._of(product, bias)]

    def ended(self, symbol: Any, why: str) -> Any:
        if isinstance(symbol, Weight):
            return merge_used(symbol, why)
        if isinstance(symbol, Trained):
            return symbol.value
        if isinstance(symbol, Merged):
            if symbol.value.dtype.itemsize < 4 and not symbol.is_bias:
                self.rounded.setdefault(symbol.path, why)
            return symbol.sum.astype(symbol.value.dtype)
        is_product = isinstance(symbol, Product)
        site = symbol.weight.site if is_product else self.owners[symbol.index]
        if is_product and not site.takes_bias:
            return self._of(symbol)
        raise ValueError(
            f"{site.path}: this call does not add the bias {site.bias} as the planned "
            f"one did ({why}); plan it with example arguments of this kind"
        )

    def has_members(self, leaf: Leaf) -> bool:
        return not isinstance(leaf, Weight) or leaf.view[0] in leaf.stack

    def scan(self, token: Token, step: Any, carry: Any, xs: Any, **options: Any) -> Any:
        if not self.random:
            return lax.scan(step, carry, xs, **options)

        def counted(carry: Any, sliced: tuple[Any, Any]) -> Any:
            with self._round(token, sliced[0]):
                return step(carry, sliced[1])

        rounds = jnp.arange(options["length"])
        return lax.scan(counted, carry, (rounds, xs), **options)

    def while_loop(self, cond: Any, body: Any, carry: Any) -> Any:
        if not self.random:
            return lax.while_loop(cond, body, carry)

        def counted(function: Any, state: tuple[Any, Any]) -> Any:
            with self._round(("while", None), state[0]):
                return function(state[1])

        step = lambda state: (state[0] + 1, counted(body, state))  # noqa: E731
        return lax.while_loop(partial(counted, cond), step, (jnp.int32(0), carry))[1]

    @contextmanager
    def _round(self, token: Token, count: Any) -> Generator[None]:
        self.rounds.append((token, count))
        yield
        self.rounds.pop()

    def _of(self, product: Product, bias: Any = None) -> Any:
        weight = product.weight
        count = self.counts.get(weight.site.path, 0)
        self.counts[weight.site.path] = count + 1
        if weight.key is not None:
            # iterations that share a weight do not share its dropout
            own = [token for _, token in weight.dropped]
            shared = [n for token, n in self.rounds if token not in own]
            for number in (count, *shared):
                weight = weight.folded(number)
        return product.compute(bias, weight.key, product.asked)

    def _unknown(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        name, first = eqn.primitive.name, operands[0]
        if isinstance(first, Trained) and name in axes.MOVES and len(operands) == 1:
            stopped = name == "stop_gradient"
            value = first.value
            return [first if stopped else Trained(self.evaluate(eqn, [value])[0])]
        operands = self.end(operands, f"used by `{eqn.primitive.name}`", keep=Merged)
        places = [i for i, o in enumerate(operands) if isinstance(o, Merged)]
        found = _through(eqn, operands, places) if places else None
        return super()._unknown(eqn, operands) if found is None else found


_SUMS = ("add", "add_any", "sub")
_PRODUCTS = ("conv_general_dilated", "dot_general")
_TYPES = ("convert_element_type", "reduce_precision", "stop_gradient")
_SMOOTH = (
    "abs add cbrt clamp cos div erf exp exp2 expm1 integer_pow log log1p logistic max "
    "min mul neg pow reduce_max reduce_min reduce_sum rsqrt sin sqrt square sub tanh"
).split()


def _through(eqn: Any, operands: list[Any], places: list[int]) -> list[Any] | None:
    """Apply an operation to both parts of merged weights, or return None."""
    name, first, out = eqn.primitive.name, operands[places[0]], eqn.outvars[0].aval
    curved = any(operands[i].curved for i in places)
    wide = partial(_cast, first.delta.dtype)
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return None
    if first.is_bias and name in _SUMS:
        return [_each(eqn, operands, lambda m: m.sum, wide)[0].astype(out.dtype)]
    if name in _PRODUCTS and len(places) == 1:
        return [_product(eqn, operands, first, eqn.invars[1 - places[0]].aval.dtype)]
    linear = range(len(operands))[JOINTLY.get(name, slice(0))]
    if name == "mul" and len(places) == 1:
        linear = places
    if name in _TYPES:
        stops = curved and name == "stop_gradient"
        deltas = [lax.stop_gradient(first.delta) if stops else first.delta]
    elif set(places) <= set(linear):
        # of a sum, the others are in the value alone
        zero = partial(jnp.zeros_like, dtype=first.delta.dtype)
        alone = set(linear) - set(places)
        parts = [zero(o) if i in alone else o for i, o in enumerate(operands)]
        deltas = _each(eqn, parts, lambda m: m.delta, wide)
    elif name in _SMOOTH and out.dtype.itemsize < 4:
        before = _each(eqn, operands, lambda m: wide(m.value), wide)
        after, curved = _each(eqn, operands, lambda m: m.sum, wide), True
        deltas = [b - a for a, b in zip(before, after)]
    else:
        return None
    parts = zip(_each(eqn, operands, lambda m: m.value), deltas, strict=True)
    return [replace(first, value=v, delta=d, curved=curved) for v, d in parts]


def _product(eqn: Any, operands: list[Any], merged: Merged, other: Any) -> Any:
    """Return a product with a merged weight: in a narrow type, one with each part."""
    dtype, out = merged.value.dtype, eqn.outvars[0].aval.dtype
    if dtype.itemsize >= 4:
        return _each(eqn, operands, lambda m: m.sum.astype(dtype))[0]
    fitting = dtype, other, out, merged.delta.dtype
    wide = partial(_cast, next(kind for kind in fitting if kind.itemsize > 1))
    (y,) = _each(eqn, operands, lambda m: m.value)
    (change,) = _each(eqn, operands, lambda m: wide(m.delta), wide)
    return y + change.astype(y.dtype)


def _each(
    eqn: Any,
    operands: Sequence[Any],
    part: Callable[[Merged], Any],
    other: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """Evaluate an equation on a part of its merged weights."""
    values = [part(o) if isinstance(o, Merged) else other(o) for o in operands]
    return rebound(eqn, values)


def _cast(dtype: Any, value: Any) -> Any:
    """Cast what is floating."""
    floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
    return jnp.asarray(value, dtype) if floating else value
