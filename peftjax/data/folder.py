"""Your own images: a folder `<class>/<image>`, or an npz file of arrays.

    photos/cat/1.jpg photos/cat/2.png photos/dog/1.jpg ...
    photos.npz: images [N, H, W, 1 or 3] uint8, labels [N], perhaps class_names
    photos.npz, split already: train_images, train_labels, val_images, ... test_labels

What is not split already is split by a seed (`peftjax.data.splits`); classes are in
alphabetical order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data import source
from peftjax.data.errors import DataError
from peftjax.data.images import EXTENSIONS, Encoded, Images, Split, png, read_files
from peftjax.data.npz import open_npz
from peftjax.data.splits import SPLITS, by_seed

_SHOWN = 3
_GIVEN = ("train", "val", "test")  # the arrays of `SPLITS` in a file


class FolderError(DataError):
    """A folder or a file of images cannot be used."""


class Pictures(NamedTuple):
    """All images of a data set.

    Attributes:
        images: `[N, size, size, 3]`, uint8, read when indexed.
        labels: `[N]`, int32.
        classes: names, in the order of the labels.
        given: the first row of validation and of test, where the file is split.
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]
    given: tuple[int, int] | None = None

    def rows(self, seed: int) -> dict[str, np.ndarray]:
        """Return the rows of each split: the file's own, or drawn by the seed.

        Raises:
            ValueError: too few images to split.
        """
        if self.given is None:
            return by_seed(self.labels, self.classes, seed)
        parts = np.split(np.arange(len(self.labels)), self.given)
        return dict(zip(SPLITS, parts))


def read(path: str | os.PathLike[str], size: int) -> Pictures:
    """Open a folder `<class>/<image>` or an npz file.

    Files that are no images by their names are left out, with a warning.

    Args:
        path: the folder, or the file.
        size: height and width that images are resized to.

    Raises:
        MissingData: there is neither.
        FolderError: no class or only one, a class without images, or arrays that are
            no images and labels.
    """
    path = storage.local(path)
    if path.is_dir():
        return _folder(path, size)
    if path.is_file():
        return _arrays(path, size)
    raise source.MissingData(
        f"{path}: no such folder or file; expected {path}/<class>/<image>, or an npz "
        "file of images and labels"
    )


def load(
    path: str | os.PathLike[str], *, size: int, seed: int = 0
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the splits of a folder or an npz file by name, and the classes.

    Args:
        path: as in `read`.
        size: as in `read`.
        seed: of the split, where the file has none of its own.

    Raises:
        As `read`; FolderError too where there are too few images to split.
    """
    found, name = read(path, size), storage.path(path).name
    try:
        parts = found.rows(seed)
    except ValueError as error:
        raise FolderError(f"{path}: {error}") from error
    return {
        split: Split(
            name,
            split,
            _taken(found.images, rows),
            found.labels[rows],
            len(found.classes),
        )
        for split, rows in parts.items()
    }, found.classes


def _taken(images: Images, rows: np.ndarray) -> Images:
    def read(taken: Sequence[int]) -> list[Encoded]:
        return images.read([int(rows[row]) for row in taken])

    return Images(read, len(rows), images.size, images.scale)


def _folder(root: Path, size: int) -> Pictures:
    folders = [path for path in _visible(root) if path.is_dir()]
    stray = [path for path in _visible(root) if not path.is_dir()]
    files: list[tuple[Path, int]] = []
    for label, kind in enumerate(folders):
        inside = _visible(kind)
        own = [x for x in inside if x.is_file() and x.suffix.lower() in EXTENSIONS]
        stray += [path for path in inside if path not in set(own)]
        if not own:
            deeper = any(path.is_dir() for path in inside)
            hint = "; of <split>/<class> folders give one" if deeper else ""
            raise FolderError(f"{kind}: expected images of one class, found none{hint}")
        files += [(path, label) for path in own]
    classes = tuple(kind.name for kind in folders)
    _several(root, classes)
    if stray:
        names = ", ".join(str(path.relative_to(root)) for path in stray[:_SHOWN])
        more = f" and {len(stray) - _SHOWN} more" if len(stray) > _SHOWN else ""
        warnings.warn(f"{root}: left out, no images: {names}{more}", stacklevel=4)
    labels, images = read_files(str(root), files, len(classes), size)
    return Pictures(images, labels, classes)


def _arrays(path: Path, size: int) -> Pictures:
    with open_npz(path) as opened:
        headers = opened.headers
        split = "images" not in headers and "train_images" in headers
        prefixes = [f"{part}_" for part in _GIVEN] if split else [""]
        wanted = [(f"{p}images", f"{p}labels") for p in prefixes]
        if missing := {name for pair in wanted for name in pair} - headers.keys():
            raise FolderError(
                f"{path}: expected arrays images and labels, {sorted(missing)} not "
                f"found; found {sorted(headers)}"
            )
        for pair in wanted:
            _check_arrays(path, *(headers[name] for name in pair))
        parts = [tuple(opened[name] for name in pair) for pair in wanted]
        labels = np.concatenate([part for _, part in parts])
        known = range(int(labels.max(initial=-1)) + 1)
        names = opened["class_names"] if "class_names" in headers else known
    pixels = [image for part, _ in parts for image in part]
    classes = tuple(str(name) for name in names)
    _several(path, classes)
    source.check_labels(f"{path}, labels", labels, 0, len(classes) - 1)

    def read(rows: Sequence[int]) -> list[Encoded]:
        return [(png(pixels[row]), f"{path}, image {row}") for row in rows]

    ends = [int(end) for end in np.cumsum([len(part) for _, part in parts])]
    given = (ends[0], ends[1]) if split else None
    images = Images(read, len(labels), size)
    return Pictures(images, labels.astype(np.int32), classes, given)


def _check_arrays(path: Path, images: Any, labels: Any) -> None:
    four = len(images.shape) == 4 and images.shape[3] in (1, 3)
    fits = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if not (four and fits) or images.dtype != np.uint8:
        raise FolderError(
            f"{path}: expected images uint8 [N, H, W, 1 or 3] and N integers as "
            f"labels, found {images} and {labels}"
        )


def _several(path: Path, classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "no images"
        raise FolderError(
            f"{path}: expected {path}/<class>/<image> of two classes or more, found "
            f"{found}"
        )


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
