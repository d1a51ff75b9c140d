"""Merge a site: its kernel and bias in float32, one stacked layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import arrays
from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.axes import arrange, restore, whole
from peftjax.core.method import Method
from peftjax.core.site import Adapters, Given, Site
from peftjax.core.uses import Weight


def merge_leaves(
    sites: Sequence[Site],
    leaves: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
) -> list[Any]:
    """Return the model's leaves with some sites merged in.

    Raises:
        NotMergeable: a formula that is not affine, a constant that no bias can take, a
            weight stored in integers.
    """
    values = list(leaves)
    for site in sites:
        bias = None if site.bias_index is None else values[site.bias_index]
        own = arrays.of_site(site, adapters, given)
        values[site.index], bias = merge_site(site, values[site.index], bias, own)
        if site.bias_index is not None:
            values[site.bias_index] = bias
    return values


def merge_site(
    site: Site, kernel: Any, bias: Any, given: Given
) -> tuple[jax.Array, jax.Array | None]:
    """Return the merged kernel and bias of one site, as they are stored."""
    if site.quantised:
        raise NotMergeable(
            f"{site.path}: the weight is stored as {site.dtype} and scaled by the "
            "model; merging needs a floating weight. Dequantise it first, or keep "
            "the adapter separate"
        )
    try:
        merged, const = _merged(site, kernel, bias, given)
    except NotMergeable as error:
        raise NotMergeable(f"{site.path}: {error}") from None
    if bias is None and const is not None:
        raise NotMergeable(
            f"{site.path}: {site.method} adds a constant to the output, but the "
            "layer has no bias of its own to take it. Give the layer a bias, use "
            "a form without constants, or keep the adapter separate"
        )
    return merged, const


@arrays.by_form
def _merged(site: Site, kernel: Any, bias: Any, given: Given) -> Any:
    own = kernel, site.stored, site.groups
    beside = None if bias is None else (bias, whole(bias.shape), site.bias_groups)
    arranged = None if beside is None else arrange(*beside)
    merged, const = _layers(site.method, site.stack, given, arrange(*own), arranged)

    def put_back(array: Any, stored: Any, view: Any, groups: Any) -> jax.Array:
        array = restore(array, view, groups).astype(stored.dtype)
        if given.is_base is None:
            return array
        return jnp.where(given.is_base.reshape(-1)[0], stored, array)

    return put_back(merged, *own), const if beside is None else put_back(const, *beside)


def merge_used(weight: Weight, why: str) -> jax.Array:
    """Return the merged weight in the axes and the type that the model has made of it.

    Raises:
        ValueError: the merged layer has another bias too, which is out of reach here.
    """
    site, groups = weight.site, [*weight.stack, *weight.site.atoms[1:]]
    kernel = arrange(weight.value, weight.view, groups)
    lengths = kernel.shape[: len(weight.stack)]
    merged, const = _layers(site.method, lengths, weight.given, kernel, None)
    # the model adds its own bias later, and that is not the merged one
    if site.quantised or site.takes_bias or const is not None:
        raise ValueError(
            f"{site.path}: this call uses the weight otherwise than the planned one "
            f"did ({why}); plan it with example arguments of this kind"
        )
    if weight.given.is_base is not None:
        merged = jnp.where(weight.given.is_base.reshape(-1)[0], kernel, merged)
    return restore(merged, weight.view, groups).astype(weight.value.dtype)


def _layers(
    method: Method, stack: tuple[int, ...], given: Given, kernel: Any, bias: Any
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
