"""Temporary names on a disk, and waiting for what was written to be on it."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from pathlib import Path


def temporary(target: Path) -> Path:
    """Return a name of this process beside the target; remove those of dead ones."""
    # Processes of several machines or containers may write beside each other: only of
    # one's own machine is it known which processes live.
    node = platform.node() or "local"
    for left in target.parent.glob(f".{_escaped(target.name)}.{_escaped(node)}.*.tmp"):
        owner = left.name.split(".")[-2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not _lives(int(owner))):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{node}.{os.getpid()}.tmp")


def to_disk(place: Path) -> None:
    """Wait until a file or folder is on the disk, where the file system can say so."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "[*?" else c for c in name)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
