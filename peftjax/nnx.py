"""The bridge to NNX: a module as `(apply_fn, variables)`, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from peftjax.core.taps import TAP, Seen, passed

Variables = dict[str, Any]


def from_nnx(module: nnx.Module) -> tuple[Callable[..., Any], Variables]:
    """Split an NNX module into a pure function and its variables.

    Args:
        module: any module; it is not changed.

    Returns:
        `(apply_fn, variables)`. `variables` is `{"params": ..., "state": ...}`, plain
        nested dicts: the `nnx.Param`s, and everything else (batch statistics, random
        streams). `apply_fn(variables, *args, **kwargs)` calls the module; with
        `mutable=True` it returns `(output, {"state": ...})`, as Linen does.

    >>> import jax.numpy as jnp
    >>> module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    >>> apply_fn, variables = from_nnx(module)
    >>> sorted(variables["params"])
    ['bias', 'kernel']
    >>> apply_fn(variables, jnp.ones((2, 3))).shape
    (2, 4)
    """
    graph, params, state = nnx.split(module, nnx.Param, ...)
    abstract = jax.tree.map(_abstract, (params, state))

    def apply_fn(
        variables: Variables, *args: Any, mutable: bool = False, **kwargs: Any
    ) -> Any:
        parts = _filled(abstract, variables)
        copy = nnx.merge(graph, *parts, copy=True)
        if TAP.get() is not None:
            _tapped(copy)
        output = copy(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        if not mutable:
            return output
        _, _, after = nnx.split(copy, nnx.Param, ...)
        return output, {"state": nnx.to_pure_dict(after)}

    variables = {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}
    return apply_fn, variables


def to_nnx(module: nnx.Module, variables: Variables) -> nnx.Module:
    """Return a copy of a module that holds the given (merged) variables.

    Args:
        module: the module that was split; it is not changed.
        variables: in the form that `from_nnx` returned.
    """
    graph, params, state = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graph, *_filled((params, state), variables), copy=True)


def _tapped(module: nnx.Module) -> None:
    """Let the modules of a copy give what they return to the tap, by a class of each.

    In a loop of stacked layers (`nnx.scan`) they have no arrays of one layer; a rule
    there is refused.
    """
    for names, part in list(nnx.iter_modules(module)):
        path, kind = "/".join(map(str, names)), type(part)

        def around(
            self: Any, *args: Any, _path: str = path, _kind: Any = kind, **kwargs: Any
        ) -> Any:
            y: Any = _kind.__call__(self, *args, **kwargs)
            tap = TAP.get()

            def seen() -> Seen:
                params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
                return Seen(_path, _path, params, in_loops=False)

            return y if tap is None else passed(tap, seen, y, args, kwargs)

        if callable(part):
            metaclass: Any = type(kind)
            own = metaclass(kind.__name__, (kind,), {"__call__": around})
            object.__setattr__(part, "__class__", own)


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _filled(parts: tuple[Any, Any], variables: Variables) -> tuple[Any, Any]:
    params, state = jax.tree.map(lambda leaf: leaf, parts)
    nnx.replace_by_pure_dict(params, variables["params"])
    nnx.replace_by_pure_dict(state, variables["state"])
    return params, state
