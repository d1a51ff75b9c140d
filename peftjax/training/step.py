"""One update of the adapters, under `jit` on a mesh or under `pmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from peftjax.parallel import sharding
from peftjax.training.state import TrainState

Batch = Mapping[str, Any]
Loss = Callable[[Callable[..., Any], Batch, jax.Array], jax.Array]


@dataclass(frozen=True)
class Step:
    """A compiled update: `state, metrics = step(state, variables, batch)`.

    The state given is donated, that is, deleted. Metrics are float32 scalars on the
    devices: `loss` (without the penalty), `penalty`, and `grad_norm`, the norm over
    trainable leaves before clipping.

    Attributes:
        function: the compiled function.
        shard_base: places the variables, once, in the layout that the step takes;
            leaves of fewer than `threshold` entries stay whole.
        place_batch: places a batch `{name: [examples, ...]}`.
        whole: the sharding of the state.
    """

    function: Any
    shard_base: Callable[..., Any]
    place_batch: Callable[[Batch], Batch]
    whole: NamedSharding

    def __call__(
        self, state: TrainState, variables: Any, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        return self.function(*self._placed(state, variables, batch))

    def lower(self, state: TrainState, variables: Any, batch: Batch) -> Any:
        """Return the lowered update, for its text, FLOPs and memory."""
        return self.function.lower(*self._placed(state, variables, batch))

    def _placed(self, state: TrainState, variables: Any, batch: Batch):
        # Another sharding than that of the result would compile a second program.
        if state.step.sharding != self.whole:
            state = jax.device_put(state, self.whole)
        return state, variables, self.place_batch(batch)


def make_step(
    peft: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    parallel: Literal["jit", "pmap"] = "jit",
) -> Step:
    """Build the update of the adapters by the gradient of mean loss plus penalty.

    `loss(apply, batch, key)` calls the model itself: `apply(*args, **kwargs)` is
    `peft.apply` with variables, adapters and the adapters' dropout key filled in, `key`
    is for the model's own dropout. It returns one loss per example, `[B]`, or per
    token, `[B, T]`; `batch["mask"]`, where present, weights them. Only trainable
    adapter leaves are differentiated; the base and frozen leaves are constants.

    `parallel="jit"`: the compiler splits one program over the mesh and gathers base
    weights where they are used, also inside scanned layers. Prefer it.

    `parallel="pmap"`: the same function once per device, each with its part of the
    base, collectives written out: one all-gather of every split leaf before the model,
    one all-reduce of the gradients. In today's JAX `pmap` is `jit` of `shard_map`, so
    it is no faster in itself. Prefer it where the model has an operation that the
    compiler cannot split over a batch, or with `accumulate` and slow links: gradients
    are reduced once per update, not once per micro-batch. All base weights are whole on
    every device while the model runs; it takes one process. Equal to `jit` but for
    dropout masks, which differ per device.

    Args:
        peft: what `adapt` returned.
        optimizer: of the trainable leaves; `make_optimizer` builds one.
        loss: see above.
        mesh: a mesh of `make_mesh`.
        accumulate: number of micro-batches whose gradients are summed; micro-batch i
            takes examples i, i + accumulate, ... so that no example changes device.
        parallel: `"jit"` or `"pmap"`.

    Returns:
        A `Step`; call its `shard_base` once on the variables.

    Raises:
        ValueError: an unknown `parallel`, `accumulate` below 1, or `pmap` with several
            processes; from the step, a batch that the mesh does not divide.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: expected at least 1")
    if parallel == "jit":
        return _jit_step(peft, optimizer, loss, mesh, accumulate)
    if parallel != "pmap":
        raise ValueError(f"parallel={parallel!r}: expected 'jit' or 'pmap'")
    if jax.process_count() > 1:
        raise ValueError(
            "parallel='pmap' takes one process; use parallel='jit' with several"
        )
    return _pmap_step(peft, optimizer, loss, mesh, accumulate)


def _jit_step(peft, optimizer, loss, mesh, accumulate) -> Step:
    def place(batch):
        sharding.check_batch(batch, mesh.size * accumulate)
        return sharding.place_batch(batch, mesh)

    update = partial(_update, peft, optimizer, loss, accumulate, _OnMesh(mesh))
    whole = sharding.replicated(mesh)
    function = jax.jit(update, donate_argnums=0, out_shardings=(whole, whole))
    return Step(function, partial(sharding.shard, mesh=mesh), place, whole)


def _pmap_step(peft, optimizer, loss, mesh, accumulate) -> Step:
    def place(batch):
        sharding.check_batch(batch, mesh.size * accumulate)
        return {k: v.reshape(mesh.size, -1, *v.shape[1:]) for k, v in batch.items()}

    function = jax.pmap(
        partial(_update, peft, optimizer, loss, accumulate, _PerDevice()),
        axis_name=sharding.DEVICES,
        in_axes=(None, 0, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    whole = sharding.replicated(sharding.flat(mesh))
    return Step(function, partial(sharding.split, mesh=mesh), place, whole)


@dataclass(frozen=True)
class _OnMesh:
    """How one program over the whole mesh communicates: the compiler sees to it."""

    mesh: Mesh

    def base(self, variables):
        return variables

    def key(self, key):
        return key

    def total(self, sums):
        # Else it may split the optimizer, and gather each moment instead of a gradient.
        return jax.lax.with_sharding_constraint(sums, sharding.replicated(self.mesh))


class _PerDevice:
    """How one program per device communicates: by collectives."""

    def base(self, variables):
        return sharding.gather(variables)

    def key(self, key):
        return jax.random.fold_in(key, jax.lax.axis_index(sharding.DEVICES))

    def total(self, sums):
        return jax.lax.psum(sums, sharding.DEVICES)


def _update(peft, optimizer, loss, accumulate, devices, state, variables, batch):
    key = devices.key(jax.random.fold_in(state.key, state.step))
    variables = devices.base(variables)

    def summed(trainable, batch, key):
        adapters = peft.combine(trainable, state.frozen)
        return _summed_loss(peft, loss, variables, adapters, batch, key)

    def penalty(trainable):
        return peft.penalty(peft.combine(trainable, state.frozen))

    sums = _accumulated(summed, accumulate, state.trainable, batch, key)
    total, weight, grads = devices.total(sums)
    extra, extra_grads = jax.value_and_grad(penalty)(state.trainable)
    grads = jax.tree.map(lambda g, e: g / weight + e, grads, extra_grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {
        "loss": total / weight,
        "penalty": extra,
        "grad_norm": optax.tree.norm(grads),
    }
    state = TrainState(trainable, state.frozen, opt_state, state.step + 1, state.key)
    return state, metrics


def _summed_loss(peft, loss, variables, adapters, batch, key):
    """Return the weighted sum of the losses, and the sum of the weights."""
    adapter_key, model_key = jax.random.split(key)

    def apply(*args, **kwargs):
        return peft.apply(variables, adapters, *args, adapter_key=adapter_key, **kwargs)

    losses = loss(apply, batch, model_key).astype(jnp.float32)
    mask = batch.get("mask")
    if mask is None:
        return losses.sum(), jnp.float32(losses.size)
    mask = mask.reshape(mask.shape + (1,) * (losses.ndim - mask.ndim))
    weights = jnp.broadcast_to(mask, losses.shape).astype(jnp.float32)
    return (losses * weights).sum(), weights.sum()


def _accumulated(summed, accumulate, trainable, batch, key):
    """Return loss, weight and gradients, each summed over the micro-batches."""
    gradient = jax.value_and_grad(summed, has_aux=True)
    if accumulate == 1:
        (total, weight), grads = gradient(trainable, batch, key)
        return total, weight, grads

    def micro(carry, inputs):
        number, batch = inputs
        (total, weight), grads = gradient(
            trainable, batch, jax.random.fold_in(key, number)
        )
        return jax.tree.map(jnp.add, carry, (total, weight, grads)), None

    def interleaved(leaf):
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    zeros = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
    batches = jnp.arange(accumulate), jax.tree.map(interleaved, dict(batch))
    return jax.lax.scan(micro, zeros, batches)[0]
