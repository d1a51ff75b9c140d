"""One update of the adapters, under `jit` on a mesh or under `pmap`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from peftjax.parallel import sharding
from peftjax.training.state import TrainState
from peftjax.training.update import (
    MASKS,
    Batch,
    Loss,
    OnMesh,
    PerDevice,
    Update,
    UpdateFrozen,
)


@dataclass(frozen=True)
class Step:
    """A compiled update: `state, metrics = step(state, variables, batch)`.

    The state given is donated, that is, deleted. Metrics are float32 scalars on the
    devices: `loss` (without the penalty), `penalty`, `grad_norm` (of trainable leaves,
    before clipping), and `weight`, the sum of the weights of the losses. A batch of
    weight 0 leaves all but the number of the step as it was.

    Attributes:
        function: the compiled function.
        shard_base: places the variables, once, in the layout that the step takes;
            leaves of fewer than `threshold` entries stay whole.
        place_batch: places a batch `{name: [examples, ...]}`, of several processes the
            examples of `parallel.sharding.own_rows`.
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
    gather: bool = True,
    update_frozen: UpdateFrozen | None = None,
) -> Step:
    """Build the update of the adapters by the gradient of mean loss plus penalty.

    `loss(apply, batch, key)` calls the model itself: `apply(*args, **kwargs)` is
    `peft.apply` with variables, adapters and the adapters' dropout key filled in, `key`
    is for the model's own dropout. It returns one loss per example, `[B]`, or per
    token, `[B, T]`, or `Weighted` losses. `batch["mask"]` (padding, `[B]`) and
    `batch["token_mask"]` (`[B, T]`), where present, weight them: what they mask has no
    part in value or gradient, even where its loss is not a number. Only trainable
    adapter leaves are differentiated; the base and frozen leaves are constants.

    A model with mutable collections (running statistics): the state carries them, see
    `create_state`, `apply` reads them, and the loss returns their updates too:

        logits, updates = apply(batch["x"], train=True, mutable=["batch_stats"])
        return cross_entropy(logits, batch["label"]), updates

    Micro-batches update them one after the other; under `"pmap"` devices take the mean.

    `parallel="jit"`: the compiler splits one program over the mesh. Base weights are
    gathered where they are used, one layer of scanned ones at a time, and activations
    stay with their examples. Prefer it.

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
        gather: under `"jit"`, see `Peft.batch`; False where the base lies in a
            partitioning of your own, which the compiler is to follow (tensor parallel).
        update_frozen: `f(frozen, trainable, grads, step, key) -> frozen`, called inside
            the compiled update after the optimizer: new frozen leaves of the same
            shapes, from the trainable leaves after the update, the gradients before
            clipping, the number of the update from 0, and a key of this update alone.
            `peftjax.search.draw` draws structures of a supernet, and
            `peftjax.search.allocate` moves the ranks of AdaLoRA.

    Returns:
        A `Step`; call its `shard_base` once on the variables.

    Raises:
        ValueError: an unknown `parallel`, `accumulate` below 1, `pmap` with several
            processes, or a method that needs `update_frozen` without it; from the
            step, a batch that the mesh does not divide, weights or updates that do not
            fit.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: expected at least 1")
    _check_moved(peft, update_frozen)

    def update(devices: OnMesh | PerDevice) -> Update:
        return Update(peft, optimizer, loss, accumulate, devices, update_frozen)

    peft = sharding.placed(peft, mesh, gather and parallel == "jit")
    if parallel == "jit":
        return _jit_step(update(OnMesh(mesh)), mesh)
    if parallel != "pmap":
        raise ValueError(f"parallel={parallel!r}: expected 'jit' or 'pmap'")
    if jax.process_count() > 1:
        raise ValueError(
            "parallel='pmap' takes one process; use parallel='jit' with several"
        )
    return _pmap_step(update(PerDevice()), mesh)


def _check_moved(peft: Any, update_frozen: UpdateFrozen | None) -> None:
    """Raise ValueError for a supernet of which only the largest would be trained.

    Or for ranks that nothing would take away.
    """
    moving = [site for site in peft.sites if site.method.moved_by]
    if moving and update_frozen is None:
        method = moving[0].method
        raise ValueError(
            f"{moving[0].path}: {type(method).__name__} is trained while "
            f"{' and '.join(method.frozen[:2])} move, and nothing moves them: give "
            f"make_step(..., update_frozen={method.moved_by}(peft))"
        )


def _jit_step(update: Update, mesh: Mesh) -> Step:
    def place(batch):
        own = sharding.own_devices(mesh)
        sharding.check_batch(batch, own * update.accumulate)
        return sharding.place_batch(_counted(batch), mesh)

    whole = sharding.replicated(mesh)
    function = jax.jit(update, donate_argnums=0, out_shardings=(whole, whole))
    return Step(function, partial(sharding.shard, mesh=mesh), place, whole)


def _pmap_step(update: Update, mesh: Mesh) -> Step:
    def place(batch):
        sharding.check_batch(batch, mesh.size * update.accumulate)
        rows = _counted(batch).items()
        return {k: v.reshape(mesh.size, -1, *v.shape[1:]) for k, v in rows}

    function = jax.pmap(
        update,
        axis_name=sharding.DEVICES,
        in_axes=(None, 0, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    whole = sharding.replicated(sharding.flat(mesh))
    return Step(function, partial(sharding.split, mesh=mesh), place, whole)


def _counted(batch: Batch) -> Batch:
    """Put copies of an example that counts in the place of those that do not.

    What is masked may be anything; where its loss is not a number, its part in the
    gradient would be 0 * NaN.
    """
    counts = np.ones((), bool)
    for name in (name for name in MASKS if name in batch):
        mask = np.asarray(batch[name])
        counts = counts & mask.reshape(len(mask), -1).any(axis=1)
    if counts.all() or not counts.any():
        return batch
    rows = np.where(counts, np.arange(len(counts)), np.argmax(counts))
    return {k: v if k in MASKS else v[rows] for k, v in batch.items()}
