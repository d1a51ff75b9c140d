"""The update itself: weighted losses, gradients, optimizer, what else moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from peftjax.parallel import sharding
from peftjax.training.losses import Weighted
from peftjax.training.state import TrainState

Batch = Mapping[str, Any]
Loss = Callable[[Callable[..., Any], Batch, jax.Array], Any]
UpdateFrozen = Callable[[Any, Any, Any, jax.Array, jax.Array], Any]

MASKS = ("mask", "token_mask")
# Folded into the key of an update for `update_frozen`; micro-batches count from 0.
_FROZEN_KEY = 2**32 - 1


@dataclass(frozen=True)
class OnMesh:
    """How one program over the whole mesh communicates: the compiler sees to it."""

    mesh: Mesh

    def base(self, variables):
        return variables

    def key(self, key):
        return key

    def total(self, sums):
        # Else it may split the optimizer, and gather each moment instead of a gradient.
        return jax.lax.with_sharding_constraint(sums, sharding.replicated(self.mesh))

    def mean(self, mutable):
        return self.total(mutable)


class PerDevice:
    """How one program per device communicates: by collectives."""

    def base(self, variables):
        return sharding.gather(variables)

    def key(self, key):
        return jax.random.fold_in(key, jax.lax.axis_index(sharding.DEVICES))

    def total(self, sums):
        return jax.lax.psum(sums, sharding.DEVICES)

    def mean(self, mutable):
        def mean(leaf):
            inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
            return jax.lax.pmean(leaf, sharding.DEVICES) if inexact else leaf

        return jax.tree.map(mean, mutable)


@dataclass(frozen=True)
class Update:
    """`(state, variables, batch) -> (state, metrics)`, to be compiled.

    Attributes:
        peft: what `adapt` returned.
        optimizer: of the trainable leaves.
        loss: as for `make_step`.
        accumulate: number of micro-batches.
        devices: `OnMesh` or `PerDevice`.
        update_frozen: as for `make_step`.
    """

    peft: Any
    optimizer: optax.GradientTransformation
    loss: Loss
    accumulate: int
    devices: OnMesh | PerDevice
    update_frozen: UpdateFrozen | None

    def __call__(self, state: TrainState, variables: Any, batch: Batch):
        base = self.devices.base(variables)

        def penalty(trainable):
            return self.peft.penalty(self.peft.combine(trainable, state.frozen))

        sums, mutable = self._accumulated(state, base, batch)
        total, weight, grads = self.devices.total(sums)
        counts = weight != 0
        weight_or_1 = jnp.where(counts, weight, 1.0)
        extra, extra_grads = jax.value_and_grad(penalty)(state.trainable)
        grads = jax.tree.map(lambda g, e: g / weight_or_1 + e, grads, extra_grads)
        updates, opt_state = self.optimizer.update(
            grads, state.opt_state, state.trainable
        )
        trainable = optax.apply_updates(state.trainable, updates)
        frozen = self._moved(state, trainable, grads)
        new = trainable, frozen, opt_state, self.devices.mean(mutable)
        old = state.trainable, state.frozen, state.opt_state, state.mutable
        # A batch of which nothing counts moves nothing, not even a moment.
        kept = jax.tree.map(partial(jnp.where, counts), new, old)
        metrics = {
            "loss": total / weight_or_1,
            "penalty": extra,
            "grad_norm": jnp.where(counts, optax.tree.norm(grads), 0.0),
            "weight": weight,
        }
        trainable, frozen, opt_state, mutable = kept
        step = state.step + 1
        return TrainState(
            trainable, frozen, opt_state, step, state.key, mutable
        ), metrics

    def _moved(self, state: TrainState, trainable: Any, grads: Any) -> Any:
        """Return the frozen leaves after the update."""
        if self.update_frozen is None:
            return state.frozen
        # Not the key of `devices`, which differs by device.
        key = jax.random.fold_in(state.key, state.step)
        key = jax.random.fold_in(key, _FROZEN_KEY)
        frozen = self.update_frozen(state.frozen, trainable, grads, state.step, key)
        _check_like("update_frozen returned", state.frozen, frozen)
        return frozen

    def _summed(self, trainable, mutable, state, base, batch, key):
        """Return the weighted sum of the losses; and of the weights, and updates."""
        adapter_key, model_key = jax.random.split(key)
        adapters = self.peft.combine(trainable, state.frozen)
        variables = {**base, **mutable} if mutable else base
        apply = partial(self.peft.apply, variables, adapters, adapter_key=adapter_key)
        weighted, updates = loss_parts(self.loss(apply, batch, model_key))
        _check_updates(mutable, updates)
        losses = weighted.losses.astype(jnp.float32)
        weights = _masked(losses, weighted.weights, batch)
        losses = jnp.where(weights != 0, losses, 0.0)
        return (losses * weights).sum(), (weights.sum(), updates)

    def _accumulated(self, state: TrainState, base: Any, batch: Batch):
        """Return loss, weight and gradients, each summed, and the mutable collections.

        The sums are over the micro-batches.
        """
        key = self.devices.key(jax.random.fold_in(state.key, state.step))
        gradient = jax.value_and_grad(self._summed, has_aux=True)
        if self.accumulate == 1:
            (total, (weight, mutable)), grads = gradient(
                state.trainable, state.mutable, state, base, batch, key
            )
            return (total, weight, grads), mutable

        def micro(carry, inputs):
            sums, mutable = carry
            number, part = inputs
            part_key = jax.random.fold_in(key, number)
            (total, (weight, mutable)), grads = gradient(
                state.trainable, mutable, state, base, part, part_key
            )
            return (jax.tree.map(jnp.add, sums, (total, weight, grads)), mutable), None

        def interleaved(leaf):
            return leaf.reshape(-1, self.accumulate, *leaf.shape[1:]).swapaxes(0, 1)

        zeros = jax.tree.map(jnp.zeros_like, state.trainable)
        start = (jnp.float32(0), jnp.float32(0), zeros), state.mutable
        parts = jnp.arange(self.accumulate), jax.tree.map(interleaved, dict(batch))
        return jax.lax.scan(micro, start, parts)[0]


def loss_parts(returned: Any) -> tuple[Weighted, Any]:
    """Return losses with weights, and the updates of mutable collections."""
    updates = {}
    if isinstance(returned, tuple) and not isinstance(returned, Weighted):
        if len(returned) != 2:
            raise ValueError(
                f"the loss returned a tuple of {len(returned)}: expected losses [B] or "
                "[B, T], Weighted(losses, weights), or a pair of one of them and the "
                "updates of the mutable collections"
            )
        returned, updates = returned
    if not isinstance(returned, Weighted):
        returned = Weighted(returned, jnp.ones(jnp.shape(returned), jnp.float32))
    return returned, updates


def _masked(losses: jax.Array, weights: jax.Array, batch: Batch) -> jax.Array:
    """Return the weights of the losses, float32, with the masks of the batch."""
    factors = {"Weighted.weights": weights}
    factors |= {f"batch[{name!r}]": batch[name] for name in MASKS if name in batch}
    total = jnp.ones(losses.shape, jnp.float32)
    for name, factor in factors.items():
        if losses.shape[: factor.ndim] != factor.shape:
            raise ValueError(
                f"{name} has shape {factor.shape}: expected that of the losses, "
                f"{losses.shape}, or its first axes"
            )
        factor = factor.reshape(factor.shape + (1,) * (losses.ndim - factor.ndim))
        total *= factor.astype(jnp.float32)
    return total


def _check_updates(mutable: Mapping[str, Any], updates: Mapping[str, Any]) -> None:
    if set(mutable) != set(updates):
        raise ValueError(
            f"the loss returned updates of {sorted(updates) or 'no collection'} and "
            f"the state carries {sorted(mutable) or 'none'}: give create_state(..., "
            "mutable=[...]) the names that the loss passes to apply(..., mutable=[...])"
            ", and return (losses, updates) from the loss"
        )
    _check_like("the loss returned updates with", mutable, updates)


def _check_like(what: str, old: Any, new: Any) -> None:
    """Raise ValueError unless two trees have one structure, shapes and dtypes."""
    expected, found = _facts(old), _facts(new)
    for path in [*expected, *found]:
        if expected.get(path) != found.get(path):
            raise ValueError(
                f"{what} another {path}: expected {expected.get(path, 'none')}, found "
                f"{found.get(path, 'none')}"
            )


def _facts(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        )
        for path, leaf in leaves
    }
