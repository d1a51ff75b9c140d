"""What the processes of a table say, told by the one that began them.

Each has a pipe to it: no line tears another apart, and none waits for another's lock.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

from peftjax.training.progress import Tell

POLL_SECONDS = 0.2


class Speaker(io.TextIOBase):
    """The standard output of a process, and what it tells of its runs.

    Args:
        end: of its pipe.
    """

    def __init__(self, end: Connection):
        self._end, self._begun, self._lock = end, "", threading.Lock()

    def tell(self, *what: str, **facts: float) -> None:
        """Send what `Progress.tell` takes."""
        with self._lock:
            self._send((what, facts))

    def write(self, text: str) -> int:
        """Send every line that is whole now."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._send(line)
        return len(text)

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # nobody hears it any more
            self._end.send(what)


@contextmanager
def heard(context: BaseContext, count: int, tell: Tell) -> Iterator[list[Connection]]:
    """Yield the ends of as many pipes; print and tell what comes out of them.

    Args:
        context: of the processes.
        count: of them.
        tell: as `Progress.tell`.
    """
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    ended = threading.Event()
    places = [reader for reader, _ in pipes]
    listener = threading.Thread(target=_listen, args=(places, tell, ended))
    listener.start()
    try:
        yield [writer for _, writer in pipes]
    finally:
        ended.set()
        listener.join()
        for end in (end for pipe in pipes for end in pipe):
            end.close()


def _listen(places: Sequence[Any], tell: Tell, ended: threading.Event) -> None:
    """Hear all until the processes have ended and nothing is left."""
    while (ready := wait(places, POLL_SECONDS)) or not ended.is_set():
        for place in ready:
            said = place.recv()
            if isinstance(said, str):
                print(said, flush=True)
            else:
                what, facts = said
                tell(*what, **facts)
