"""Merge one site: its kernel and bias in float32, one stacked layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.site import BASE, Site
from peftjax.core.views import arrange, restore, whole


def merge_site(site: Site, values: list[Any], p: dict[str, jax.Array]) -> None:
    """Merge one site into the model's leaves, in place of its kernel and bias.

    Args:
        site: the adapted layer.
        values: the model's leaves; changed.
        p: the site's arrays, see `substitute.params`.

    Raises:
        NotMergeable: a formula that is not affine, a constant that no bias can take, a
            weight stored in integers.
    """
    if site.quantised:
        raise NotMergeable(
            f"{site.path}: the weight is stored as {site.dtype} and scaled by the "
            "model; merging needs a floating weight. Dequantise it first, or keep "
            "the adapter separate"
        )
    is_base = p.pop(BASE, None)
    if is_base is not None:
        is_base = is_base.reshape(-1)[0]
    leaf = values[site.index]
    kernel = arrange(leaf, site.stored, site.groups)
    bias: Any = 0.0
    if site.bias_index is not None:
        stored = values[site.bias_index]
        bias = arrange(stored, whole(stored.shape), site.bias_groups)

    def layer(p: Any, kernel: Any, bias: Any = 0.0) -> Any:
        return merge_layer(site.method, p, kernel, bias, site.path)

    arguments = (p, kernel) if isinstance(bias, float) else (p, kernel, bias)
    merged, const = _one_by_one(layer, site.stack, arguments)
    merged = restore(merged, site.stored, site.groups)
    merged = merged.astype(leaf.dtype)
    if is_base is not None:
        merged = jnp.where(is_base, leaf, merged)
    values[site.index] = merged
    if site.bias_index is not None:
        stored = values[site.bias_index]
        const = restore(const, whole(stored.shape), site.bias_groups)
        const = const.astype(stored.dtype)
        if is_base is not None:
            const = jnp.where(is_base, stored, const)
        values[site.bias_index] = const
    elif const is not None:
        raise NotMergeable(
            f"{site.path}: {site.method} adds a constant to the output, but the "
            "layer has no bias of its own to take it. Give the layer a bias, use "
            "a form without constants, or keep the adapter separate"
        )


def _one_by_one(
    function: Callable[..., Any], stack: tuple[int, ...], arguments: tuple[Any, ...]
) -> Any:
    """Map a function over stacked layers in turn, so that one is held in float32."""
    if not stack:
        return function(*arguments)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(stack) :]), arguments)
    results = lax.map(lambda args: function(*args), flat)
    return jax.tree.map(lambda a: a.reshape(*stack, *a.shape[1:]), results)
