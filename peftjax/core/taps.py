"""Modules as they are called: what each returns is shown to a tap, which may edit it.

Linen lets an interceptor stand around every method of every module, in loops and
recomputations too. Inside a loop over stacked layers the arrays of one layer are
wanted: they lie among the module's own parameters, so that whatever takes a layer off
the stack of the parameters takes its adapter off with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

OWN = "peftjax:output"  # the adapter's arrays among a module's parameters


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
    path, own = "/".join(module.path), module.get_variable("params", OWN)
    holder: Any = module
    while not holder.variables.get("params") and isinstance(holder.parent, nn.Module):
        holder = holder.parent
    inside = holder.variables.get("params", {})
    return Seen(path, "/".join(holder.path), inside, own)
