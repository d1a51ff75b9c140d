"""A bank of adapters of one plan: many tasks on one base, in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.jaxpr import Call
from peftjax.core.site import Adapters, Given, Site


def bank(adapters: Sequence[Adapters]) -> dict[str, dict[str, jax.Array]]:
    """Stack adapters of one plan, for `peft.apply(..., adapter_ids=ids)`.

    Adapters of lower rank are padded with zeros, which leaves each of them what it is
    under the plan's own method (its scale included).

    Args:
        adapters: `{path: {name: array}}` each, with the same paths and names.

    Returns:
        The same tree, a first axis of `len(adapters)` on every array.

    Raises:
        TypeError: anything but a sequence of trees of arrays.
        ValueError: no adapters, or adapters of different plans; path and shapes named.

    >>> one = {"fc/kernel": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}}
    >>> two = {"fc/kernel": {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 4))}}
    >>> jax.tree.map(jnp.shape, bank([one, two]))
    {'fc/kernel': {'a': (2, 3, 2), 'b': (2, 2, 4)}}
    """
    given: Any = adapters
    if not isinstance(given, Sequence):
        kind = type(given).__name__
        raise TypeError(f"bank: expected a sequence of adapters, found {kind}")
    if not adapters:
        raise ValueError("bank: expected at least one adapter, found none")
    for index, one in enumerate(adapters):
        _check_tree(index, one)
    first = _names(adapters[0])
    for index, other in enumerate(adapters):
        if differ := sorted(first ^ _names(other)):
            raise ValueError(
                f"bank: adapter {index} is of another plan than adapter 0: "
                f"{', '.join(map(':'.join, differ[:5]))} is in only one of them"
            )
    return {
        path: {
            name: _stack(f"{path}:{name}", [other[path][name] for other in adapters])
            for name in p
        }
        for path, p in adapters[0].items()
    }


def _check_tree(index: int, adapters: Any) -> None:
    found = adapters.values() if isinstance(adapters, Mapping) else [adapters]
    for p in found:
        arrays = p.values() if isinstance(p, Mapping) else [p]
        for array in arrays:
            if not isinstance(p, Mapping) or not hasattr(array, "dtype"):
                raise TypeError(
                    f"bank: expected {{path: {{name: array}}}} as adapter {index}, "
                    f"found {array!r:.80} in it"
                )


def _names(adapters: Adapters) -> set[tuple[str, str]]:
    return {(path, name) for path, p in adapters.items() for name in p}


def _stack(where: str, arrays: Sequence[Any]) -> jax.Array:
    shapes = {tuple(array.shape) for array in arrays}
    dimensions = {len(shape) for shape in shapes}
    full = np.max(list(shapes), axis=0) if len(dimensions) == 1 else ()
    varying = [i for i, n in enumerate(full) if any(s[i] != n for s in shapes)]
    if len(dimensions) != 1 or len(varying) > 1:
        raise ValueError(
            f"bank: {where} has shapes {sorted(shapes)}; expected shapes that differ "
            "in the rank alone"
        )
    padded = [
        jnp.pad(array, [(0, n - m) for n, m in zip(full, array.shape)])
        for array in arrays
    ]
    return jnp.stack(padded)


def check_ids(ids: Any, adapters: Adapters) -> int:
    """Return the number of rows; where ids are concrete, check that they exist.

    Raises:
        ValueError: ids are not one integer per row, or one is out of range.
    """
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"adapter_ids: expected integers [rows], found {ids.dtype}{list(ids.shape)}"
        )
    count = jax.tree.leaves(adapters)[0].shape[0]
    try:
        known = np.asarray(ids)
    except jax.errors.TracerArrayConversionError:
        known = np.empty(0, int)
    for row, value in enumerate(known):
        if not -1 <= value < count:
            raise ValueError(
                f"adapter_ids[{row}] = {value}: expected -1 (the base) to {count - 1}, "
                f"for the bank holds {count} adapters"
            )
    return ids.shape[0]


def apply_rows(
    run: Callable[..., Any],
    sites: Sequence[Site],
    call: Call,
    bank: Adapters,
    ids: jax.Array,
) -> Any:
    """Run each row of a batch with its own adapter: `run(adapters, call, given)`."""
    rows = check_ids(ids, bank)
    if longer := [site.path for site in sites if site.kind == "prefix"]:
        raise ValueError(
            f"{longer[0]}: a bank runs no prefixes, since the base's rows have none; "
            "expected adapters of weights or outputs. Call apply once for each adapter"
        )
    costly = [site.path for site in sites if site.method.forms_kernel]
    if costly:
        warnings.warn(
            f"a bank forms one kernel for each row at {costly[0]} and "
            f"{len(costly) - 1} other sites; a method without it is far cheaper",
            stacklevel=4,
        )
    axes = [0 if leaf.shape[:1] == (rows,) else None for leaf in call.dynamic]

    # inside jit an id out of range gives NaN; JAX's default would clamp it
    def take(array: jax.Array) -> jax.Array:
        return jnp.take(array, jnp.maximum(ids, 0), axis=0, mode="fill")

    def row(adapters: Adapters, is_base: jax.Array, dynamic: list[Any]) -> Any:
        single = [x if ax is None else x[None] for x, ax in zip(dynamic, axes)]
        given = {
            site.path: Given(is_base=jnp.broadcast_to(is_base, site.stack))
            for site in sites
        }
        output = run(adapters, replace(call, dynamic=single), given)
        return jax.tree.map(lambda y: y[0], output)

    if not call.dynamic or axes[0] is None:
        raise ValueError(
            f"adapter_ids holds {rows} ids, but the first array has shape "
            f"{tuple(call.dynamic[0].shape) if call.dynamic else 'none'}"
        )
    adapters = jax.tree.map(take, bank)
    return jax.vmap(row, (0, 0, axes))(adapters, ids < 0, call.dynamic)
