"""Files and folders written whole or not at all, on disks and in buckets.

On a disk what is written lies under a temporary name beside its target, is brought to
the disk, and only then takes the target's name. A process that is killed leaves at most
such a temporary name, which the next one to write the same target removes.

A bucket (`gs://`, `s3://`) cannot rename, but each of its objects appears whole. What
is written lies on the disk of this machine first. Of a folder the JSON files are
uploaded last: without its configuration or index it is no model and no adapter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftjax.storage import bucket, disk
from peftjax.storage.bucket import BucketError as BucketError
from peftjax.storage.bucket import create as create

PathLike = str | os.PathLike[str]


def path(name: PathLike) -> Path:
    """Return the path of a file or folder, on a disk or in a bucket.

    One in a bucket is an `etils.epath.Path`. Of `pathlib` it lacks what buckets lack:
    links, `resolve`, `rglob`, and opening to append.

    Raises:
        BucketError: of another scheme than `gs://` and `s3://`.
        ImportError: the client of such buckets is absent.

    >>> path("runs/a")
    PosixPath('runs/a')
    >>> path("ftp://runs/a")
    Traceback (most recent call last):
    peftjax.storage.bucket.BucketError: ftp://runs/a: expected a local path, ...
    """
    text = os.fspath(name)
    scheme = re.match(r"(\w\w+):/+", text)  # pathlib makes one slash of two
    return bucket.path(scheme[1], text[scheme.end() :]) if scheme else Path(name)


def absolute(name: PathLike) -> Path:
    """Return a path from the root; one of a bucket is so as it is."""
    place = path(name)
    return place if in_bucket(place) else place.absolute()


def in_bucket(place: Path) -> bool:
    """Return whether a path is one of a bucket."""
    return not isinstance(place, Path)


def exists(place: Path) -> bool:
    """Return whether there is a file or a folder.

    Raises:
        BucketError: the bucket may not be listed.
    """
    return bucket.exists(place) if in_bucket(place) else place.exists()


def names(folder: Path) -> set[str]:
    """Return the names in a folder; none where it is absent.

    Raises:
        BucketError: the bucket may not be listed.
    """
    if in_bucket(folder):
        return bucket.names(folder)
    return {found.name for found in folder.iterdir()} if folder.is_dir() else set()


def size(file: Path) -> int:
    """Return the bytes of a file."""
    found: Any = file.stat()
    return found.length if in_bucket(file) else found.st_size


def files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted."""
    if in_bucket(folder):
        return [folder / inside for inside in bucket.find(folder)]
    return sorted(found for found in folder.rglob("*") if found.is_file())


def remove(place: Path) -> None:
    """Delete a file, or a folder with all below it; a link, not what it leads to."""
    if in_bucket(place):
        bucket.remove(place)
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def local(name: PathLike) -> Path:
    """Return a file or folder, or a copy of one in a bucket; see `mirrored`."""
    place = path(name)
    return mirrored(place.parent, place.name) / place.name


def mirrored(folder: PathLike, part: str) -> Path:
    """Return a local folder that holds `part` of a folder, whatever else it holds.

    A copy from a bucket lasts as long as the process, and is made anew of what was
    changed since. Where nothing is in the bucket, the folder itself is returned.

    Raises:
        BucketError: the bucket cannot be read, or names a file out of the folder.
    """
    place = path(folder)
    return (in_bucket(place) and bucket.mirrored(place, part)) or place


@contextmanager
def replacing(target: PathLike) -> Iterator[Path]:
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
    target = path(target)
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as place:
            yield (new := Path(place, target.name))
            bucket.upload(new, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = disk.temporary(target)
    try:
        yield temporary
        disk.to_disk(temporary)
        os.replace(temporary, target)
        disk.to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: PathLike) -> Iterator[Path]:
    """Yield a new folder beside `target`; on success it becomes `target`.

    Raises:
        FileExistsError: `target` exists and is no empty folder.
        OSError: it cannot be written; nothing is left of it.
    """
    target = path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: expected an absent or empty folder")
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
            bucket.upload_folder(Path(place), target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = disk.temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            disk.to_disk(written)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
        disk.to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: PathLike, text: str) -> None:
    """Write a text file, UTF-8."""
    with replacing(target) as new:
        new.write_text(text, encoding="utf-8")


def write_json(target: PathLike, document: Any) -> None:
    """Write a JSON file; NaN and infinity are refused, as JSON has neither.

    Raises:
        TypeError: the document holds what JSON cannot.
        ValueError: it holds NaN or infinity.
    """
    write_text(target, json.dumps(document, indent=2, allow_nan=False) + "\n")
