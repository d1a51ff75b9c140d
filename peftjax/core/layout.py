"""What casts, reshapes, transposes and indexing do to the view of a weight."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from peftjax.core.views import View, reshaped


def _same(eqn: Any, view: View) -> View | None:
    return view


def _regroup(eqn: Any, view: View) -> View | None:
    return reshaped(view, eqn.outvars[0].aval.shape)


def _reshape(eqn: Any, view: View) -> View | None:
    return None if eqn.params.get("dimensions") else _regroup(eqn, view)


def _transpose(eqn: Any, view: View) -> View | None:
    return tuple(view[axis] for axis in eqn.params["permutation"])


def _broadcast(eqn: Any, view: View) -> View | None:
    axes = dict(zip(eqn.params["broadcast_dimensions"], view, strict=True))
    return tuple(axes.get(axis, ()) for axis in range(eqn.outvars[0].aval.ndim))


LAYOUT: dict[str, Callable[[Any, View], View | None]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "expand_dims": _regroup,
    "reshape": _reshape,
    "sharding_constraint": _same,
    "squeeze": _regroup,
    "stop_gradient": _same,
    "transpose": _transpose,
}


def leading_index(eqn: Any) -> bool:
    """Whether an equation takes one member of a stack: index i of the first axis."""
    outer, inner = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    match eqn.primitive.name:
        case "slice":
            strides = eqn.params["strides"]
            return inner == (1, *outer[1:]) and (strides is None or set(strides) == {1})
        case "dynamic_slice":
            return inner == (1, *outer[1:])
        case "gather":
            dims = eqn.params["dimension_numbers"]
            return (
                inner == outer[1:]
                and tuple(dims.collapsed_slice_dims) == (0,)
                and tuple(dims.start_index_map) == (0,)
                and prod(eqn.invars[1].aval.shape) == 1
            )
    return False


def row_lookup(eqn: Any) -> bool:
    """Whether a gather looks up rows of its first axis, as an embedding does."""
    dims, outer = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    return (
        tuple(dims.collapsed_slice_dims) == (0,)
        and tuple(dims.start_index_map) == (0,)
        and not getattr(dims, "operand_batching_dims", ())
        and tuple(eqn.params["slice_sizes"]) == (1, *outer[1:])
    )
