"""The peak of a process's resident memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset() -> None:
    """Begin the peak anew at what is held now, where the system can (Linux)."""
    if CLEAR.is_file():
        CLEAR.write_text("5")


def peak() -> int:
    """Return the peak in bytes, file pages included."""
    return _read("VmHWM")


def held() -> int:
    """Return the bytes held now; where the system does not say so, the peak."""
    return _read("VmRSS")


def _read(name: str) -> int:
    if STATUS.is_file():
        # ru_maxrss would start at the peak of the process that started this one.
        lines = STATUS.read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
