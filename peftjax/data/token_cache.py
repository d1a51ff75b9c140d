"""Tokens of a split on disk, found by the content they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax.data.tokenizer import Tokens


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
        ValueError: the entry on disk is damaged; the message names the file to delete.
    """
    if folder is None:
        return compute()
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    path = Path(folder) / f"tokens-{name}.npz"
    if not path.exists():
        _write(path, compute())
    return _read(path)


def _write(path: Path, entry: Cached) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entry.fingerprint)
    arrays = {**entry.tokens._asdict(), "labels": entry.labels, "fingerprint": text}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: Path) -> Cached:
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens = Tokens(file["ids"], file["types"], file["starts"])
            return Cached(tokens, file["labels"], json.loads(str(file["fingerprint"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a whole file of tokens ({error}); delete it, and it is made "
            "again"
        ) from error
