"""A base in parts or in codes: a leaf is made whole where it is consumed.

Left to itself, the compiler may as well move activations to the parts of a weight. Here
a leaf stays in its parts while the model only lays it out anew, takes a layer of it or
carries it into loops, branches and recomputation; the equation that computes with it
gets it whole. So what is gathered is the slice of one layer, inside the loop; the
activations stay split over the batch; and what was gathered is not kept for the
backward pass, but gathered again. A leaf in codes is decoded at the same place, from
codes that were gathered, and the backward pass keeps the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from peftjax.core.axes import whole
from peftjax.core.coded import Coded, decoded
from peftjax.core.jaxpr import Symbol
from peftjax.core.merge import merge_used
from peftjax.core.run import Runner
from peftjax.core.site import Site
from peftjax.core.uses import Leaf, Merged, Token, Weight

# What is not kept for the backward pass: whole weights, however they are laid out.
_AGAIN = ("reshape", "sharding_constraint", "transpose")


def _kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in _AGAIN


@dataclass(frozen=True)
class Layout:
    """How the arrays of one call lie on a mesh.

    Attributes:
        batch: of the first axis of a batch; None where nothing is said of places.
        examples: the length of that axis.
    """

    batch: NamedSharding | None
    examples: int

    def gathered(self, value: jax.Array) -> jax.Array:
        """Ask for a weight whole on every device."""
        if self.batch is None:
            return value
        everywhere = NamedSharding(self.batch.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(value, everywhere)

    def split(self, values: Sequence[Any]) -> list[Any]:
        """Keep the rows of what has one row per example where those of the batch are.

        Of the other axes nothing is said.
        """
        if self.batch is None:
            return list(values)
        parts = self.examples // self.batch.shard_shape((self.examples,))[0]
        return [
            _split(v, self.batch) if self._has_rows(v, parts) else v for v in values
        ]

    def _has_rows(self, value: Any, parts: int) -> bool:
        if isinstance(value, Symbol):  # an adapter's array, whole on every device
            return False
        fits = jnp.shape(value)[:1] == (self.examples,) and self.examples % parts == 0
        return fits and jnp.issubdtype(value.dtype, jnp.number)


def _split(value: jax.Array, batch: NamedSharding) -> jax.Array:
    others = [PartitionSpec.UNCONSTRAINED] * (value.ndim - 1)
    spec = PartitionSpec(*batch.spec[:1], *others)
    sharding = NamedSharding(batch.mesh, spec)
    return jax.lax.with_sharding_constraint(value, sharding)


class Gatherer(Runner):
    """The rules on arrays of which the model's own are in parts or in codes."""

    def __init__(
        self,
        owners: Mapping[int, Site],
        rounded: dict[str, str],
        random: bool,
        layout: Layout,
    ) -> None:
        super().__init__(owners, rounded, random)
        self.layout, self._depth = layout, 0

    def call(
        self, closed: Any, leaves: Sequence[Any], dynamic: Sequence[Any]
    ) -> list[Any]:
        apart = self.layout.batch is not None
        symbols = [
            Leaf(leaf, i, whole(leaf.shape))
            if not isinstance(leaf, Symbol) and (apart or isinstance(leaf, Coded))
            else leaf
            for i, leaf in enumerate(leaves)
        ]
        results = super().call(closed, symbols, self.layout.split(dynamic))
        return self.layout.split(results)

    def consumed(self, weight: Weight, function: Callable[[Weight], Any]) -> Any:
        return self._again([weight], lambda: function(self._whole(weight)))

    def has_members(self, leaf: Leaf) -> bool:
        layered = not isinstance(leaf.value, Coded) or leaf.value.layered
        return layered and super().has_members(leaf)

    def ended(self, symbol: Any, why: str) -> Any:
        if isinstance(symbol, Weight):
            return merge_used(self._whole(symbol), why)
        if self._is_base(symbol):
            return self._whole(symbol).value
        return super().ended(symbol, why)

    def scan(self, token: Token, step: Any, carry: Any, xs: Any, **options: Any) -> Any:
        def split(carried: list[Any], sliced: Any) -> Any:
            return step(self.layout.split(carried), sliced)

        with self._inside():
            return super().scan(token, split, carry, xs, **options)

    def _remat(self, eqn: Any, operands: list[Any]) -> list[Any]:
        with self._inside():
            return super()._remat(eqn, operands)

    @contextmanager
    def _inside(self) -> Generator[None]:
        self._depth += 1
        yield
        self._depth -= 1

    def _move(self, eqn: Any, operands: list[Any]) -> list[Any]:
        leaf, *others = operands
        if type(leaf) is Leaf and prod(eqn.outvars[0].aval.shape) > prod(
            leaf.value.shape
        ):
            # whole before it is as large as an activation
            leaf = self._whole(leaf)
            if self._is_base(leaf):
                return self.evaluate(eqn, [leaf.value, *others])
        return super()._move(eqn, [leaf, *others])

    def _unknown(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        whole = [self._whole(o) if isinstance(o, Merged) else o for o in operands]
        unknown = super()._unknown
        symbols = [o for o in whole if isinstance(o, Symbol)]
        if all(map(self._is_base, symbols)):
            return self._again(symbols, lambda: unknown(eqn, whole))
        return unknown(eqn, whole)

    def _is_base(self, value: Any) -> bool:
        """Whether it is a leaf that has no adapter, nor waits for a product."""
        return type(value) is Leaf and value.index not in self.owners

    def _whole(self, symbol: Any) -> Any:
        if isinstance(symbol, Merged):
            delta = self.layout.gathered(symbol.delta)
            symbol = replace(symbol, delta=delta)
        value = jax.tree.map(self.layout.gathered, symbol.value)
        return replace(symbol, value=decoded(value))

    def _again(self, symbols: Sequence[Any], function: Callable[[], Any]) -> Any:
        """Call what makes leaves whole, so that it is done again, and they not kept.

        In a loop or a recomputation the backward pass is apart already.
        """
        apart = self._depth > 0
        coded = any(isinstance(symbol.value, Coded) for symbol in symbols)
        policy = jax.checkpoint_policies.nothing_saveable if coded else _kept
        return jax.checkpoint(function, policy=policy, prevent_cse=not apart)()
