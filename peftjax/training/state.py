"""The state of training: adapters, optimizer state, step and key; never the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from peftjax.parallel.sharding import put, replicated


class TrainState(NamedTuple):
    """All that changes during training, and all that a checkpoint holds.

    Attributes:
        trainable: the adapter leaves that are differentiated.
        frozen: the adapter leaves that are not.
        opt_state: of `trainable` alone.
        step: int32 scalar, number of updates done.
        key: a PRNG key; update t draws from `fold_in(key, t)`.
        mutable: collections of the model that training moves, `{name: tree}`, such as
            the running statistics of BatchNorm.
    """

    trainable: Any
    frozen: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    mutable: dict[str, Any] = {}

    def variables(self, base: Any) -> Any:
        """Return the model's variables with the mutable collections of this state."""
        return {**base, **self.mutable} if self.mutable else base


def create_state(
    peft: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    *,
    variables: Any = None,
    adapters: Any = None,
    mutable: Sequence[str] = (),
) -> TrainState:
    """Return the state before the first update, replicated over the mesh.

    Args:
        peft: what `adapt` returned.
        optimizer: initialised on the trainable leaves only.
        key: a PRNG key, for the fresh adapters and the dropout of training.
        mesh: a mesh of `make_mesh`.
        variables: the base, for methods whose `init` reads the kernel.
        adapters: start from these instead of fresh ones.
        mutable: names of the collections of `variables` that training moves; what the
            loss passes to `apply(..., mutable=[...])`.

    Raises:
        ValueError: no leaf would be trained, or `variables` lacks a collection.
    """
    state = fresh_state(peft, optimizer, key, variables, adapters, mutable)
    # A copy: donation of the state must not delete the caller's adapters.
    return jax.tree.map(lambda leaf: put(jnp.copy(leaf), replicated(mesh)), state)


def fresh_state(
    peft: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    variables: Any = None,
    adapters: Any = None,
    mutable: Sequence[str] = (),
) -> TrainState:
    """Return the state of `create_state` before it is placed.

    A pure function of key, variables and adapters: under `jax.jit` it is one program,
    where `create_state` compiles one for each shape of each operation.

    Raises:
        ValueError: as `create_state`.
    """
    init_key, train_key = jax.random.split(key)
    if adapters is None:
        adapters = peft.init(init_key, variables)
    trainable, frozen = peft.partition(adapters)
    if sum(leaf.size for leaf in jax.tree.leaves(trainable)) == 0:
        methods = sorted({f"{site.path}: {site.method}" for site in peft.sites})
        raise ValueError(
            "nothing to train: no adapter leaf is trainable; expected at least one "
            f"rule with a method that trains, found {methods or 'no adapted site'}"
        )
    collections = _collections(variables, mutable)
    opt_state = optimizer.init(trainable)
    return TrainState(
        trainable, frozen, opt_state, jnp.int32(0), train_key, collections
    )


def _collections(variables: Any, names: Sequence[str]) -> dict[str, Any]:
    there = {} if variables is None else variables
    if isinstance(names, str) or any(n == "params" or n not in there for n in names):
        raise ValueError(
            f"mutable={names!r}: expected a list of collections of `variables` other "
            f"than params; found {[*there]}"
        )
    return {name: there[name] for name in names}
