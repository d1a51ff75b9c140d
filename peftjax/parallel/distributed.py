"""Several processes: start them, and know which one writes files."""

from __future__ import annotations

import jax


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Join this process to a run over several; call it before any other JAX function.

    Every process then runs the same program on the same data order: `make_mesh` covers
    the devices of all of them, and each places only its own rows of a batch. On a
    cluster that JAX recognises (Cloud TPU, Slurm, Open MPI) no argument is needed.

    Args:
        coordinator: `"host:port"` of process 0.
        processes: how many there are; 1 leaves this process alone.
        process: the number of this one.
    """
    if processes == 1:
        return
    jax.distributed.initialize(coordinator, processes, process)


def is_main() -> bool:
    """Return whether this process is the one that writes metrics and shows progress."""
    return jax.process_index() == 0
