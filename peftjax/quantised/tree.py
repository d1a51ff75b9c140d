"""Which leaves of a model's variables are coded, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.quantised.formats import Format, Quantised, encode


def quantise(variables: Any, rules: Mapping[str, Format]) -> Any:
    """Return variables whose leaves that a rule names are in codes.

    `adapt`, `apply`, `merge`, training and checkpoints take the tree as it is; the
    model needs no change. A leaf is decoded where it is used, and the backward pass
    keeps its codes.

    Args:
        variables: the model's.
        rules: regular expression, matched against the whole path of a parameter, to
            format; the first match wins.

    Returns:
        The same tree, `Quantised` in place of the leaves named.

    Raises:
        TypeError: a rule is no format.
        ValueError: a rule decides no parameter; a leaf is not floating, not finite, or
            its axis is not divided by the group.

    >>> from peftjax.quantised import NF4
    >>> kernel = jnp.ones((128, 4))
    >>> coded = quantise({"fc": {"kernel": kernel}}, {".*kernel": NF4(group=64)})
    >>> coded["fc"]["kernel"].decode().shape
    (128, 4)

    Departures: an adapter file saved over such a base does not say which values the
    coded leaves had, so that it fits the base in floats too.
    """
    for pattern, format in rules.items():
        if not isinstance(format, Format):
            raise TypeError(
                f"rule {pattern!r}: expected a format such as NF4(), found {format!r}"
            )
    names, leaves, structure = paths.flatten(variables)
    known = [name for name in names if name is not None]
    chosen = paths.match(known, tuple(rules.items()))
    coded = [
        leaf if name not in chosen else _coded(name, leaf, chosen[name][1])
        for name, leaf in zip(names, leaves)
    ]
    return jax.tree.unflatten(structure, coded)


def dequantise(variables: Any, dtype: Any = None) -> Any:
    """Return variables with every coded leaf decoded, for the model alone.

    Args:
        variables: of `quantise`, or merged adapters over them.
        dtype: of the decoded leaves; by default the one each had.
    """

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, Quantised):
            return leaf
        return _decoded(replace(leaf, dtype=jnp.dtype(dtype or leaf.dtype)))

    def is_coded(leaf: Any) -> bool:
        return isinstance(leaf, Quantised)

    return jax.tree.map(whole, variables, is_leaf=is_coded)


@jax.jit
def _decoded(leaf: Quantised) -> jax.Array:
    return leaf.decode()


def _coded(path: str, leaf: Any, format: Format) -> Quantised:
    if isinstance(leaf, Quantised):
        raise ValueError(f"{path}: is in codes already ({leaf.format})")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"{path}: expected floating numbers, found {leaf.dtype}")
    length = leaf.shape[format.axis] if leaf.ndim >= max(2, -format.axis) else 0
    if not length or length % format.group or (format.packed and format.group % 2):
        raise ValueError(
            f"{path}: {format} needs an even group that divides axis {format.axis} of "
            f"at least two axes, found shape {tuple(leaf.shape)}; choose another group "
            "or axis, or leave it out of the rules"
        )
    if not isinstance(leaf, jax.ShapeDtypeStruct) and not jnp.isfinite(leaf).all():
        raise ValueError(f"{path}: holds NaN or infinity")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda array: encode(array, format), leaf)
    return encode(leaf, format)
