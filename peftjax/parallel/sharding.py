"""Where arrays live: batch over every device, base over `fsdp`, the rest everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from peftjax.parallel.mesh import AXES

# Splitting a small leaf saves nothing and costs a collective of its own.
THRESHOLD = 2**14

# The one axis of the pmap layout.
DEVICES = "devices"


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def placed(peft: Any, mesh: Mesh, gather: bool) -> Any:
    """Return a plan with the forms of the mesh's platform.

    Args:
        peft: the plan.
        mesh: what it runs on.
        gather: a base split over `fsdp` is gathered where it is consumed.

    Raises:
        ValueError: the plan is `fused`, and the mesh has more than one device.
    """
    if mesh.size > 1 and any(site.fused for site in peft.sites):
        raise ValueError(
            f"fused=True: expected one device, found {mesh.size}, over which the "
            "compiler does not split a kernel; leave the setting off"
        )
    peft = peft.compiled_for(mesh.devices.flat[0].platform)
    split = gather and mesh.shape["fsdp"] > 1 and peft.batch is None
    return replace(peft, batch=rows(mesh)) if split else peft


def put(leaf: Any, sharding: Sharding) -> jax.Array:
    """Place one array, which every process holds whole, on the devices of all.

    One that lies there stays.
    """
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def split_axis(shape: tuple[int, ...], parts: int, threshold: int) -> int | None:
    """Return the largest axis that `parts` divides, or None to leave the leaf whole.

    >>> split_axis((768, 3072), 8, 2**14)
    1
    >>> split_axis((768,), 8, 2**14) is None
    True
    """
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < threshold:
        return None
    return max(axes, key=lambda axis: shape[axis])


def shard(variables: Any, mesh: Mesh, threshold: int = THRESHOLD) -> Any:
    """Place a tree on the mesh, each leaf split along its largest divisible axis.

    Args:
        variables: arrays of any shape and dtype.
        mesh: a mesh of `make_mesh`; leaves are split over its `fsdp` axis.
        threshold: leaves with fewer entries are replicated.

    Returns:
        The same tree on the devices.
    """
    return jax.tree.map(lambda x: put(x, of_leaf(x, mesh, threshold)), variables)


def of_leaf(leaf: Any, mesh: Mesh, threshold: int = THRESHOLD) -> NamedSharding:
    """Return where `shard` places a leaf, an array or a `jax.ShapeDtypeStruct`."""
    axis = split_axis(jnp.shape(leaf), mesh.shape["fsdp"], threshold)
    spec = () if axis is None else (*[None] * axis, "fsdp")
    return NamedSharding(mesh, PartitionSpec(*spec))


@partial(
    jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=("axis",)
)
@dataclass(frozen=True)
class Split:
    """A leaf in the layout of `jax.pmap`: one part per device.

    Attributes:
        value: `[devices, *part]`.
        axis: the leaf's axis that was split; None where every part is the whole leaf.
    """

    value: jax.Array
    axis: int | None


def _is_split(leaf: Any) -> bool:
    return isinstance(leaf, Split)


def flat(mesh: Mesh) -> Mesh:
    """Return the devices of a mesh in a row, as `jax.pmap` sees them."""
    return Mesh(mesh.devices.reshape(-1), (DEVICES,))


def split(variables: Any, mesh: Mesh, threshold: int = THRESHOLD) -> Any:
    """Place a tree for `jax.pmap`: each leaf a `Split` over all devices of the mesh."""
    sharding = NamedSharding(flat(mesh), PartitionSpec(DEVICES))

    def place(leaf: Any) -> Split:
        array: np.ndarray = np.asarray(leaf)
        axis = split_axis(array.shape, mesh.size, threshold)
        whole = [array] * mesh.size
        parts = whole if axis is None else np.split(array, mesh.size, axis)

        def rows(index: Any) -> np.ndarray:
            return np.stack(parts[index[0]])

        shape = (mesh.size, *parts[0].shape)
        return Split(jax.make_array_from_callback(shape, sharding, rows), axis)

    return jax.tree.map(place, variables)


def join(variables: Any) -> Any:
    """Undo `split`; other leaves pass through, so either layout may come in."""

    def whole(leaf: Any) -> Any:
        if not _is_split(leaf):
            return leaf
        if leaf.axis is None:
            return leaf.value[0]
        parts = jnp.moveaxis(leaf.value, 0, leaf.axis)
        shape = list(leaf.value.shape[1:])
        shape[leaf.axis] *= leaf.value.shape[0]
        return parts.reshape(shape)

    return jax.tree.map(whole, variables, is_leaf=_is_split)


def gather(variables: Any) -> Any:
    """Rebuild whole leaves from one device's parts, inside a function under `pmap`."""

    def whole(leaf: Split) -> jax.Array:
        if leaf.axis is None:
            return leaf.value
        gathered: Any = jax.lax.all_gather
        return gathered(leaf.value, DEVICES, axis=leaf.axis, tiled=True)

    return jax.tree.map(whole, variables, is_leaf=_is_split)


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Split a batch over both axes of the mesh.

    Args:
        batch: `{name: [examples, ...]}`, the examples of `own_rows`; of one process
            that is the whole batch.
        mesh: a mesh of `make_mesh`.

    Raises:
        ValueError: an array does not have a multiple of as many examples as this
            process has devices in the mesh.
    """
    sharding, own = rows(mesh), own_devices(mesh)
    check_batch(batch, own)

    def place(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        part = np.asarray(leaf)
        shape = (len(part) * mesh.size // own, *part.shape[1:])
        return jax.make_array_from_process_local_data(sharding, part, shape)

    return {name: place(leaf) for name, leaf in batch.items()}


def own_devices(mesh: Mesh) -> int:
    """Return how many devices of the mesh are this process's."""
    return len(rows(mesh).addressable_devices)


def own_rows(mesh: Mesh, size: int) -> np.ndarray | None:
    """Return which examples of a batch of `size` this process places.

    Their places in the batch, ascending; None where they are all of them.
    """
    sharding = rows(mesh)
    if sharding.is_fully_addressable:
        return None
    parts = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in parts]))


def check_batch(batch: Mapping[str, Any], multiple: int) -> None:
    """Raise ValueError unless every array has a multiple of `multiple` examples."""
    for name, leaf in batch.items():
        if not np.ndim(leaf) or np.shape(leaf)[0] % multiple:
            raise ValueError(
                f"batch[{name!r}] has shape {np.shape(leaf)}: expected a number of "
                f"examples that {multiple} (devices x accumulation) divides; change "
                "the batch size or the mesh"
            )


def bytes_per_device(tree: Any) -> dict[Any, int]:
    """Return `{device: bytes}` of a tree's arrays, for the devices of this process."""
    total: Counter[Any] = Counter()
    for leaf in jax.tree.leaves(tree):
        for part in leaf.addressable_shards:
            total[part.device] += part.data.nbytes
    return dict(total)
