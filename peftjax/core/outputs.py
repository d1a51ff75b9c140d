"""Adapters on what a module returns: which modules there are, and how they are edited.

Inside a loop over stacked layers the arrays of one layer are wanted: they are put among
the module's own parameters, where `taps` finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core import paths
from peftjax.core.cost import dots
from peftjax.core.formula import cast
from peftjax.core.jaxpr import Call
from peftjax.core.method import Kind, Method, OutputMethod
from peftjax.core.plan import counted
from peftjax.core.site import Given, Leaves, Site
from peftjax.core.taps import OWN, Seen, Tap, tapped
from peftjax.core.uses import Trained

SUFFIX = ":output"
Rules = list[tuple[str, Method]]
_NOTE = "on a module's output; cannot merge"


def divided(rules: Sequence[tuple[str, Method]]) -> tuple[Rules, Rules]:
    """Return the rules on parameters, and those on what modules return."""
    sides: tuple[Rules, Rules] = [], []
    for pattern, method in rules:
        on_output = isinstance(method, OutputMethod)
        if on_output != pattern.endswith(SUFFIX):
            wanted = (
                f"of a module, ending in {SUFFIX!r}," if on_output else "of weights"
            )
            raise ValueError(
                f"rule {pattern!r}: expected the path {wanted} for "
                f"{type(method).__name__}, found another; write the rule for that or "
                "choose another method"
            )
        sides[on_output].append((pattern, method))
    return sides


def plan_outputs(
    call: Call, leaves: Leaves, rules: Sequence[tuple[str, Method]]
) -> tuple[tuple[Site, ...], Any]:
    """Return the sites of rules on outputs, but their cost, and the model's jaxpr.

    Raises:
        ValueError: a rule decides no output; a method does not fit; layers of a loop
            are not stacked along the first axes of their parameters, or a module's
            parameters are not where its path says.
    """
    found: dict[str, tuple[Any, Any, Seen]] = {}

    def look(seen: Seen, y: Any, x: Any) -> Any:
        found.setdefault(f"{seen.path}{SUFFIX}", (y.aval, x, seen))
        return y

    jaxpr, _ = _tapped(call, look).trace(leaves.avals)
    chosen = paths.match(list(found), rules, "output of a module")
    outer = {path: aval.shape for path, aval in zip(leaves.paths, leaves.avals)}
    sites: list[Site] = []
    for place, (path, (y, x, seen)) in enumerate(found.items()):
        if path not in chosen:
            continue
        site = Site(
            path,
            len(leaves.avals) + place,
            chosen[path][1],
            "prefix" if y.ndim == 2 and not y.shape[0] else "output",
            (*(stack := _stack(path, seen, outer)), y.shape[-1]),
            str(y.dtype),
            stack=stack,
            d_in=0 if x is None or not x.ndim else x.shape[-1],
            d_out=y.shape[-1],
            notes=(_NOTE,),
        )
        _check_kind(site)
        site.method.check(site.layer())
        sites.append(counted(site, 0, call.examples))
    return tuple(sites), jaxpr


def _check_kind(site: Site) -> None:
    if site.kind not in site.method.kinds:
        is_what: dict[Kind, str] = {
            "prefix": "the place of a prefix, a module that returns no rows",
            "output": "a module that returns something",
        }
        raise ValueError(
            f"{site.path}: {type(site.method).__name__} is for "
            f"{' or '.join(is_what[k] for k in site.method.kinds if k in is_what)}, "
            f"found {is_what[site.kind]}; narrow the rule or choose another method"
        )


def _stack(path: str, seen: Seen, outer: Mapping[Any, Any]) -> tuple[int, ...]:
    """Return the axes by which parameters have more outside of the module."""
    names, inside, _ = paths.spelled(seen.params)
    if not names:
        return ()
    name = f"{seen.holder}/{names[0]}".lstrip("/")
    if name not in outer:
        near = ", ".join(paths.nearest(name, [p for p in outer if p], 2))
        raise ValueError(
            f"{path}: expected the module's parameters at its path, {name!r}, found "
            f"none there; nearest: {near}. Does the function call a module that lies "
            "deeper in the variables? Give adapt the variables that this one takes"
        )
    whole, size = outer[name], tuple(inside[0].shape)
    stack = tuple(whole[: len(whole) - len(size)])
    if tuple(whole[len(stack) :]) != size or (stack and not seen.in_loops):
        raise ValueError(
            f"{path}: expected a module outside of loops, or in Linen one of layers "
            "stacked along the first axes of their parameters; found another. Adapt "
            "its weights, or write the layers one after the other"
        )
    return stack


def with_costs(
    sites: Sequence[Site], without: Any, edited: Any, examples: int
) -> tuple[Site, ...]:
    """Return the sites with the FLOPs that they add to a forward pass.

    Rows of a prefix cost what they cost the model; several share that equally.

    Args:
        sites: on outputs.
        without: the jaxpr of the model.
        edited: the jaxpr of the edited call.
        examples: how many a call has.
    """
    own = {site.path: dots(edited, within=_label(site.path)) for site in sites}
    prefixes = sum(site.kind == "prefix" for site in sites)
    if prefixes:
        rest = dots(edited) - dots(without) - sum(own.values())
        for site in (site for site in sites if site.kind == "prefix"):
            own[site.path] += rest // prefixes
    return tuple(replace(s, flops=own[s.path] // max(examples, 1)) for s in sites)


def _label(path: str) -> str:
    return f"edit of {path}"


def _labelled(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function under a name by which its part of a jaxpr is known."""

    def edit(*arguments: Any) -> Any:
        return function(*arguments)

    edit.__name__ = edit.__qualname__ = _label(path)
    return jax.jit(edit)


def edited(
    call: Call,
    sites: Sequence[Site],
    places: Mapping[str, Given],
    key: jax.Array | None,
) -> Call:
    """Return a call whose modules return what their adapters make of it.

    `places` are the sites' arrays by path, or the shapes of these. Dropout follows
    another key at each call of a module; the iterations of a loop that shares a
    module's parameters drop alike.
    """
    known = {site.path: site for site in sites}
    carried = {path: (places[path], site.key(key)) for path, site in known.items()}

    def edit(own: Any, times: Counter[str], seen: Seen, y: jax.Array, x: Any) -> Any:
        site = known.get(f"{seen.path}{SUFFIX}")
        if site is None:
            return y
        place, key = seen.own if site.stack else own[site.path]
        if key is not None:
            key = jax.random.fold_in(key, times[site.path])
        times[site.path] += 1
        return _labelled(site.path, partial(_edit, site.method))(place, y, x, key)

    def apply_fn(variables: Any, *rest: Any, **kwargs: Any) -> Any:
        *args, own = rest
        for path in (path for path, site in known.items() if site.stack):
            variables = _inserted(variables, path, own[path])
        with tapped(partial(edit, own, Counter[str]())):
            return call.apply_fn(variables, *args, **kwargs)

    args, kwargs = call.arguments(call.dynamic)
    return Call.of(apply_fn, call.variables, (*args, carried), kwargs)


def _edit(method: Method, place: Given, y: Any, x: Any, key: Any) -> jax.Array:
    assert isinstance(method, OutputMethod)
    p = cast(method, place.params, y.dtype)
    new = method.edit(p, y, x, key=key).astype(y.dtype)
    return new if place.is_base is None else jnp.where(place.is_base, y, new)


def trained(call: Call) -> list[Any]:
    """Return what goes into an edited call; no model stops the adapters' gradient."""
    (*_, carried), _ = call.arguments(call.dynamic)
    own = {id(leaf) for place, _ in carried.values() for leaf in jax.tree.leaves(place)}
    return [Trained(leaf) if id(leaf) in own else leaf for leaf in call.dynamic]


def _tapped(call: Call, tap: Tap) -> Call:
    def apply_fn(*args: Any, **kwargs: Any) -> Any:
        with tapped(tap):
            return call.apply_fn(*args, **kwargs)

    return replace(call, apply_fn=apply_fn)


def _inserted(variables: Any, path: str, value: Any) -> Any:
    parts = [part for part in path.removesuffix(SUFFIX).split("/") if part]
    if "params" in variables:
        parts = ["params", *parts]

    def put(tree: Any, parts: Sequence[str]) -> Any:
        if not parts:
            return {**tree, OWN: value}
        first, *rest = parts
        return {**tree, first: put(tree.get(first, {}), rest)}

    return put(variables, parts)
