"""An adapted layer: its facts, and what is done around every formula alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.gates import TOTAL, observe
from peftjax.core.method import Kind, Layer, Method, Rows
from peftjax.core.views import Axis, View, whole
from peftjax.core.walker import evaluate, walk

Adapters = dict[str, dict[str, jax.Array]]

# The name beside a site's own arrays that says whether a row of a bank is the base.
BASE = "base row"


@dataclass(frozen=True)
class Site:
    """The static facts of one adapted leaf.

    Attributes:
        path: of the leaf, relative to `params`.
        index: its position among the model's leaves.
        method: the adapter.
        kind: dense, conv, embedding, or other (a leaf that `Full` replaces).
        shape: of the stored leaf.
        dtype: of the stored leaf, by name.
        stack: sizes of the stacked axes (scanned layers, experts); adapter arrays carry
            them in front.
        d_in, d_out: the `[in, out]` view of one layer; 0 for kind other.
        trainable: number of trainable parameters, all stacked layers together.
        flops: FLOPs that the adapter adds to a forward pass, per example.
        fast: no merged weight is formed.
        reason: why not.
        bias: path of the layer's bias, where it is paired with this weight.
        bias_groups: the stored axes of that bias in the order `[*stack, out]`.
        notes: what a user should know.
        atoms: stacked, in and out axes in terms of the stored ones.
        spatial: the window of a convolution.
        quantised: the weight is stored in integers, scaled by the model.
        flatten: activations are flattened to `[tokens, in]`.
        arrays: name and shape of each adapter array, the stacked axes left out.
    """

    path: str
    index: int
    method: Method
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    stack: tuple[int, ...] = ()
    d_in: int = 0
    d_out: int = 0
    trainable: int = 0
    flops: int = 0
    fast: bool = True
    reason: str = ""
    bias: str | None = None
    bias_index: int | None = None
    bias_groups: tuple[Axis, ...] = ()
    notes: tuple[str, ...] = ()
    atoms: tuple[tuple[Axis, ...], Axis, Axis] = ((), (), ())
    spatial: tuple[int, ...] = ()
    quantised: bool = False
    flatten: bool = True
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def groups(self) -> tuple[Axis, ...]:
        """The canonical axes `[*stack, in, out]`."""
        stack, d_in, d_out = self.atoms
        return (*stack, d_in, d_out)

    @property
    def stored(self) -> View:
        return whole(self.shape)

    def layer(self, kernel: jax.Array | None = None) -> Layer:
        return Layer(self.d_in, self.d_out, self.kind, kernel, self.path, self.spatial)

    def stacked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one layer over the stacked layers."""
        for _ in self.stack:
            function = jax.vmap(function)
        return function


@dataclass(frozen=True)
class Precision:
    """What the model asked of its own product."""

    precision: Any
    preferred: Any
    out_dtype: Any

    @classmethod
    def of(cls, eqn: Any) -> Precision:
        params = eqn.params
        return cls(
            params.get("precision"),
            params.get("preferred_element_type"),
            eqn.outvars[0].aval.dtype,
        )


def cast(method: Method, p: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
    """Cast floating adapter arrays to the compute dtype, except the `float32` names."""
    return {
        name: value.astype(dtype)
        if jnp.issubdtype(value.dtype, jnp.floating)
        and name not in (TOTAL, *method.float32)
        else value
        for name, value in p.items()
    }


def apply_formula(
    site: Site,
    p: dict[str, jax.Array],
    x: Any,
    kernel: jax.Array,
    bias: jax.Array | None,
    key: jax.Array | None,
    precision: Precision,
) -> jax.Array:
    """Evaluate a site's formula on one layer as the model computes it.

    Args:
        site: the adapted layer.
        p: adapter arrays of this layer.
        x: `[..., in]`, or `Rows`.
        kernel: `[in, out]` in the compute dtype.
        bias: `[out]`, or None where the model adds it itself.
        key: for dropout.
        precision: the model's own, given to every dot of the formula.
    """
    p = cast(site.method, p, kernel.dtype)
    b = 0.0 if bias is None else bias.astype(kernel.dtype)

    def formula(x: Any, p: Any, kernel: Any) -> Any:
        y = site.method.formula(p, x, kernel, b, key=key)
        if BASE in p:
            y = jnp.where(p[BASE], x @ kernel + b, y)
        return observe(y, p[TOTAL], site.method.gates(p, x)) if TOTAL in p else y

    with jax.default_matmul_precision(_name(precision.precision)):
        if isinstance(x, Rows):
            y = _on_rows(site, formula, x, p, kernel)
        elif _wider(precision.preferred, x.dtype, kernel.dtype):
            y = _in_wider_type(formula, precision.preferred, x, p, kernel)
        else:
            y = formula(x, p, kernel)
    return y.astype(precision.out_dtype)


def _name(precision: Any) -> Any:
    if isinstance(precision, tuple):
        precision = max(precision, key=lambda item: item.value)
    if isinstance(precision, lax.Precision):
        return precision.name.lower()
    return (
        precision if precision is None else str(getattr(precision, "name", precision))
    )


def _on_rows(site: Site, formula: Any, x: Rows, p: Any, kernel: Any) -> jax.Array:
    try:
        return formula(x, p, kernel)
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"{site.path}: on a {site.kind} layer the formula of {site.method} may use "
            f"x only as `x @ M`; it failed with: {error}. Write it so, or leave "
            f"{site.kind!r} out of the method's `kinds`"
        ) from error


def _wider(preferred: Any, *dtypes: Any) -> bool:
    return (
        preferred is not None
        and jnp.result_type(*dtypes) != preferred
        and jnp.issubdtype(preferred, jnp.floating)
    )


_ELEMENTWISE = (
    "add sub mul div neg select_n reshape transpose broadcast_in_dim squeeze "
    "expand_dims reduce_sum"
).split()


def _in_wider_type(formula: Any, preferred: Any, *inputs: Any) -> jax.Array:
    """Evaluate a formula with its dots, and so what follows them, in a wider type."""
    jaxpr = jax.make_jaxpr(formula)(*inputs)

    def plain(eqn: Any, values: list[Any]) -> list[Any]:
        def floating(value: Any) -> bool:
            return jnp.issubdtype(jnp.result_type(value), jnp.floating)

        if eqn.primitive.name in ("dot_general", *_ELEMENTWISE):
            wide = jnp.result_type(*(v for v in values if floating(v)))
            values = [jnp.asarray(v, wide) if floating(v) else v for v in values]
            params = dict(eqn.params)
            if eqn.primitive.name == "dot_general":
                params["preferred_element_type"] = preferred
            return [eqn.primitive.bind(*values, **params)]
        avals = [var.aval for var in eqn.invars]
        return evaluate(
            eqn,
            [
                jnp.asarray(v, a.dtype) if floating(v) else v
                for v, a in zip(values, avals)
            ],
        )

    def no_symbols(eqn: Any, values: list[Any]) -> list[Any]:
        raise AssertionError("a formula holds no symbols here")

    return walk(jaxpr, jax.tree.leaves(inputs), {}, no_symbols, plain)[0]


def flops(method: Method, layer: Layer, rows: int, names: dict[str, Any]) -> int:
    """Count the FLOPs that a formula adds to the frozen layer on `rows` rows.

    Args:
        method: the adapter.
        layer: its facts.
        rows: tokens, output positions or looked-up ids.
        names: shapes and dtypes of the adapter arrays of one layer.
    """
    shapes = (
        jax.ShapeDtypeStruct((rows, layer.d_in), jnp.float32),
        names,
        jax.ShapeDtypeStruct((layer.d_in, layer.d_out), jnp.float32),
    )
    jaxpr = jax.make_jaxpr(lambda x, p, k: method.formula(p, x, k, 0.0))(*shapes)
    total = 0

    def count(eqn: Any, values: list[Any]) -> list[Any]:
        nonlocal total
        name = eqn.primitive.name
        if name == "dot_general" and not (values[0] and layer.kind == "embedding"):
            (contract, _), _ = eqn.params["dimension_numbers"]
            inner = prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += 2 * inner * eqn.outvars[0].aval.size
        for inside in (eqn.params.get("jaxpr"), eqn.params.get("call_jaxpr")):
            if inside is not None:
                before = total
                walk(inside, [False] * len(eqn.invars), {}, count, count)
                total = before + (total - before) * int(eqn.params.get("length", 1))
        return [False] * len(eqn.outvars)

    marks = [True] + [False] * (len(jax.tree.leaves(shapes)) - 1)
    walk(jaxpr, marks, {}, count, count)
    base = 0 if layer.kind == "embedding" else 2 * rows * layer.d_in * layer.d_out
    return total - base
