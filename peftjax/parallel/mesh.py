"""The device mesh: one axis of data copies, one axis over which the base is split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp")


def make_mesh(
    data: int | None = None,
    fsdp: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Return a `(data, fsdp)` mesh with axes named `"data"` and `"fsdp"`.

    The batch is split over both axes, the base weights over `fsdp` only; one device is
    a mesh of one.

    Args:
        data: number of copies of the base; by default all devices divided by `fsdp`.
        fsdp: number of devices over which each copy is split.
        devices: the `jax.Device`s to take, in order; all by default.

    Raises:
        ValueError: the devices do not suffice, or `fsdp` does not divide them.

    >>> dict(make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    if data is None and fsdp >= 1 and len(devices) % fsdp == 0:
        data = len(devices) // fsdp
    if data is None or data < 1 or fsdp < 1 or data * fsdp > len(devices):
        raise ValueError(
            f"make_mesh(data={data}, fsdp={fsdp}): {len(devices)} devices are there; "
            "choose data * fsdp <= that number, or fsdp a divisor of it"
        )
    # Auto axes: plain Linen models raise on sharded weights under Explicit ones.
    return jax.make_mesh(
        (data, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices[: data * fsdp]
    )
