"""One call of a model: what is traced, and what stays Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Call:
    """Arguments of a model, arrays apart from everything else.

    Arrays and `ShapeDtypeStruct`s are traced; Python values (`train=True`, names of
    mutable collections) stay what they are.
    """

    apply_fn: Callable[..., Any]
    variables: Any
    dynamic: list[Any]
    static: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(
        cls,
        apply_fn: Callable[..., Any],
        variables: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Call:
        """Sort the arguments of a call; `variables` is the structure of the first."""
        leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
        dynamic = [leaf for leaf in leaves if _is_array(leaf)]
        static = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
        return cls(apply_fn, variables, dynamic, static, structure)

    @property
    def examples(self) -> int:
        """The length of the first axis of the first array."""
        shapes = [leaf.shape for leaf in self.dynamic if len(leaf.shape)]
        return shapes[0][0] if shapes else 1

    def arguments(
        self, dynamic: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put arrays back among the Python values."""
        arrays = iter(dynamic)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
        return jax.tree.unflatten(self.structure, leaves)

    def trace(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        """Return the jaxpr, with inputs `[*leaves, *dynamic]`, and the output tree."""

        def function(leaves: Sequence[Any], dynamic: Sequence[Any]) -> Any:
            args, kwargs = self.arguments(dynamic)
            variables = jax.tree.unflatten(self.variables, leaves)
            return self.apply_fn(variables, *args, **kwargs)

        jaxpr, out = jax.make_jaxpr(function, return_shape=True)(
            list(leaves), self.dynamic
        )
        return jaxpr, jax.tree.structure(out)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


class _Array:
    """Marks the place of an array among the static arguments."""


_ARRAY = _Array()
