"""SIGTERM and Ctrl-C: training ends after the present step, to be resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESUME_ME = getattr(os, "EX_TEMPFAIL", 75)  # exit status, as sysexits.h has it
Stop = Callable[[], bool]  # asked between steps
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A command was stopped between two of its parts, and can be resumed."""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Yield a function that says whether to stop; a second signal ends the process.

    Outside the main thread, where no handler can be set, it never says so.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def ask(number: int, _: object) -> None:
        asked.set()
        restore()
        print(f"{signal.Signals(number).name}: stopping after this step", flush=True)

    try:
        for one in SIGNALS:
            signal.signal(one, ask)
        yield asked.is_set
    finally:
        restore()
