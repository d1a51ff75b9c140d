"""Several processes: how they meet, which one leads, and what the others are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds after which a process that is not heard of is dead, and the others with it.
HEARTBEAT = 40
MEETING = 300  # seconds that processes wait for each other at the start


class Elsewhere(Exception):
    """Process 0 raised an error, and this one was waiting for what it would do.

    Attributes:
        kind: name of the error's type.
    """

    def __init__(self, kind: str, what: str):
        super().__init__(f"process 0: {kind}: {what}")
        self.kind = kind


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Join this process to a run over several; call it before any other JAX function.

    Every process then runs the same program: `make_mesh` covers the devices of all of
    them, and each places its own rows of a batch. Where one of them dies, JAX ends the
    others within `HEARTBEAT` seconds.

    On a cluster that JAX recognises (Cloud TPU, Slurm, Open MPI) no argument is needed.

    Args:
        coordinator: `"host:port"` of process 0.
        processes: how many there are; 1 leaves this process alone.
        process: the number of this one.
    """
    if processes == 1:
        return
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=MEETING,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def is_main() -> bool:
    """Return whether this process leads: writes files and shows progress."""
    return jax.process_index() == 0


def led(call: Callable[[], Any]) -> Any:
    """Return what `call` returns on process 0; the others wait for it.

    Args:
        call: what only one process may do; it returns what JSON can hold.

    Raises:
        Elsewhere: it raised on process 0, and this is another one; process 0 raises its
            own error.

    >>> led(lambda: {"found": 3})
    {'found': 3}
    """
    if jax.process_count() == 1:
        return call()
    error, said = None, ""
    if is_main():
        try:
            said = json.dumps({"value": call()})
        except Exception as raised:
            error = raised
            said = json.dumps({"kind": type(raised).__name__, "what": str(raised)})
    found = json.loads(_told(said))
    if error is not None:
        raise error
    if "kind" in found:
        raise Elsewhere(found["kind"], found["what"])
    return found["value"]


def any_of(said: bool) -> bool:
    """Return whether any process says so; it waits for all of them."""
    if jax.process_count() == 1:
        return said
    return bool(multihost_utils.process_allgather(np.bool_(said)).any())


def _told(text: str) -> str:
    """Return the text of process 0."""
    own = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
    # One of few sizes: each is a program.
    padded = np.zeros(max(1024, 1 << (length - 1).bit_length()), np.uint8)
    padded[: len(own)] = own
    said = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return said[:length].tobytes().decode()
