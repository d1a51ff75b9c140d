"""A claim of something in a bucket: objects that are made only where there is none.

Of the numbered objects `claim.lock/1`, `claim.lock/2`, ... the last is the claim,
unless it is empty. Who wants it makes the next number: of several processes the bucket
tells one that it did. The owner writes its object anew every few seconds, and empties
it at the end. One that was not written for LEASE seconds is of a process that died: its
claim falls to the next. Those seconds are counted by the clock of who waits; no clocks
of two machines are compared. An owner that could not write for as long has lost the
claim, and stops before it writes anything else.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peftjax import storage

LEASE = 60.0  # seconds
RENEWALS = 4  # in that time


class Busy(OSError):
    """Another process is at the run."""


class Lost(Busy):
    """The claim fell to another process."""


Check = Callable[[], None]  # raises Lost


@contextmanager
def lease(place: Path, wait: bool = False) -> Iterator[Check | None]:
    """Yield a check that a claim is still ours, or None where another process has it.

    Args:
        place: the folder of the numbered objects.
        wait: until its owner has it no longer, or has shown that it lives.

    Raises:
        BucketError: the bucket is not there, or may not be used.
    """
    since = time.monotonic()
    number = _take(place)
    if number is None and wait:
        before = _last(place)
        while number is None and _last(place) == before:
            time.sleep(LEASE / RENEWALS / 10)
            since = time.monotonic()
            number = _take(place)
    if number is None:
        yield None
        return
    held = _Held(place, number, since)
    try:
        yield held.check
    finally:
        held.end()


class _Held:
    """A claim that a thread keeps alive."""

    def __init__(self, place: Path, number: int, since: float):
        self._place, self._number = place, number
        self._written, self._taken = since, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        silent = time.monotonic() - self._written
        if self._taken or silent > LEASE:
            raise Lost(
                f"{self._place}: no longer ours, last renewed {silent:.0f} s ago: "
                "another process may be at it; run the command again"
            )

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # then it ends by its age
            self.check()
            storage.write_text(self._place / str(self._number), "")

    def renew(self) -> None:
        since = time.monotonic()
        self._taken = max(_numbers(self._place), default=0) != self._number
        if not self._taken:
            storage.write_text(self._place / str(self._number), _words())
            self._written = since

    def _keep(self) -> None:
        while not self._ended.wait(LEASE / RENEWALS) and not self._taken:
            with contextlib.suppress(OSError):  # it is tried again
                self.renew()


def _take(place: Path) -> int | None:
    """Return the number of our claim, or None where there is another's."""
    last, words = _last(place)
    if words and not _silent(place / str(last), words):
        return None
    number = last + 1
    if not storage.create(place / str(number), _words()):
        return None
    # Old numbers are deleted: another process may have had a later one meanwhile.
    numbers = _numbers(place)
    for other in numbers if max(numbers) == number else [number]:
        if other != number or max(numbers) > number:
            storage.remove(place / str(other))
    return number if max(numbers) == number else None


def _last(place: Path) -> tuple[int, str]:
    """Return the last number and what it says; 0 where there is none."""
    while True:
        last = max(_numbers(place), default=0)
        with contextlib.suppress(FileNotFoundError):  # replaced by a later one
            return last, (place / str(last)).read_text() if last else ""


def _numbers(place: Path) -> list[int]:
    names = (file.name for file in storage.files(place))
    return [int(name) for name in names if name.isdecimal()]


_seen: dict[Path, tuple[str, float]] = {}  # of a claim: its words, and since when


def _silent(file: Path, words: str) -> bool:
    """Return whether a claim has said the same for as long as a lease lasts."""
    now = time.monotonic()
    before, since = _seen.get(file, ("", now))
    if before != words:
        _seen[file] = words, now
        return False
    return now - since > LEASE


def _words() -> str:
    """Return who we are, never twice the same."""
    return f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}"
