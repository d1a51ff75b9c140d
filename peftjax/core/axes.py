"""Axes of a weight: which of the stored ones make up each axis of a value.

A model may reshape and transpose a weight before using it. Each axis of the value is
then a sequence of *atoms*, pieces `(axis, stride, size)` of one stored axis. With them
any use is brought to the one `[*stack, in, out]` view, and a merged weight back to the
stored layout, without touching an array before it is needed. `MOVES` says what casts,
reshapes and transposes do to a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Atom(NamedTuple):
    """A piece of one axis: index `axis`, elements `stride` apart, `size` of them."""

    axis: int
    stride: int
    size: int


Axis = tuple[Atom, ...]
View = tuple[Axis, ...]

TOKENS = 1000  # the first axis number that stands for no axis of a weight


def wide(dtype: Any) -> Any:
    """Return the dtype in which a weight of this one is trained and merged.

    JAX promotes no float of 8 bits, so this is said here.
    """
    return jnp.dtype(dtype) if jnp.dtype(dtype).itemsize > 4 else jnp.dtype("float32")


def whole(shape: Sequence[int], first: int = 0) -> View:
    """Return the view of a stored array: every axis is itself."""
    return tuple((Atom(first + i, 1, n),) for i, n in enumerate(shape))


def shape(view: View) -> tuple[int, ...]:
    return tuple(prod(atom.size for atom in axis) for axis in view)


def reshaped(view: View, new_shape: Sequence[int]) -> View | None:
    """Return the view after a reshape, or None where an axis is cut across atoms.

    >>> reshaped(whole((6, 4)), (3, 2, 4)) == (
    ...     (Atom(0, 2, 3),), (Atom(0, 1, 2),), (Atom(1, 1, 4),))
    True
    """
    pieces = [atom for axis in view for atom in axis if atom.size != 1]
    axes: list[Axis] = []
    for size in new_shape:
        axis: list[Atom] = []
        left = size
        while left > 1:
            if not pieces:
                return None
            atom = pieces.pop(0)
            if left % atom.size == 0:
                axis.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                inner = atom.size // left
                axis.append(Atom(atom.axis, atom.stride * inner, left))
                pieces.insert(0, Atom(atom.axis, atom.stride, inner))
                left = 1
            else:
                return None
        axes.append(tuple(axis))
    return None if pieces else tuple(axes)


def group(axes: Sequence[Axis], given_order: bool = False) -> Axis:
    """Return the atoms of several axes, joined where they adjoin.

    They stand in stored order unless the given one is to be kept. Atoms of size 1 carry
    nothing and are left out.
    """
    atoms = [atom for axis in axes for atom in axis if atom.size != 1]
    if not given_order:
        atoms.sort(key=lambda atom: (atom.axis, -atom.stride))
    joined: list[Atom] = []
    for atom in atoms:
        last = joined[-1] if joined else None
        if last and last.axis == atom.axis and last.stride == atom.stride * atom.size:
            joined[-1] = Atom(atom.axis, atom.stride, last.size * atom.size)
        else:
            joined.append(atom)
    return tuple(joined)


def inside(atom: Atom, groups: Sequence[Axis]) -> tuple[int, int] | None:
    """Return which group, and which of its atoms, an atom is a part of."""
    for index, members in enumerate(groups):
        for place, outer in enumerate(members):
            if (
                atom.axis == outer.axis
                and atom.stride >= outer.stride
                and atom.stride * atom.size <= outer.stride * outer.size
            ):
                return index, place
    return None


def _order(view: View, groups: Sequence[Axis]) -> tuple[list[int], list[int]]:
    """Return the sizes of all atoms of a view and the permutation into groups."""
    # the larger stride is the outer one
    where: list[tuple[int, int, int, int]] = []
    sizes: list[int] = []
    for atom in (atom for axis in view for atom in axis):
        place = inside(atom, groups)
        if place is None and atom.size == 1:
            continue
        assert place is not None, f"{atom} lies in none of {groups}"
        where.append((*place, -atom.stride, len(sizes)))
        sizes.append(atom.size)
    return sizes, [index for *_, index in sorted(where)]


def arrange(array: jax.Array, view: View, groups: Sequence[Axis]) -> jax.Array:
    """Bring an array with this view into one axis per group, its atoms in order."""
    sizes, permutation = _order(view, groups)
    split = jnp.reshape(array, sizes)
    if permutation != list(range(len(sizes))):
        split = jnp.transpose(split, permutation)
    return jnp.reshape(split, shape(tuple(groups)))


def restore(array: jax.Array, view: View, groups: Sequence[Axis]) -> jax.Array:
    """Undo `arrange`: bring one axis per group back to the view's shape."""
    sizes, permutation = _order(view, groups)
    split = jnp.reshape(array, [sizes[i] for i in permutation])
    if permutation != list(range(len(sizes))):
        inverse = [permutation.index(i) for i in range(len(sizes))]
        split = jnp.transpose(split, inverse)
    return jnp.reshape(split, shape(view))


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


MOVES: dict[str, Callable[[Any, View], View | None]] = {
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
    if eqn.primitive.name != "gather":
        steps = set(eqn.params.get("strides") or (1,))
        return inner == (1, *outer[1:]) and steps == {1}
    return inner == outer[1:] and _by_row(eqn) and prod(eqn.invars[1].aval.shape) == 1


def _by_row(eqn: Any) -> bool:
    dims = eqn.params["dimension_numbers"]
    return tuple(dims.collapsed_slice_dims) == tuple(dims.start_index_map) == (0,)


def row_lookup(eqn: Any) -> bool:
    """Whether a gather looks up rows of its first axis, as an embedding does."""
    dims, outer = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    return (
        _by_row(eqn)
        and not getattr(dims, "operand_batching_dims", ())
        and tuple(eqn.params["slice_sizes"]) == (1, *outer[1:])
    )
