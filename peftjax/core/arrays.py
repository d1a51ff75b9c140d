"""Which arrays a site has: those of given adapters, and what is asked of them.

Arrays that all sites share lie under the path `""`; nobody else needs to know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.coded import decoded
from peftjax.core.gates import constant_gates
from peftjax.core.site import Adapters, Given, Leaves, Site


def of_site(
    site: Site, adapters: Adapters, given: Mapping[str, Given] | None = None
) -> Given:
    """Return a site's arrays, shared ones included, and what is given beside them."""
    p = dict(adapters[site.path])
    for name in site.method.shared:
        value = adapters[""][name]
        p[name] = jnp.broadcast_to(value, (*site.stack, *value.shape))
    return replace((given or {}).get(site.path, Given()), params=p)


def of_sites(
    sites: Sequence[Site], adapters: Adapters, given: Mapping[str, Given] | None = None
) -> dict[str, Given]:
    """Return the same of several sites, by path."""
    return {site.path: of_site(site, adapters, given) for site in sites}


def with_gates(sites: Sequence[Site], gates: Any) -> dict[str, Given]:
    """Return the constant gates of the gated sites; see `Peft.merge`."""
    found = constant_gates({site.path: heads(site) for site in gated(sites)}, gates)
    return {path: Given(gates=value) for path, value in found.items()}


def gated(sites: Sequence[Site]) -> list[Site]:
    return [site for site in sites if site.method.gated]


def heads(site: Site) -> tuple[int, ...]:
    """Return `(*stack, heads)` of a gated site."""
    return (*site.stack, getattr(site.method, "heads"))  # noqa: B009 (a field by contract)


def replaced(
    sites: Sequence[Site],
    leaves: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
) -> list[Any]:
    """Return the leaves with those of `Full` replaced."""
    values = list(leaves)
    for site in sites:
        if not site.method.replaces:
            continue
        own = of_site(site, adapters, given)
        value = own.params["value"].astype(leaves[site.index].dtype)
        if own.is_base is not None:
            value = jnp.where(own.is_base, decoded(leaves[site.index]), value)
        values[site.index] = value
    return values


def planned_leaves(known: Leaves, structure: Any, variables: Any) -> list[Any]:
    """Return the leaves of variables that have the planned paths and shapes."""
    names, leaves, found = paths.flatten(variables)
    if found != structure:
        planned = jax.tree.unflatten(structure, known.avals)
        wanted, given = paths.spelled(planned)[0], paths.spelled(variables)[0]
        if wanted != given:
            raise ValueError(
                "variables are not those of the planned model: "
                + _differing(set(wanted), set(given))
            )
    for name, leaf, aval in zip(names, leaves, known.avals):
        if name is None:
            continue
        if tuple(leaf.shape) != aval.shape:
            raise ValueError(
                f"{name}: expected shape {aval.shape}, found {tuple(leaf.shape)}"
            )
        if leaf.dtype != aval.dtype and _floating(leaf) != _floating(aval):
            raise ValueError(
                f"{name}: planned for {aval.dtype}, found {leaf.dtype}; cast it, or "
                "plan with these variables"
            )
    return leaves


def _differing(wanted: set[str], found: set[str]) -> str:
    missing, extra = sorted(wanted - found)[:5], sorted(found - wanted)[:5]
    return f"missing {missing or 'nothing'}, unexpected {extra or 'nothing'}"


def _floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def shared_shapes(sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that sites share.

    Raises:
        ValueError: two sites need different ones.
    """
    first: dict[str, tuple[Site, tuple[int, ...]]] = {}
    for site in sites:
        for name, shape in site.arrays:
            if name not in site.method.shared:
                continue
            other, known = first.setdefault(name, (site, shape))
            if known != shape:
                raise ValueError(
                    f"{site.path}: shares {name!r} with {other.path}, but needs shape "
                    f"{list(shape)} and that one {list(known)}; expected one shape "
                    "for all sites that share it"
                )
    return {name: shape for name, (_, shape) in first.items()}


def check_adapters(
    sites: Sequence[Site], adapters: Any, given: Mapping[str, Given]
) -> None:
    """Raise unless adapters have the planned paths, names, shapes and kinds of number.

    Raises:
        TypeError: not a tree of arrays.
        ValueError: anything else.
    """
    tree = isinstance(adapters, Mapping)
    if not tree or not all(isinstance(p, Mapping) for p in adapters.values()):
        kind = type(adapters).__name__
        raise TypeError(f"adapters: expected {{path: {{name: array}}}}, found {kind}")
    shared = shared_shapes(sites)
    wanted = {site.path for site in sites} | ({""} if shared else set())
    if set(adapters) != wanted:
        raise ValueError(
            f"adapters do not fit the plan: {_differing(wanted, set(adapters))}; make "
            "them with init or load them for this model and these rules"
        )
    frozen = {name for site in sites for name in site.method.frozen}
    # a bank pads its adapters to one rank
    padded = any(one.is_base is not None for one in given.values())
    if shared:
        _check_site("", "the shared arrays", shared, adapters[""], frozen, padded)
    for site in sites:
        hidden, whose = site.method.shared, f"the arrays of {site.method}"
        own = {n: (*site.stack, *s) for n, s in site.arrays if n not in hidden}
        names = site.method.frozen
        _check_site(site.path, whose, own, adapters[site.path], names, padded)


def _check_site(
    path: str,
    whose: str,
    wanted: Mapping[str, tuple[int, ...]],
    p: Mapping[str, Any],
    frozen: Collection[str],
    padded: bool,
) -> None:
    for name, value in p.items():
        if not hasattr(value, "dtype"):
            raise TypeError(
                f"{path}: expected an array as {name!r}, found {value!r}; make "
                "adapters with init"
            )
        if name not in frozen and not _floating(value):
            raise ValueError(
                f"{path}: expected floating numbers as {name!r}, found {value.dtype}"
            )
    found = {name: tuple(value.shape) for name, value in p.items()}
    if padded:
        axes = [
            {name: len(s) for name, s in sizes.items()} for sizes in (wanted, found)
        ]
        fits, remedy = axes[0] == axes[1], "adapter_ids takes adapters stacked by bank"
    else:
        fits = wanted == found
        remedy = "make them with init or load them for these rules"
    if not fits:
        raise ValueError(
            f"{path or 'shared'}: expected {whose}, {_listed(wanted)}; found "
            f"{_listed(found)}; {remedy}"
        )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return listed or "nothing"


def finite(tree: Any) -> Any:
    """Return the tree with a scalar for each array: all its numbers are finite."""
    return jax.tree.map(lambda array: jnp.all(jnp.isfinite(array)), tree)


def check_finite(found: Mapping[str, Any]) -> None:
    """Raise ValueError for NaN or infinity, naming the site; not while tracing.

    A site whose base is not finite either may merge to what it likes.

    Args:
        found: by site, `finite` of its arrays, of its stored leaves, and of the merged.
    """
    try:
        known = jax.tree.map(bool, jax.device_get(dict(found)))
    except jax.errors.ConcretizationTypeError:
        return
    for path, (own, _, _) in known.items():
        for name in (name for name, finite in own.items() if not finite):
            raise ValueError(
                f"{path}: adapter array {name!r} holds NaN or infinity; "
                "refusing to merge. Go back to an earlier checkpoint"
            )
    for path, (_, before, after) in known.items():
        if all(jax.tree.leaves(before)) and not all(after):
            raise ValueError(
                f"{path}: the merged weight or bias holds NaN or infinity, though base "
                "and adapter do not; it leaves the range of its dtype. Merge into a "
                "wider dtype, or keep the adapter separate"
            )
