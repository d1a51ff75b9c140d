"""Which arrays a site has: fresh ones, those of given adapters, what is asked of them.

Arrays that all sites share lie under the path `""`; nobody else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core import paths
from peftjax.core.axes import arrange
from peftjax.core.gates import constant_gates
from peftjax.core.site import Adapters, Given, Leaves, Site


def by_form(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function `(site, *arrays)` once for all sites of one form.

    Inside a user's own `jit` it is a part of that program. A method that cannot be
    hashed runs without a compiled program.
    """
    program = jax.jit(function, static_argnums=0)

    def call(site: Site, *arguments: Any) -> Any:
        try:
            hash(site.method)
        except TypeError:
            return function(site, *arguments)
        # a form has no path: whoever calls this names the site in errors
        return program(site.form, *arguments)

    return call


def fresh(sites: Sequence[Site], leaves: Sequence[Any], key: jax.Array) -> Adapters:
    """Return fresh adapters; see `Peft.init`."""
    adapters: Adapters = {}
    for site in sites:
        kernel = leaves[site.index] if site.method.needs_kernel else None
        if isinstance(kernel, jax.ShapeDtypeStruct):
            raise ValueError(
                f"{site.path}: {type(site.method).__name__} starts from the weight "
                "itself, but adapt was given only its shape; pass init(key, variables)"
            )
        p = _fresh(site, key, site.index, kernel)
        for name in site.method.shared:
            adapters.setdefault("", {}).setdefault(name, p.pop(name))
        adapters[site.path] = p
    return adapters


@by_form
def _fresh(site: Site, key: jax.Array, index: int, kernel: Any) -> dict[str, jax.Array]:
    """Return fresh arrays of one site, stacked layers included, float32."""
    if site.method.replaces:
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        # a copy, lest donating the adapters takes the model's own buffers
        return {"value": jnp.array(kernel, wide, copy=True)}

    def layer(key: jax.Array, kernel: jax.Array | None = None) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    # by index of the leaf, so that a start does not depend on the other rules
    key = jax.random.fold_in(key, index)
    arguments = [jax.random.split(key, site.stack) if site.stack else key]
    if kernel is not None:
        wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        arguments.append(arrange(wide, site.stored, site.groups))
    p = dict(site.stacked(layer)(*arguments))
    for name in site.method.shared:
        # every layer made its own; the first one's serves all
        p[name] = p[name][(0,) * len(site.stack)]
    return p


def abstract(site: Site) -> tuple[dict[str, Any], jax.ShapeDtypeStruct]:
    """Return the shapes of the adapter arrays and of the kernel of one layer."""

    def init(key: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    kernel = jax.ShapeDtypeStruct((site.d_in, site.d_out), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(init, key, kernel), kernel


def of_site(
    site: Site, adapters: Adapters, given: Mapping[str, Given] | None = None
) -> Given:
    """Return a site's arrays, shared ones included, and what is given beside them."""
    p = dict(adapters[site.path])
    for name in site.method.shared:
        value = adapters[""][name]
        p[name] = jnp.broadcast_to(value, (*site.stack, *value.shape))
    return replace((given or {}).get(site.path, Given()), params=p)


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
        value = own.params["value"]
        if value.shape != site.shape:
            raise ValueError(
                f"{site.path}: expected an adapter value of shape {site.shape}, found "
                f"{value.shape}"
            )
        value = value.astype(site.dtype)
        if own.is_base is not None:
            value = jnp.where(own.is_base, leaves[site.index], value)
        values[site.index] = value
    return values


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


def check_adapters(
    sites: Sequence[Site], adapters: Adapters, given: Mapping[str, Given]
) -> None:
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
        shared = site.method.shared
        own = {n: (*site.stack, *s) for n, s in site.arrays if n not in shared}
        found = {n: tuple(value.shape) for n, value in adapters[site.path].items()}
        # a bank pads its adapters to one rank
        padded = given.get(site.path, Given()).is_base is not None
        same = own.keys() == found.keys() if padded else own == found
        if site.arrays and not same:
            raise ValueError(
                f"{site.path}: expected the arrays of {site.method}, {_listed(own)}; "
                f"found {_listed(found)}; make them with init or load them for these "
                "rules"
            )


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def check_finite(adapters: Adapters) -> None:
    """Raise ValueError for NaN or infinity, naming the site; not while tracing."""
    finite = {path: _finite(p) for path, p in adapters.items()}
    for path, p in finite.items():
        for name, value in p.items():
            try:
                known = bool(value)
            except jax.errors.ConcretizationTypeError:
                return
            if not known:
                raise ValueError(
                    f"{path}: adapter array {name!r} holds NaN or infinity; "
                    "refusing to merge. Go back to an earlier checkpoint"
                )


def _finite(p: dict[str, Any]) -> dict[str, Any]:
    if all(isinstance(value, np.ndarray) for value in p.values()):
        return {name: np.isfinite(value).all() for name, value in p.items()}
    return _finite_on_device(p)


@jax.jit
def _finite_on_device(p: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.all(jnp.isfinite(value)) for name, value in p.items()}
