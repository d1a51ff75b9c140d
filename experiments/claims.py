"""Who does which run, where several processes fill one folder.

A claim is an exclusive lock that the operating system holds for the process. It ends
with the process, whatever ends it, so that a run whose worker was killed is free at
once and no claim is ever judged by its age. Workers on several machines need a file
system that passes locks on (NFS 4, Lustre mounted with `flock`, CephFS, GPFS).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.preemption import Stop, Stopped

LOCK = "claim.lock"


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Yield whether the folder's run is ours until the end of the block.

    >>> from tempfile import mkdtemp
    >>> place = Path(mkdtemp())
    >>> with claim(place) as first, claim(place) as second:
    ...     first, second
    (True, False)
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def alone(file: Path, stop: Stop | None = None) -> Iterator[None]:
    """Wait until no other process is in such a block for the same file.

    Raises:
        Stopped: it was asked to stop while it waited.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f"{file.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=-1 if stop is None else 0.2)
            break
        except Timeout:
            if stop is not None and stop():
                raise Stopped(
                    f"{file}: stopped while another process is at it"
                ) from None
    try:
        yield
    finally:
        lock.release()
