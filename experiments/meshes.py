"""The devices of a run, as the `parallel` of its configuration says.

None of them changes what a run is: another number of devices or processes continues it.
"""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.checks import UnfitSettings
from peftjax.parallel.mesh import make_mesh


def mesh_of(config: ConfigDict) -> Any:
    """Return the mesh of a run; of several processes it takes all devices.

    `parallel.data` copies of the base, each split over `parallel.fsdp` devices; 0 is as
    many as there are. Under `jax.default_device` a run takes that one alone.

    Raises:
        UnfitSettings: the devices do not suffice, or some of a job would be left out.
    """
    if isinstance(alone := jax.config.jax_default_device, jax.Device):
        return make_mesh(1, 1, [alone])
    data, fsdp = _get(config, "data", 0), _get(config, "fsdp", 1)
    devices = jax.device_count()
    where = f"{config.name}: parallel.data={data}, parallel.fsdp={fsdp}"
    advice = f"there are {devices} devices; 0 takes as many as there are"
    if fsdp == 0:
        fsdp = devices // max(data, 1)
    try:
        mesh = make_mesh(data or None, fsdp)
    except ValueError:
        raise UnfitSettings(f"{where}: {advice}") from None
    if jax.process_count() > 1 and mesh.size != devices:
        raise UnfitSettings(f"{where}: a job of several processes takes all; {advice}")
    return mesh


def split_of(config: ConfigDict) -> Any:
    """Return the mesh over which a run's base is split, as `pj.models.load` takes it.

    None where each device holds all of it.

    Raises:
        UnfitSettings: as `mesh_of`.
    """
    mesh = mesh_of(config)
    return mesh if mesh.shape["fsdp"] > 1 else None


def accumulate_of(config: ConfigDict) -> int:
    """Return the number of micro-batches of a step."""
    return _get(config, "accumulate", 1)


def check_batch(name: str, batch: int, mesh: Any, accumulate: int = 1) -> int:
    """Return a batch size that the mesh divides.

    Raises:
        UnfitSettings: it does not; the nearest that fit are named.
    """
    each = mesh.size * accumulate
    if batch % each:
        least = batch // each * each
        fits = f"{least} or {least + each}" if least else f"{each}"
        parts = f" x parallel.accumulate={accumulate}" if accumulate > 1 else ""
        raise UnfitSettings(
            f"{name}={batch}: {mesh.size} devices{parts} take a multiple of {each}: "
            f"give {fits}, or fewer devices for each run (--per-device gives it one)"
        )
    return batch


def padded(batch: int, mesh: Any) -> int:
    """Return the size of a batch of evaluation, at least that many examples."""
    return -(-batch // mesh.size) * mesh.size


def _get(config: ConfigDict, key: str, default: int) -> int:
    return config.get("parallel", {}).get(key, default)
