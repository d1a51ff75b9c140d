"""Merge a site: its kernel and bias in float32, one stacked layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import arrays
from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.axes import arrange, restore, whole
from peftjax.core.coded import decoded
from peftjax.core.method import Method
from peftjax.core.site import Adapters, Given, Site, by_form
from peftjax.core.uses import Weight


def merge_leaves(
    sites: Sequence[Site],
    leaves: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
    merged: Callable[..., Any] | None = None,
    finite: dict[str, Any] | None = None,
) -> list[Any]:
    """Return the model's leaves with some sites merged in.

    Args:
        sites: what to merge.
        leaves: of the model.
        adapters: `{path: {name: array}}`.
        given: what a call gives beside them.
        merged: says what takes a leaf's place, from the leaf and from what the adapters
            add to it; the sum in the leaf's type by default.
        finite: takes what `arrays.check_finite` asks for, where leaves are merged.

    Raises:
        NotMergeable: a formula that is not affine, a constant that no bias can take, a
            weight stored in integers.
    """
    values = list(leaves)
    for site in sites:
        where = [i for i in (site.index, site.bias_index) if i is not None]
        own = arrays.of_site(site, adapters, given)
        stored = [values[i] for i in where]
        found, known = merge_site(site, stored, own, merged is not None)
        if finite is not None:
            finite[site.path] = known
        for i, old, new in zip(where, stored, found):
            values[i] = new if merged is None else merged(site, i, old, new)
    return values


def merge_site(
    site: Site, stored: Sequence[Any], given: Given, deltas: bool = False
) -> tuple[list[jax.Array], Any]:
    """Return the merged kernel and bias of one site, as they are stored.

    And what is finite of its arrays, of the stored leaves, and of the merged.

    Args:
        site: the static facts.
        stored: the kernel, and the bias where it is paired.
        given: the site's arrays.
        deltas: return in float32 what merging adds instead.
    """
    if site.quantised:
        raise NotMergeable(
            f"{site.path}: the weight is stored as {site.dtype} and scaled by the "
            "model; merging needs a floating weight. Dequantise it first, or keep "
            "the adapter separate"
        )
    try:
        found, known = (_deltas if deltas else _merged)(site, stored, given)
    except NotMergeable as error:
        raise NotMergeable(f"{site.path}: {error}") from None
    if len(found) > len(stored):
        raise NotMergeable(
            f"{site.path}: {site.method} adds a constant to the output, but the "
            "layer has no bias of its own to take it. Give the layer a bias, use "
            "a form without constants, or keep the adapter separate"
        )
    return found, known


@by_form
def _merged(site: Site, stored: Sequence[Any], given: Given) -> tuple[list[Any], Any]:
    found = _changed(site, stored, given, lambda old, new: new.astype(old.dtype))
    # in the same program, since to read them again costs a pass and compilations
    return found, arrays.finite((given.params, stored, found))


@by_form
def _deltas(site: Site, stored: Sequence[Any], given: Given) -> tuple[list[Any], None]:
    def change(old: Any, new: Any) -> Any:
        return new - old.astype(new.dtype)

    return _changed(site, stored, given, change), None


def _changed(
    site: Site, stored: Sequence[Any], given: Given, change: Callable[..., Any]
) -> list[Any]:
    stored = [decoded(a) for a in stored]
    places = [
        (whole(a.shape), g) for a, g in zip(stored, (site.groups, site.bias_groups))
    ]
    arranged = [arrange(a, *place) for a, place in zip(stored, places)]
    found = _layers(site.method, site.stack, given, *arranged)

    def put_back(old: Any, new: Any, view: Any, groups: Any) -> jax.Array:
        new = restore(new, view, groups)
        if given.is_base is not None:
            new = jnp.where(given.is_base.reshape(-1)[0], old.astype(new.dtype), new)
        return change(old, new)

    back = [put_back(o, n, *p) for o, n, p in zip(stored, found, places)]
    return back if len(stored) > 1 or found[1] is None else [*back, found[1]]


def merge_used(weight: Weight, why: str) -> jax.Array:
    """Return the merged weight in the axes and the type that the model has made of it.

    Raises:
        ValueError: the merged layer has another bias too, which is out of reach here.
    """
    site, groups = weight.site, [*weight.stack, *weight.site.atoms[1:]]
    kernel = arrange(weight.value, weight.view, groups)
    lengths = kernel.shape[: len(weight.stack)]
    merged, const = _layers(site.method, lengths, weight.given, kernel)
    # the model adds its own bias later, and that is not the merged one
    if site.quantised or site.takes_bias or const is not None:
        raise ValueError(
            f"{site.path}: this call uses the weight otherwise than the planned one "
            f"did ({why}); plan it with example arguments of this kind"
        )
    if weight.given.is_base is not None:
        merged = jnp.where(weight.given.is_base.reshape(-1)[0], kernel, merged)
    if weight.factor is not None:
        merged = merged * weight.factor
    return restore(merged, weight.view, groups).astype(weight.value.dtype)


def _layers(
    method: Method, stack: tuple[int, ...], given: Given, kernel: Any, bias: Any = None
) -> Any:
    """Merge stacked layers in turn, so that one at a time is held in float32."""
    arguments = given.params, kernel, bias, given.gates

    def layer(arguments: Any) -> Any:
        return merge_layer(method, *arguments)

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape(-1, *array.shape[len(stack) :])

    def full(array: jax.Array) -> jax.Array:
        return array.reshape(*stack, *array.shape[1:])

    if not stack:
        return layer(arguments)
    return jax.tree.map(full, lax.map(layer, jax.tree.map(flat, arguments)))
