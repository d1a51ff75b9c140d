"""A base leaf in fewer bits: it is decoded where the model consumes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax


class Coded(ABC):
    """A pytree that stands in the variables for one floating array.

    Attributes:
        shape: of the array.
        dtype: of the array.
    """

    shape: tuple[int, ...]
    dtype: Any

    @abstractmethod
    def decode(self) -> jax.Array:
        """Return the array."""

    @property
    def layered(self) -> bool:
        """Whether the first axis of all that it holds is the first of the array."""
        return False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("coded",),
    meta_fields=("function", "shape", "dtype"),
)
@dataclass(frozen=True, eq=False)
class Moved(Coded):
    """What a model has made of a coded leaf: it is laid out anew once it is decoded."""

    coded: Coded
    function: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: Any

    def decode(self) -> jax.Array:
        return self.function(self.coded.decode())


def moved(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to a value; to a coded one, once it is decoded."""
    if not isinstance(value, Coded):
        return function(value)
    after = jax.eval_shape(function, value.aval)
    return Moved(value, function, after.shape, after.dtype)


def decoded(value: Any) -> Any:
    """Return a value, decoded if it is coded."""
    return value.decode() if isinstance(value, Coded) else value


def is_coded(value: Any) -> bool:
    return isinstance(value, Coded)
