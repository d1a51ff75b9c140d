"""Evaluate one formula as the model computes its layer: types, stacks, rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.axes import TOKENS, arrange, restore, whole
from peftjax.core.gates import observe
from peftjax.core.jaxpr import evaluate, walk
from peftjax.core.method import Method, Rows
from peftjax.core.site import Given, Site
from peftjax.core.uses import Asked, Weight

Formula = Callable[[Any, Any, Any], Any]


def on_stack(
    weight: Weight,
    x: Any,
    tokens: int,
    asked: Asked,
    bias: jax.Array | None,
    key: jax.Array | None,
    transposed: bool = False,
) -> jax.Array:
    """Evaluate a formula for all stacked layers of a weight at once.

    Args:
        weight: the weight, some of whose stacked axes may have been taken off.
        x: `[*stack, *tokens, in]`, or `Rows` for a weight without a stack.
        tokens: how many token axes x has.
        asked: the model's own precision and types, given to every dot.
        bias: `[*stack, out]` where the formula is to add it.
        key: dropout keys `[*stack]`.
        transposed: x is `[..., out]`, and the transpose of the linear part is meant.
    """
    site, stack = weight.site, len(weight.stack)
    kernel = arrange(weight.value, weight.view, [*weight.stack, *site.atoms[1:]])
    layer = partial(_transpose if transposed else on_layer, site, asked)
    for _ in range(stack):
        layer = jax.vmap(layer)
    lengths = (-1,) if isinstance(x, Rows) else x.shape[stack : stack + tokens]
    if not isinstance(x, Rows) and _may_flatten(site, x, stack, tokens):
        x = x.reshape(*x.shape[:stack], -1, x.shape[-1])
    y = layer(x, kernel, weight.given, bias, key)
    y = y.reshape(*y.shape[:stack], *lengths, y.shape[-1])
    if weight.factor is None:
        return y
    # the same along the contracted axis, or there would be no product
    factor = weight.factor[..., 0] if transposed else weight.factor[..., 0, :]
    tokens_at = tuple(range(stack, stack + len(lengths)))
    return y * jnp.expand_dims(factor, tokens_at).astype(y.dtype)


def flattens(platform: str) -> bool:
    """Whether products are faster on `[tokens, in]`.

    On a TPU rows lie in tiles: to flatten 197 tokens of each example copies them all.
    """
    return platform != "tpu"


def check_fused(platform: str) -> None:
    """Raise ValueError where layers do not run as one kernel."""
    if platform not in ("tpu", "cpu"):
        raise ValueError(
            f"fused=True: expected a TPU, found {platform}; leave the setting off"
        )


def _may_flatten(site: Site, x: jax.Array, stack: int, tokens: int) -> bool:
    """Flatten unless a second leading axis is sharded over an explicit mesh."""
    flatten = site.flatten
    if flatten is None:
        flatten = flattens(jax.default_backend())
    if tokens == 1 or not flatten:
        return False
    spec = getattr(getattr(jax.typeof(x), "sharding", None), "spec", ())
    return all(part is None for part in spec[stack + 1 : stack + tokens])


def _transpose(
    site: Site, asked: Asked, h: jax.Array, kernel: jax.Array, given: Given, *_: Any
) -> jax.Array:
    """Return `h K'^T`, `[..., in]`: the transpose of the formula's linear part at h."""
    kernel = kernel.astype(_compute_dtype(kernel, h, asked))
    x = jnp.zeros((*h.shape[:-1], site.d_in), kernel.dtype)
    wide = Asked(asked.precision, None, kernel.dtype)

    plain = replace(site, fused=False)

    def forward(x: jax.Array) -> jax.Array:
        return on_layer(plain, wide, x, kernel, given, None, None)

    # linear in x up to a constant, so where it is linearised does not matter
    pull: Any = jax.vjp(forward, x)[1]
    return pull(h.astype(kernel.dtype))[0].astype(asked.out_dtype)


def on_layer(
    site: Site,
    asked: Asked,
    x: Any,
    kernel: jax.Array,
    given: Given,
    bias: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """Evaluate a formula on one layer; x is `[..., in]` or `Rows`."""
    method, dtype = site.method, _compute_dtype(kernel, x, asked)
    if dtype != kernel.dtype:
        x, kernel = x if isinstance(x, Rows) else x.astype(dtype), kernel.astype(dtype)
    p = cast(method, given.params, kernel.dtype)
    b = 0.0 if bias is None else bias.astype(kernel.dtype)

    def formula(x: Any, p: Any, kernel: Any) -> Any:
        y = method.formula(p, x, kernel, b, key=key, **given.options)
        # vmapped over the rows of a bank, both are computed; NaN must not pass
        if given.is_base is not None:
            y = jnp.where(given.is_base, x @ kernel + b, y)
        if given.total is not None:
            gates = method.gates(p, x) if given.gates is None else given.gates
            y = observe(y, given.total, gates)
        return y

    with jax.default_matmul_precision(asked.name):
        if isinstance(x, Rows):
            y = _on_rows(site, formula, x, p, kernel)
        elif _wider(asked.preferred, x.dtype, kernel.dtype):
            y = _in_wider_type(formula, asked.preferred, x, p, kernel)
        elif (y := _fused(site, given, x, p, kernel, b)) is None:
            y = formula(x, p, kernel)
    return y.astype(asked.out_dtype)


def _fused(
    site: Site, given: Given, x: jax.Array, p: Any, kernel: jax.Array, bias: Any
) -> jax.Array | None:
    """Evaluate a plain layer as one kernel; None where it cannot be one."""
    extras = given.gates, given.is_base, given.total
    whole = x.dtype == kernel.dtype and not any(e is not None for e in extras)
    if not (site.fused and x.ndim > 1 and x.size > 0 and whole):
        return None
    # few need Pallas, whose import takes longer than any other here
    from peftjax.core.fused import blocks, low_rank_dense

    fits = blocks(x.shape, kernel.shape[1], x.dtype.itemsize) is not None
    parts = site.method.low_rank(p, kernel, bias) if fits else None
    if parts is None:
        return None
    a, b = (factor.astype(kernel.dtype) for factor in (parts.a, parts.b))
    y = low_rank_dense(x, kernel, a, b)
    return (y if parts.scale is None else y * parts.scale) + parts.constant


def _compute_dtype(kernel: jax.Array, x: Any, asked: Asked) -> Any:
    """Return the kernel's dtype, or a wider one for a kernel in 8 bits."""
    fitting = kernel.dtype, x.dtype, asked.out_dtype, jnp.dtype("float32")
    return next(dtype for dtype in fitting if dtype.itemsize > 1)


def cast(method: Method, p: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
    """Cast floating adapter arrays to the compute dtype, except the `float32` names."""
    return {
        name: value.astype(dtype)
        if _floating(value) and name not in method.float32
        else value
        for name, value in p.items()
    }


def _floating(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _on_rows(site: Site, formula: Formula, x: Rows, p: Any, kernel: Any) -> jax.Array:
    try:
        return formula(x, p, kernel)
    except (TypeError, AttributeError) as error:
        # Python and JAX name the type of what they cannot use
        if type(x).__name__ not in str(error):
            raise
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


def _in_wider_type(formula: Formula, preferred: Any, *inputs: Any) -> jax.Array:
    """Evaluate a formula with its dots, and so what follows them, in a wider type."""
    jaxpr = jax.make_jaxpr(formula)(*inputs)

    def plain(eqn: Any, values: list[Any]) -> list[Any]:
        # what is not on this list keeps its type: it may not exist in a wider one
        floats = [value for value in values if _floating(value)]
        if floats and eqn.primitive.name in ("dot_general", *_ELEMENTWISE):
            wide = jnp.result_type(*floats)
            values = [jnp.asarray(v, wide) if _floating(v) else v for v in values]
            params = dict(eqn.params)
            if eqn.primitive.name == "dot_general":
                params["preferred_element_type"] = preferred
            return [eqn.primitive.bind(*values, **params)]
        values = [
            jnp.asarray(v, var.aval.dtype) if _floating(v) else v
            for v, var in zip(values, eqn.invars)
        ]
        return evaluate(eqn, values)

    return walk(jaxpr, jax.tree.leaves(inputs), {}, plain, plain)[0]


class ConvInput(Rows):
    """A convolution's input: `x @ M` convolves with M seen as `[*window, c_in, k]`."""

    def __init__(self, x: jax.Array, eqn: Any, weight: Weight):
        self.x, self.eqn, self.weight = x, eqn, weight
        self.dtype = x.dtype

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        params = self.eqn.params
        spec = params["dimension_numbers"]
        columns = whole((matrix.shape[1],), TOKENS)[0]
        view = list(self.weight.view)
        view[spec.rhs_spec[0]] = columns
        kernel = restore(matrix, tuple(view), [self.weight.site.atoms[1], columns])
        dtype = jnp.result_type(self.x, kernel)
        y = lax.conv_general_dilated(
            self.x.astype(dtype),
            kernel.astype(dtype),
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=spec,
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return jnp.moveaxis(y, spec.out_spec[1], -1).reshape(-1, matrix.shape[1])

    def dropout(self, rate: float, key: jax.Array) -> ConvInput:
        keep = jax.random.bernoulli(key, 1.0 - rate, self.x.shape)
        dropped = jnp.where(keep, self.x / (1.0 - rate), jnp.zeros((), self.dtype))
        return ConvInput(dropped, self.eqn, self.weight)


class Lookup(Rows):
    """Embedding ids: `x @ M` looks up rows of M, out-of-range ids as the model does."""

    def __init__(self, ids: jax.Array, eqn: Any, weight: Weight):
        self.ids, self.eqn = ids, eqn
        self.dtype = weight.value.dtype

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        dims = lax.GatherDimensionNumbers(
            offset_dims=(self.ids.ndim - 1,),
            collapsed_slice_dims=(0,),
            start_index_map=(0,),
        )
        rows = lax.gather(
            matrix,
            self.ids,
            dims,
            (1, matrix.shape[1]),
            mode=self.eqn.params["mode"],
            fill_value=self.eqn.params["fill_value"],
        )
        return rows.reshape(-1, matrix.shape[1])

    def dropout(self, rate: float, key: jax.Array) -> Lookup:
        return self
