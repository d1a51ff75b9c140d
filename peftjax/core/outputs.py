"""Adapters on what a module returns: which modules there are, and how they are edited.

Linen lets an interceptor stand around every method of every module, in loops and
recomputations too. Inside a loop over stacked layers the arrays of one layer are
wanted: they lie among the module's own parameters, so that whatever takes a layer off
the stack of the parameters takes its adapter off with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.core import arrays, paths
from peftjax.core.cost import dots
from peftjax.core.formula import cast
from peftjax.core.jaxpr import Call
from peftjax.core.method import Method, OutputMethod
from peftjax.core.plan import counted
from peftjax.core.site import Adapters, Given, Leaves, Site
from peftjax.core.uses import Trained

SUFFIX = ":output"
_NAME = "peftjax:output"


@dataclass(frozen=True)
class Seen:
    """A module that is being called.

    Attributes:
        path: of the module.
        holder: path of the module itself, or of the nearest around it with parameters.
        params: the parameters of that one, as they are inside loops.
        own: the adapter's arrays among the module's parameters, if they lie there.
        in_loops: whether arrays may lie there.
    """

    path: str
    holder: str
    params: Any
    own: Any = None
    in_loops: bool = True


# What is done to the output y of a module that was called with x, None if no array.
Tap = Callable[[Seen, jax.Array, Any], Any]
Rules = list[tuple[str, Method]]
TAP: ContextVar[Tap | None] = ContextVar("tap", default=None)


@contextmanager
def tapped(tap: Tap) -> Generator[None]:
    """Let `tap` edit what modules return, in Linen; others ask for `TAP`, as `nnx`."""

    def around(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = next_fun(*args, **kwargs)
        if context.method_name != "__call__" or context.module.scope is None:
            return y
        return passed(tap, partial(_seen, context.module), y, args, kwargs)

    token = TAP.set(tap)
    try:
        with nn.intercept_methods(around):
            yield
    finally:
        TAP.reset(token)


def passed(tap: Tap, seen: Callable[[], Seen], y: Any, args: Any, kwargs: Any) -> Any:
    """Give a tap the array that a module returns, and put back what it makes of it."""
    found, x = _main(y), _main(next(iter((*args, *kwargs.values())), None))
    if found is None or not jnp.issubdtype(found.dtype, jnp.floating):
        return y
    beside = x is not None and x.shape[:-1] == found.shape[:-1]
    return _with(y, tap(seen(), found, x if beside else None))


def _main(value: Any) -> Any:
    """Return an array; of a tuple its first entry's, of a mapping that of "x"."""
    if type(value) is tuple and value:
        return _main(value[0])
    if isinstance(value, Mapping):
        return _main(value.get("x"))  # pyright: ignore[reportUnknownArgumentType]
    return value if hasattr(value, "dtype") else None


def _with(value: Any, array: Any) -> Any:
    """Return a value with its main array replaced."""
    if type(value) is tuple:
        return (_with(value[0], array), *value[1:])
    if isinstance(value, Mapping):
        return {**value, "x": _with(value["x"], array)}
    return array


def _seen(module: nn.Module) -> Seen:
    path, own = "/".join(module.path), module.get_variable("params", _NAME)
    holder: Any = module
    while not holder.variables.get("params") and isinstance(holder.parent, nn.Module):
        holder = holder.parent
    inside = holder.variables.get("params", {})
    return Seen(path, "/".join(holder.path), inside, own)


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
) -> tuple[Site, ...]:
    """Return the sites of rules on outputs.

    Raises:
        ValueError: a rule decides no output; a method does not fit; layers of a loop
            are not stacked along the first axes of their parameters.
    """
    found: dict[str, tuple[Any, Any, Any]] = {}
    outer = {path: aval.shape for path, aval in zip(leaves.paths, leaves.avals)}

    def look(seen: Seen, y: Any, x: Any) -> Any:
        found.setdefault(f"{seen.path}{SUFFIX}", (y.aval, x, _stack(seen, outer)))
        return y

    _tapped(call, look).trace(leaves.avals)
    chosen = paths.match(list(found), rules, "output of a module")
    places, count = list(found), len(leaves.avals)
    sites: list[Site] = []
    for path in (path for path in places if path in chosen):
        y, x, stack = found[path]
        if stack is None:
            raise ValueError(
                f"{path}: expected a module outside of loops, or in Linen one of "
                "layers stacked along the first axes of their parameters; found "
                "another. Adapt its weights, or write the layers one after the other"
            )
        site = Site(
            path,
            count + places.index(path),
            chosen[path][1],
            "output",
            (*stack, y.shape[-1]),
            str(y.dtype),
            stack=stack,
            d_in=0 if x is None or not x.ndim else x.shape[-1],
            d_out=y.shape[-1],
            notes=("on a module's output; cannot merge",),
        )
        site.method.check(site.layer())
        sites.append(counted(site, _flops(site, y, x), call.examples))
    return tuple(sites)


def _stack(seen: Seen, outer: Mapping[str | None, Any]) -> tuple[int, ...] | None:
    """Return the axes by which parameters have more outside of the module."""
    names, inside, _ = paths.spelled(seen.params)
    if not names:
        return ()
    whole = outer.get(f"{seen.holder}/{names[0]}".lstrip("/"))
    size = tuple(inside[0].shape)
    if whole is None or tuple(whole[len(whole) - len(size) :]) != size:
        return None
    stack = tuple(whole[: len(whole) - len(size)])
    return stack if seen.in_loops or not stack else None


def _flops(site: Site, y: Any, x: Any) -> int:
    p, _ = arrays.abstract(site)
    x = None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)
    y = jax.ShapeDtypeStruct(y.shape, y.dtype)
    edit = _edit_of(site)
    jaxpr = jax.make_jaxpr(lambda p, y, x: edit(p, y, x, key=None))(p, y, x)
    return prod(site.stack) * dots(jaxpr)


def _edit_of(site: Site) -> Callable[..., Any]:
    assert isinstance(site.method, OutputMethod)
    return site.method.edit


def edited(
    call: Call,
    sites: Sequence[Site],
    adapters: Adapters,
    given: Mapping[str, Given],
    key: jax.Array | None,
) -> Call:
    """Return a call whose modules return what their adapters make of it."""
    known = {site.path: site for site in sites}
    carried = {
        path: (arrays.of_site(site, adapters, given), site.key(key))
        for path, site in known.items()
    }

    def edit(own: Any, seen: Seen, y: jax.Array, x: Any) -> jax.Array:
        site = known.get(f"{seen.path}{SUFFIX}")
        if site is None:
            return y
        place, key = seen.own if site.stack else own[site.path]
        p = cast(site.method, place.params, y.dtype)
        new = _edit_of(site)(p, y, x, key=key).astype(y.dtype)
        return new if place.is_base is None else jnp.where(place.is_base, y, new)

    def apply_fn(variables: Any, *rest: Any, **kwargs: Any) -> Any:
        *args, own = rest
        for path in (path for path, site in known.items() if site.stack):
            variables = _inserted(variables, path, own[path])
        with tapped(partial(edit, own)):
            return call.apply_fn(variables, *args, **kwargs)

    args, kwargs = call.arguments(call.dynamic)
    return Call.of(apply_fn, call.variables, (*args, carried), kwargs)


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
            return {**tree, _NAME: value}
        first, *rest = parts
        return {**tree, first: put(tree.get(first, {}), rest)}

    return put(variables, parts)
