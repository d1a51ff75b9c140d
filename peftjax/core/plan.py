"""From the rules and what the model does with its parameters to the adapted sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.discover import GroupedConvolution, discover
from peftjax.core.method import Layer, Method
from peftjax.core.site import Site, flops
from peftjax.core.uses import Findings, Use
from peftjax.core.views import Axis, shape, whole


@dataclass(frozen=True)
class Leaves:
    """The model's parameters: paths (None outside `params`), shapes and dtypes."""

    paths: tuple[str | None, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]


def plan(
    jaxpr: Any,
    leaves: Leaves,
    chosen: dict[str, Method],
    examples: int,
    flatten: bool,
) -> tuple[Site, ...]:
    """Return the sites of a model in the order of its leaves.

    Args:
        jaxpr: the model, its parameters first.
        leaves: those parameters.
        chosen: path to method.
        examples: how many examples the traced call held, for FLOPs per example.
        flatten: activations are flattened to `[tokens, in]`.

    Raises:
        ValueError: a method does not fit its leaf; the message names the path.
    """
    found = findings(jaxpr, leaves, chosen)
    sites = []
    for index, path in enumerate(leaves.paths):
        if path is None or path not in chosen:
            continue
        aval, method = leaves.avals[index], chosen[path]
        site = Site(
            path, index, method, "other", aval.shape, str(aval.dtype), flatten=flatten
        )
        build = _full if method.replaces else _layer
        sites.append(build(site, found, leaves, examples))
    return tuple(sites)


def findings(jaxpr: Any, leaves: Leaves, chosen: dict[str, Method]) -> Findings:
    """Read the uses of all leaves; those that `Full` replaces hold no formula."""
    formulas = {
        index
        for index, path in enumerate(leaves.paths)
        if path in chosen and not chosen[path].replaces
    }
    try:
        return discover(jaxpr, len(leaves.paths), formulas)
    except GroupedConvolution as error:
        index, groups = error.args
        raise ValueError(
            f"{leaves.paths[index]}: a convolution with {groups} groups cannot carry "
            f"{chosen[str(leaves.paths[index])]}; expected groups = 1. Leave it out of "
            "the rules or adapt it with Full()"
        ) from None


def _full(site: Site, found: Findings, leaves: Leaves, examples: int) -> Site:
    if not jnp.issubdtype(leaves.avals[site.index].dtype, jnp.floating):
        raise ValueError(
            f"{site.path}: Full() cannot train a leaf of dtype {site.dtype}; expected "
            "a floating dtype"
        )
    unused = () if site.index in found.seen else ("never used by the model",)
    return replace(site, trainable=prod(site.shape), notes=unused)


def _layer(site: Site, found: Findings, leaves: Leaves, examples: int) -> Site:
    """Complete the facts of a site that holds a formula."""
    uses = found.uses.get(site.index, [])
    if site.index not in found.seen:
        raise ValueError(
            f"{site.path}: {site.method} is asked for a parameter that the model never "
            "uses with these example arguments"
        )
    if len(site.shape) < 2:
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} needs a weight with at least 2 "
            f"axes, found shape {site.shape}; adapt it with Full() or narrow the rule"
        )
    reason = "; ".join(dict.fromkeys(found.opaque.get(site.index, [])))
    site, odd = _canonical(site, uses)
    reason = "; ".join(filter(None, (reason, odd)))
    site = replace(
        site,
        fast=not reason,
        reason=reason,
        quantised=not jnp.issubdtype(leaves.avals[site.index].dtype, jnp.floating),
    )
    _check(site)
    site = pair_bias(site, found, leaves)
    site = replace(site, notes=_notes(site))
    transposed = any(use.d_in != site.atoms[1] for use in uses)
    if reason or transposed:
        _must_merge(site, "merged" if reason else "transposed")
    return _counted(site, uses, examples)


def _canonical(site: Site, uses: Sequence[Use]) -> tuple[Site, str]:
    """Fix the `[*stack, in, out]` view from the uses; say which use does not fit it."""
    if not uses:
        axes = whole(site.shape)
        atoms = ((), tuple(a for axis in axes[:-1] for a in axis), axes[-1])
        return _with_atoms(replace(site, kind="dense"), atoms), ""
    first = next((use for use in uses if use.kind == "embedding"), uses[0])
    site = replace(site, kind=first.kind, spatial=first.spatial)
    site = _with_atoms(site, (first.stack, first.d_in, first.d_out))
    for use in uses:
        same = (use.d_in, use.d_out) == (first.d_in, first.d_out)
        swapped = (use.d_out, use.d_in) == (first.d_in, first.d_out)
        if use.stack != first.stack:
            return site, "used under different stacked axes"
        if not (same or (swapped and use.kind == "dense")):
            return site, "used with different contracted axes"
    return site, ""


def _with_atoms(site: Site, atoms: tuple[tuple[Axis, ...], Axis, Axis]) -> Site:
    stack, d_in, d_out = atoms
    sizes = shape((d_in, d_out))
    return replace(site, atoms=atoms, stack=shape(stack), d_in=sizes[0], d_out=sizes[1])


def _check(site: Site) -> None:
    name = type(site.method).__name__
    if site.kind not in site.method.kinds:
        raise ValueError(
            f"{site.path}: {name} is not defined on {site.kind} layers; it is on "
            f"{', '.join(site.method.kinds)}. Narrow the rule or choose another method"
        )
    if site.quantised and not site.fast:
        raise ValueError(
            f"{site.path}: the weight is quantised ({site.dtype}) and {site.reason}; "
            "it can be adapted only where its dequantised form meets a matrix product"
        )
    site.method.check(site.layer())


def pair_bias(site: Site, found: Findings, leaves: Leaves) -> Site:
    """Pair the bias that follows every use of the kernel and is used nowhere else."""
    uses = [u for u in found.uses.get(site.index, []) if u.d_in == site.atoms[1]]
    biases = {tuple(use.biases) for use in uses}
    others = [why for use in uses for why in use.others]
    own = {index for added in biases for index, _ in added}
    shared = [
        index
        for index, other_uses in found.uses.items()
        if index != site.index
        for use in other_uses
        if {index for index, _ in use.biases} & own
    ]
    if len(biases) == 1 and len(found_bias := next(iter(biases))) == 1:
        bias, groups = found_bias[0]
        extra = found.elsewhere.get(bias, [])
        if not (others or extra or shared) and leaves.paths[bias] is not None:
            return replace(
                site, bias=leaves.paths[bias], bias_index=bias, bias_groups=groups
            )
        others = others + extra + [f"shared with {leaves.paths[i]}" for i in shared]
    sibling = _sibling_bias(site, leaves)
    named = {leaves.paths[index] for added in biases for index, _ in added}
    suspects = sorted(filter(None, named | {sibling}))
    if site.method.uses_bias and suspects:
        why = "; ".join(dict.fromkeys(others)) or "not every use adds it"
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} needs the bias of the layer, "
            f"but {suspects[0]} cannot be taken as it ({why}). Expected every use of "
            "the kernel to be followed by the addition of that bias and by nothing else"
        )
    return site


def _sibling_bias(site: Site, leaves: Leaves) -> str | None:
    parent = site.path.rpartition("/")[0]
    name = f"{parent}/bias" if parent else "bias"
    return name if name in leaves.paths else None


def _notes(site: Site) -> tuple[str, ...]:
    notes = []
    if site.quantised:
        notes.append(f"{site.dtype} weight, adapted as dequantised; cannot merge")
    if site.bias is None and _adds_constant(site):
        notes.append(
            "adds a constant, but the layer has no bias of its own; cannot merge"
        )
    return tuple(notes)


def _adds_constant(site: Site) -> bool:
    def constant(p: Any, kernel: Any) -> Any:
        return merge_layer(site.method, p, kernel, 0.0, site.path)[1]

    try:
        return jax.eval_shape(constant, *_abstract(site)) is not None
    except NotMergeable:
        return False


def _abstract(site: Site) -> tuple[dict[str, Any], Any]:
    """Return shapes of the adapter arrays and of the kernel of one layer."""

    def init(key: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    kernel = jax.ShapeDtypeStruct((site.d_in, site.d_out), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(init, key, kernel), kernel


def _must_merge(site: Site, how: str) -> None:
    """Raise where a site that has to be merged, or transposed, cannot be."""

    def merge(p: Any, kernel: Any) -> Any:
        return merge_layer(site.method, p, kernel, 0.0, site.path)

    try:
        jax.eval_shape(merge, *_abstract(site))
    except ValueError as error:
        raise ValueError(
            f"{site.path}: this use of the weight needs the {how} form "
            f"({site.reason or 'tied output layer'}), which does not exist: {error}"
        ) from error


def _counted(site: Site, uses: Sequence[Use], examples: int) -> Site:
    p, _ = _abstract(site)
    layers = prod(site.stack)
    trainable = sum(
        prod(value.shape)
        for name, value in p.items()
        if name not in site.method.frozen and name not in site.method.shared
    )
    added = 0
    for use in uses:
        kind = "dense" if use.kind != "embedding" else "embedding"
        layer = Layer(site.d_in, site.d_out, kind)
        in_stack = prod(shape(use.stack))
        added += flops(site.method, layer, use.rows, p) * in_stack * use.repeat
    return replace(
        site,
        trainable=trainable * layers,
        flops=added // max(examples, 1),
        arrays=tuple((name, value.shape) for name, value in p.items()),
    )
