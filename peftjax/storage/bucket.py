"""Buckets: the client of each kind, its errors on one line, and local copies.

Paths are `etils.epath.Path`s, which reach a bucket through fsspec's clients here. Its
other way is TensorFlow's, which imports TensorFlow and cannot create if absent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, cast

from peftjax.errors import brief

CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
# Read once, where the first path is used, of a disk too: orbax has some.
os.environ.setdefault("EPATH_USE_TF", "false")


class BucketError(OSError):
    """A bucket is not there, may not be used, or cannot be reached."""


def path(scheme: str, inside: str) -> Path:
    """Return `scheme://inside`.

    Raises:
        BucketError: there is no such kind of bucket.
        ImportError: the client of such buckets is absent.
    """
    if scheme not in CLIENTS:
        raise BucketError(
            f"{scheme}://{inside}: expected a local path, gs://... or s3://..."
        )
    _prepare(scheme)
    from etils import epath

    return cast(Path, epath.Path(f"{scheme}://{inside}"))


@cache
def _prepare(scheme: str) -> None:
    if find_spec(CLIENTS[scheme]) is None:
        raise ImportError(
            f"{scheme}:// needs {CLIENTS[scheme]}: pip install 'peftjax[cloud]'"
        )
    from fsspec.config import conf

    # Other processes write too: what was listed before says nothing of now.
    for name in ("gs", "gcs", "s3"):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def client(place: Path) -> Any:
    """Return fsspec's client of a path's bucket."""
    import fsspec

    return fsspec.filesystem(os.fspath(place).partition(":")[0])


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Name the path in whatever a client raises of it, on one line."""
    try:
        yield
    except BucketError:
        raise
    except Exception as error:
        bucket = "/".join(os.fspath(place).split("/", 3)[:3])
        absent = isinstance(error, FileNotFoundError)
        what = "no such bucket or object" if absent else brief(error)
        raise BucketError(
            f"{place}: {what}; expected that {bucket} is there and that the "
            "credentials of this machine may list, read, write and delete in it"
        ) from error


def exists(place: Path) -> bool:
    """Return whether there is an object, or any below it."""
    with naming(place):
        return place.exists()


def names(folder: Path) -> set[str]:
    """Return the names in a folder; none where it, or its bucket, is absent."""
    with naming(folder), contextlib.suppress(FileNotFoundError):
        return {found.name for found in folder.iterdir()}
    return set()


def find(folder: Path) -> dict[PurePosixPath, dict[str, Any]]:
    """Return what is known of each object below a folder, by its place in it."""
    with naming(folder):
        objects = client(folder).find(os.fspath(folder), detail=True)
        return {
            _inside(folder, name): facts
            for name, facts in sorted(objects.items())
            if facts["type"] == "file"
        }


def _inside(folder: Path, name: str) -> PurePosixPath:
    inside = PurePosixPath(name).relative_to(os.fspath(folder).partition("://")[2])
    if ".." in inside.parts:
        raise BucketError(f"{folder}: {name} leads out of it")
    return inside


def remove(place: Path) -> None:
    """Delete an object, or all below it."""
    with naming(place), contextlib.suppress(FileNotFoundError):
        client(place).rm(os.fspath(place), recursive=True)


def create(target: Path, content: str) -> bool:
    """Write an object unless there is one; of several processes one is told True.

    Raises:
        BucketError: the bucket is not there, or may not be written.
    """
    with naming(target):
        try:
            client(target).pipe_file(os.fspath(target), content.encode(), mode="create")
        except FileExistsError:
            return False
        return True


def upload(file: Path, target: Path) -> None:
    """Copy a file into a bucket, where it appears whole."""
    with naming(target):
        client(target).put_file(os.fspath(file), os.fspath(target))


def upload_folder(folder: Path, target: Path) -> None:
    """Copy a folder into a bucket, JSON files last; take it back where that fails."""
    inside = sorted(
        (file for file in folder.rglob("*") if file.is_file()),
        key=lambda file: (file.suffix == ".json", file),
    )
    try:
        for file in inside:
            upload(file, target / file.relative_to(folder).as_posix())
    except BaseException:
        remove(target)
        raise


def mirrored(folder: Path, part: str) -> Path | None:
    """Return a local folder with the objects at or below `folder / part`, if any."""
    copy = _copies() / os.fspath(folder).replace(":/", "")
    found = find(folder / part)
    for inside, facts in found.items():
        target = copy / part / inside
        if _copied.get(target) != repr(facts):
            target.parent.mkdir(parents=True, exist_ok=True)
            with naming(folder / part / inside):
                client(folder).get_file(facts["name"], os.fspath(target))
            _copied[target] = repr(facts)
    return copy if found else None


_copied: dict[Path, str] = {}


@cache
def _copies() -> Path:
    """Return the folder of all copies, deleted as the process ends."""
    place = tempfile.mkdtemp(prefix="peftjax-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)
