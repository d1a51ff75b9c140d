"""What is asked of variables and adapters before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.gates import TOTAL
from peftjax.core.plan import Leaves
from peftjax.core.site import BASE, Adapters, Site


def planned_leaves(known: Leaves, structure: Any, variables: Any) -> list[Any]:
    """Return the leaves of variables that have the planned paths and shapes."""
    names, leaves, found = paths.flatten(variables)
    if found != structure and tuple(names) != known.paths:
        missing = sorted(set(known.paths) - set(names), key=str)[:5]
        extra = sorted(set(names) - set(known.paths), key=str)[:5]
        raise ValueError(
            "variables are not those of the planned model: missing "
            f"{missing or 'nothing'}, unexpected {extra or 'nothing'}"
        )
    for name, leaf, aval in zip(names, leaves, known.avals):
        if name is not None and tuple(leaf.shape) != aval.shape:
            raise ValueError(
                f"{name}: expected shape {aval.shape}, found {tuple(leaf.shape)}"
            )
    return leaves


def check_adapters(sites: Sequence[Site], adapters: Adapters) -> None:
    """Raise ValueError unless adapters have the planned paths, names and shapes."""
    wanted = {site.path for site in sites}
    wanted |= {"" for site in sites if site.method.shared}
    if set(adapters) != wanted:
        missing = sorted(wanted - set(adapters))[:5]
        extra = sorted(set(adapters) - wanted)[:5]
        raise ValueError(
            f"adapters do not fit the plan: missing {missing or 'nothing'}, "
            f"unexpected {extra or 'nothing'}; make them with init or load them "
            "for this model and these rules"
        )
    for site in sites:
        if site.arrays:
            _check_arrays(site, adapters[site.path])


def _check_arrays(site: Site, p: dict[str, jax.Array]) -> None:
    """Raise ValueError unless a site's arrays are those of its method."""
    own = {n: (*site.stack, *s) for n, s in site.arrays if n not in site.method.shared}
    beside = (BASE, TOTAL, *(["gates"] if site.method.gated else []))
    found = {n: tuple(value.shape) for n, value in p.items() if n not in beside}
    ranks_may_differ = BASE in p  # a bank pads its adapters to one rank
    if own.keys() == found.keys() and (ranks_may_differ or own == found):
        return
    raise ValueError(
        f"{site.path}: expected the arrays of {site.method}, {_listed(own)}; found "
        f"{_listed(found)}; make them with init or load them for these rules"
    )


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def check_finite(adapters: Adapters) -> None:
    """Raise ValueError for NaN or infinity, naming the site; not while tracing."""
    for path, p in adapters.items():
        for name, value in p.items():
            try:
                finite = bool(jnp.all(jnp.isfinite(value)))
            except jax.errors.ConcretizationTypeError:
                return
            if not finite:
                raise ValueError(
                    f"{path}: adapter array {name!r} holds NaN or infinity; "
                    "refusing to merge. Go back to an earlier checkpoint"
                )
