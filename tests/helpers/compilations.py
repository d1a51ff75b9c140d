"""Which programs XLA is asked for while a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"  # also where a cache has it
_open: list[list[str]] = []


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield a list that grows by the name of each program that is compiled."""
    found: list[str] = []
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


def _listen(event: str, _: float, **more: Any) -> None:
    if event == EVENT:
        for found in _open:
            found.append(str(more.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_listen)
