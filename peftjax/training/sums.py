"""The digests of a folder's files, in the format of `sha256sum`, written last."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from peftjax import storage
from peftjax.training.errors import DamagedCheckpoint

NAME = "SHA256SUMS"


def close(folder: Path) -> None:
    """Write the digests of all files of a checkpoint."""
    files = storage.files(folder)
    lines = [f"{_sum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    storage.write_text(folder / NAME, "".join(lines))


def check(folder: Path) -> None:
    """Raise DamagedCheckpoint unless all files are as they were written."""
    try:
        lines = (folder / NAME).read_text().splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        sums = {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{NAME} is not a list of files") from error
    if not sums:
        raise DamagedCheckpoint(f"{NAME} is empty")
    for name, digest in sums.items():
        path = folder / name
        if not _is_inside(folder, name):
            raise DamagedCheckpoint(f"{NAME} is not a list of files")
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if _sum(path) != digest:
            raise DamagedCheckpoint(
                f"{name} is truncated or changed (now {storage.size(path)} bytes)"
            )


def _is_inside(folder: Path, name: str) -> bool:
    if storage.in_bucket(folder):
        return not name.startswith("/") and ".." not in PurePosixPath(name).parts
    return folder.resolve() in (folder / name).resolve().parents


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
