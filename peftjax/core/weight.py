"""An adapted weight as a symbol: what rule table 1 carries through the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from peftjax.core.site import Site
from peftjax.core.views import Axis, View
from peftjax.core.walker import Symbol


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "params", "bias", "key"),
    meta_fields=("site", "view", "stack"),
)
@dataclass(frozen=True)
class Weight(Symbol):
    """An adapted weight on its way through the model.

    Attributes:
        value: the frozen array, in the view that the model has made of it.
        params: adapter arrays, the stacked axes still to come in front.
        bias: `[*stack, out]` where the formula takes the bias, else None.
        key: dropout keys `[*stack]`, or None.
        site: the static facts.
        view: the axes of `value`.
        stack: the stacked axes still to come.
    """

    value: jax.Array
    params: dict[str, jax.Array]
    bias: jax.Array | None
    key: jax.Array | None
    site: Site
    view: View
    stack: tuple[Axis, ...]

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Weight:
        """Apply a function to all that carries the stacked axes in front."""
        carried = self.params, self.bias, self.key
        params, bias, key = jax.tree.map(function, carried)
        return replace(self, params=params, bias=bias, key=key)

    def place(self, axis: Axis) -> int:
        return self.stack.index(axis)

    def leading(self) -> Weight:
        """Bring the stacked axis that is first in the view to the front."""
        place = self.place(self.view[0])
        return self.map(lambda array: jnp.moveaxis(array, place, 0))

    def member(self) -> Weight:
        """Describe one layer, after the leading axis of every array was taken off."""
        rest = tuple(axis for axis in self.stack if axis != self.view[0])
        return replace(self, view=self.view[1:], stack=rest)
