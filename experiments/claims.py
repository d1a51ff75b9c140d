"""Who does which run, where several processes fill one folder.

On a disk a claim is an exclusive lock that the operating system holds for the process.
It ends with the process, whatever ends it, so that a run whose worker was killed is
free at once and no claim is ever judged by its age. Workers on several machines need a
file system that passes locks on (NFS 4, Lustre mounted with `flock`, CephFS, GPFS).

A bucket has no locks; there a claim is a lease (`experiments.leases`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.leases import Busy as Busy
from experiments.leases import Check, lease
from experiments.preemption import Stop, Stopped
from peftjax import storage

LOCK = "claim.lock"
POLL_SECONDS = {False: 0.2, True: 1.0}  # in a bucket?


@contextmanager
def claim(folder: Path, *, wait: bool = False) -> Iterator[Check | None]:
    """Yield a check that the folder's run is still ours, until the end of the block.

    Yield None where another process is at it.

    Args:
        folder: of the run.
        wait: in a bucket, wait while it is not known whether its owner lives.

    >>> from tempfile import mkdtemp
    >>> place = Path(mkdtemp())
    >>> with claim(place) as first, claim(place) as second:
    ...     first is None, second is None
    (False, True)
    """
    with _claimed(folder / LOCK, wait) as check:
        yield check


@contextmanager
def alone(file: Path, stop: Stop | None = None) -> Iterator[None]:
    """Wait until no other process is in such a block for the same file.

    Raises:
        Stopped: it was asked to stop while it waited.
    """
    place = file.with_name(f"{file.name}.lock")
    while True:
        with _claimed(place) as check:
            if check is not None:
                yield
                return
        if stop is not None and stop():
            raise Stopped(f"{file}: stopped while another process is at it")
        time.sleep(POLL_SECONDS[storage.in_bucket(file)])


def _kept() -> None:
    """Pass: the operating system keeps the claim."""


@contextmanager
def _claimed(place: Path, wait: bool = False) -> Iterator[Check | None]:
    if storage.in_bucket(place):
        with lease(place, wait) as check:
            yield check
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield None
        return
    try:
        yield _kept
    finally:
        lock.release()
