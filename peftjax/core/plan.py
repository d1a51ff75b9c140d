"""From the rules and what the model does with its parameters to the adapted sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.axes import shape, whole
from peftjax.core.cost import flops
from peftjax.core.fresh import abstract
from peftjax.core.jaxpr import opened
from peftjax.core.lift import Rules
from peftjax.core.method import Layer, Method
from peftjax.core.site import Leaves, Site
from peftjax.core.uses import Leaf, Product, Use, Weight


class Planner(Rules):
    """The rules without arrays: what they meet is written down, nothing is computed.

    Attributes:
        uses: per adapted leaf, the recognised uses.
        opaque: per adapted leaf, why a use is not recognised.
        elsewhere: per other leaf, its uses but as the bias of an adapted weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, list[Use]] = {}
        self.opaque: dict[int, list[str]] = {}
        self.elsewhere: dict[int, list[str]] = {}
        self._loops = 1

    def evaluate(self, eqn: Any, values: Sequence[Any]) -> list[Any]:
        return [None] * len(eqn.outvars)

    def used(self, product: Product) -> Product:
        product.use.times *= self._loops
        self.uses.setdefault(product.weight.index, []).append(product.use)
        return replace(product, compute=lambda *_: None)

    def added(self, product: Product, leaf: Leaf, groups: Any) -> list[Any]:
        product.use.biases.append((leaf.index, groups))
        return [None]

    def ended(self, symbol: Any, why: str) -> None:
        if isinstance(symbol, Product):
            symbol.use.others.append(why)
            return
        notes = self.opaque if isinstance(symbol, Weight) else self.elsewhere
        notes.setdefault(symbol.index, []).append(why)

    def has_members(self, leaf: Leaf) -> bool:
        return True

    def scan(self, token: Any, step: Any, carry: Any, xs: Any, **options: Any) -> Any:
        outside, self._loops = self._loops, self._loops * options["length"]
        results = step(carry, xs)
        self._loops = outside
        return results

    def while_loop(self, cond: Any, body: Any, carry: Any) -> Any:
        # how often a loop runs is not known: it counts once
        cond(carry)
        return body(carry)

    def switch(self, index: Any, branches: Sequence[Any], *operands: Any) -> Any:
        results = [branch(*operands) for branch in branches]
        return results[0]

    def checkpoint(self, function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return function


def plan(
    closed: Any,
    leaves: Leaves,
    chosen: Mapping[str, Method],
    examples: int,
    flatten: bool | None,
) -> tuple[Site, ...]:
    """Return the sites of a model, whose jaxpr has its leaves first, in their order.

    Raises:
        ValueError: a method does not fit its leaf; the message names the path.
    """
    sites: list[Site] = []
    values: list[Any] = [None] * len(opened(closed)[0].invars)
    for index, (path, aval) in enumerate(zip(leaves.paths, leaves.avals)):
        values[index] = Leaf(None, index, whole(aval.shape))
        if path is None or path not in chosen:
            continue
        site = Site(
            path,
            index,
            chosen[path],
            "other",
            aval.shape,
            str(aval.dtype),
            quantised=not jnp.issubdtype(aval.dtype, jnp.floating),
            flatten=flatten,
        )
        sites.append(site)
        if not site.method.replaces:
            values[index] = Weight(None, index, site.stored, site=site)
    found = Planner()
    found.end(found.walk(closed, values), "returned by the model")
    known: dict[Any, Site] = {}
    return tuple(
        _full(site)
        if site.method.replaces
        else _layer(site, found, leaves, examples, known)
        for site in sites
    )


def _full(site: Site) -> Site:
    if site.quantised:
        raise ValueError(
            f"{site.path}: Full() cannot train a leaf of dtype {site.dtype}; expected "
            "a floating dtype"
        )
    arrays = (("value", site.shape),)
    return replace(site, trainable=prod(site.shape), arrays=arrays)


def _layer(
    site: Site, found: Planner, leaves: Leaves, examples: int, known: dict[Any, Site]
) -> Site:
    """Complete the facts of a site that holds a formula.

    `known` has a site of each form: a deep model has few, and to trace a formula for
    every layer would take longer than to trace the model.
    """
    if len(site.shape) < 2:
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} needs a weight with at least 2 "
            f"axes, found shape {site.shape}; adapt it with Full() or narrow the rule"
        )
    uses = found.uses.get(site.index, [])
    site, odd = _canonical(site, uses)
    if any(use.scaled for use in uses) and _adds_constant(site):
        odd = [*odd, "scaled, and the formula adds a constant"]
    reasons = [*dict.fromkeys(found.opaque.get(site.index, [])), *odd]
    site = replace(site, fast=not reasons, reason="; ".join(reasons))
    _check(site)
    site = _pair_bias(site, found, leaves)
    kin = site.kin, *((use.kind, use.d_in, use.times, use.rows) for use in uses)
    if kin not in known:
        known[kin] = _costed(site, uses, examples)
    facts = known[kin]
    return replace(
        site,
        notes=facts.notes,
        trainable=facts.trainable,
        flops=facts.flops,
        arrays=facts.arrays,
    )


def _costed(site: Site, uses: Sequence[Use], examples: int) -> Site:
    """Complete the facts that follow from the form of a site and from its uses."""
    transposed = any(use.d_in != site.atoms[1] for use in uses)
    if not site.fast or transposed:
        _must_merge(site, "transposed" if site.fast else "merged")
    p, added = abstract(site)[0], 0
    for use in uses:
        kind = "embedding" if use.kind == "embedding" else "dense"
        layer = Layer(site.d_in, site.d_out, kind)
        added += use.times * flops(site.method, layer, use.rows, p)
    return counted(replace(site, notes=_notes(site)), added, examples)


def _canonical(site: Site, uses: Sequence[Use]) -> tuple[Site, list[str]]:
    """Fix the `[*stack, in, out]` view from the uses; say which use does not fit it."""
    if not uses:
        axes = whole(site.shape)
        first = Use("dense", (), sum(axes[:-1], ()), axes[-1], 0)
    else:
        # a tied table is an embedding first: its rows are the vocabulary
        first = next((use for use in uses if use.kind == "embedding"), uses[0])
    d_in, d_out = shape((first.d_in, first.d_out))
    site = replace(
        site,
        kind=first.kind,
        spatial=first.spatial,
        atoms=(first.stack, first.d_in, first.d_out),
        stack=shape(first.stack),
        d_in=d_in,
        d_out=d_out,
    )
    for use in uses:
        same = (use.d_in, use.d_out) == (first.d_in, first.d_out)
        swapped = (use.d_out, use.d_in) == (first.d_in, first.d_out)
        if use.stack != first.stack:
            return site, ["used under different stacked axes"]
        if not (same or (swapped and use.kind == "dense")):
            return site, ["used with different contracted axes"]
    return site, []


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
            "only a weight that is multiplied by its scale before its use can be "
            "adapted. Scale it first, store it in floats, or leave it out of the rules"
        )
    site.method.check(site.layer())


def _pair_bias(site: Site, found: Planner, leaves: Leaves) -> Site:
    """Pair the bias that follows every use of the kernel and is used nowhere else."""
    uses = [u for u in found.uses.get(site.index, []) if u.d_in == site.atoms[1]]
    added = {tuple(use.biases) for use in uses}
    others = [why for use in uses for why in use.others]
    if len(added) == 1 and len(biases := next(iter(added))) == 1:
        ((bias, groups),) = biases
        others += found.elsewhere.get(bias, [])
        others += [
            f"shared with {leaves.paths[index]}"
            for index, theirs in found.uses.items()
            if index != site.index and bias in _biases(theirs)
        ]
        if not others and leaves.paths[bias] is not None:
            return replace(
                site,
                bias=leaves.paths[bias],
                bias_index=bias,
                bias_groups=groups,
            )
    parent, slash, _ = site.path.rpartition("/")
    sibling = f"{parent}{slash}bias"
    suspects = {leaves.paths[index] for index in _biases(uses)}
    suspects |= {sibling} & set(leaves.paths)
    suspects = sorted(filter(None, suspects))
    if site.method.uses_bias and suspects:
        why = "; ".join(dict.fromkeys(others)) or "not every use adds it"
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} needs the bias of the layer, "
            f"but {suspects[0]} cannot be taken as it ({why}). Expected every use of "
            "the kernel to be followed by the addition of that bias and by nothing else"
        )
    return site


def _biases(uses: Sequence[Use]) -> set[int]:
    return {index for use in uses for index, _ in use.biases}


def _notes(site: Site) -> tuple[str, ...]:
    notes: list[str] = []
    if site.quantised:
        notes.append(f"{site.dtype} weight, adapted as dequantised; cannot merge")
    if site.bias is None and _adds_constant(site):
        notes.append(
            "adds a constant, but the layer has no bias of its own; cannot merge"
        )
    return tuple(notes)


def _merged(site: Site) -> tuple[Any, Any]:
    """Return the shapes of the merged kernel and of the constant, if there is one."""
    p, kernel = abstract(site)
    return jax.eval_shape(lambda p, k: merge_layer(site.method, p, k, None), p, kernel)


def _adds_constant(site: Site) -> bool:
    try:
        return _merged(site)[1] is not None
    except NotMergeable:
        return False


def _must_merge(site: Site, how: str) -> None:
    """Raise where a site that has to be merged, or transposed, cannot be."""
    try:
        _merged(site)
    except NotMergeable as error:
        raise ValueError(
            f"{site.path}: this use of the weight needs the {how} form "
            f"({site.reason or 'tied output layer'}), which does not exist: {error}"
        ) from error


def counted(site: Site, added: int, examples: int) -> Site:
    """Complete a site with its arrays and what they cost, `added` FLOPs a call."""
    p, _ = abstract(site)
    for kind in ("frozen", "float32", "shared"):
        if unknown := sorted(set(getattr(site.method, kind)) - set(p)):
            raise ValueError(
                f"{site.path}: {type(site.method).__name__}.{kind} names {unknown}, "
                f"which init does not make; expected names among {sorted(p)}"
            )
    untrained = {*site.method.frozen, *site.method.shared}
    trained = [value for name, value in p.items() if name not in untrained]
    return replace(
        site,
        trainable=sum(prod(value.shape) for value in trained) * prod(site.stack),
        flops=added // max(examples, 1),
        arrays=tuple((name, value.shape) for name, value in p.items()),
    )
