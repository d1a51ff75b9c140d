"""The folder layout of VTAB-1k that torch papers use.

`<root>/<task>/` holds images and the lists `train800.txt`, `val200.txt`,
`train800val200.txt` and `test.txt`, each line `images/test/000123.jpg 4`.
"""

from __future__ import annotations

import os
from pathlib import Path

from peftjax import storage
from peftjax.data.errors import DataError, read_text
from peftjax.data.source import MissingData

SPLITS = ("train800", "val200", "train800val200", "test")


def is_folder(root: str | os.PathLike[str], task: str) -> bool:
    """Return whether `root` holds the task in this layout."""
    return (storage.path(root) / task / "train800.txt").is_file()


def read(root: str | os.PathLike[str], task: str, split: str) -> list[tuple[Path, int]]:
    """Return the images of one list with their labels.

    Args:
        root: the folder of the task folders.
        task: name of the task and of its folder.
        split: one of `SPLITS`.

    Raises:
        MissingData: the list, or an image that it names, is absent.
        DataError: a line is malformed or leaves the folder, or the list is empty.
    """
    folder = storage.mirrored(root, task) / task
    listing = folder / f"{split}.txt"
    if not listing.is_file():
        raise MissingData(
            f"{listing}: no such list; expected {', '.join(SPLITS)} (.txt) in {folder}"
        )
    lines = read_text(listing).splitlines()
    entries = [
        _entry(folder, f"{listing}, line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not entries:
        raise DataError(f"{listing}: an empty list")
    return entries


def _entry(folder: Path, where: str, line: str) -> tuple[Path, int]:
    name, _, label = line.strip().rpartition(" ")
    if not name or not label.isdecimal():
        raise DataError(f"{where}: expected '<image> <label>', found {line!r}")
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: {name} leaves the task's folder")
    if not path.is_file():
        raise MissingData(f"{where}: {path} does not exist")
    return path, int(label)
