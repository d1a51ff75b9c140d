"""Tokens of a split on disk, found by the content they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data.errors import DataError, json_object
from peftjax.data.npz import open_npz
from peftjax.data.tokenizer import Tokens

# Of the file's layout: an entry of another one is not found, and made anew.
_LAYOUT = 2
_DTYPES = {"ids": "i4", "types": "i1", "starts": "i8", "labels": "i4 f4"}
_TEXTS = ("fingerprint", "sha256")


class Cached(NamedTuple):
    """One entry: tokens, labels `[N]`, and the fingerprint of the texts."""

    tokens: Tokens
    labels: np.ndarray
    fingerprint: dict[str, Any]


def cached(
    compute: Callable[[], Cached],
    folder: str | os.PathLike[str] | None,
    key: tuple[Any, ...],
) -> Cached:
    """Return the entry of `key`, computing and keeping it where it is absent.

    Args:
        compute: makes the entry.
        folder: where entries are kept; None keeps none.
        key: all that the entry depends on.

    Raises:
        DataError: the entry on disk is damaged; the message names the file to delete.
    """
    if folder is None:
        return compute()
    name = hashlib.sha256(repr((_LAYOUT, *key)).encode()).hexdigest()[:32]
    path = storage.path(folder) / f"tokens-{name}.npz"
    if not path.exists():
        entry = compute()
        _write(path, entry)
        return entry
    try:
        return _read(storage.local(path))
    except DataError as error:
        raise DataError(f"{error}; delete it, and it is made again") from error


def _write(path: Path, entry: Cached) -> None:
    text = json.dumps(entry.fingerprint)
    arrays = {**entry.tokens._asdict(), "labels": entry.labels}
    arrays |= {"fingerprint": np.array(text)}
    with storage.replacing(path) as new, new.open("wb") as stream:
        np.savez(stream, **arrays, sha256=np.array(_digest(arrays)))


def _read(path: Path) -> Cached:
    with open_npz(path) as file:
        expected = {*_DTYPES, *_TEXTS}
        if file.headers.keys() != expected:
            raise DataError(
                f"{path}: expected the arrays {', '.join(sorted(expected))}, found "
                f"{', '.join(sorted(file.headers))}"
            )
        for name, header in file.headers.items():
            if name in _TEXTS:
                fits, wanted = header.dtype.kind == "U" and not header.shape, "a text"
            else:
                wanted = _DTYPES[name]
                fits = header.dtype in wanted.split() and len(header.shape) == 1
            if not fits:
                raise DataError(f"{path}: {name}: expected {wanted}, found {header}")
        if sum(header.nbytes for header in file.headers.values()) > path.stat().st_size:
            raise DataError(
                f"{path}: expected arrays as they are, found compressed ones"
            )
        arrays = {name: file[name] for name in file.headers}
    if arrays.pop("sha256").tolist() != _digest(arrays):
        raise DataError(f"{path}: the arrays are not those that were written")
    tokens = Tokens(arrays["ids"], arrays["types"], arrays["starts"])
    fingerprint = json_object(path, str(arrays["fingerprint"]))
    return Cached(tokens, arrays["labels"], fingerprint)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    result = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        result.update(f"{name} {array.dtype} {array.shape} ".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()
