"""A base leaf in fewer bits: it is decoded where the model consumes it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class Coded(Protocol):
    """A pytree that stands in the variables for one floating array.

    The axes of its own arrays that are in front are those of the array, so that a layer
    of stacked ones is taken off all of them at once.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the array."""
        ...

    def decode(self) -> jax.Array:
        """Return the array."""
        ...
