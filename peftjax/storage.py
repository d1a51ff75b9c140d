"""Files and folders written whole or not at all.

What is written lies under a temporary name beside its target, is brought to the disk,
and only then takes the target's name. A process that is killed leaves at most such a
temporary name, which the next one to write the same target removes.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name for a file; on success it takes the place of `target`.

    Raises:
        OSError: the file cannot be written; nothing is left of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "sub", "a.txt")) as new:
    ...         _ = new.write_text("whole")
    ...     [str(p.relative_to(folder)) for p in Path(folder).rglob("*.*")]
    ['sub/a.txt']
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, target)
        _to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `target`; on success it becomes `target`.

    Raises:
        FileExistsError: `target` exists and is no empty folder.
        OSError: it cannot be written; nothing is left of it.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: expected an absent or empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _to_disk(path)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
        _to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file, UTF-8."""
    with replacing(target) as new:
        new.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], document: Any) -> None:
    """Write a JSON file; NaN and infinity are refused, as JSON has neither.

    Raises:
        TypeError: the document holds what JSON cannot.
        ValueError: it holds NaN or infinity.
    """
    write_text(target, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _temporary(target: Path) -> Path:
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


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk, where the file system can say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
