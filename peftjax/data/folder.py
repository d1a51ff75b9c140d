"""Your own images: a folder `<class>/<image>`, or an npz file of arrays.

    photos/cat/1.jpg photos/cat/2.png photos/dog/1.jpg ...
    photos.npz: images [N, H, W, 1 or 3] uint8, labels [N], perhaps class_names
    photos.npz, split already: train_images, train_labels, ..., test_labels; perhaps val
    photos/train/cat/1.jpg ... photos/test/dog/2.jpg: split already, perhaps with val
    photos/1.0.0/dataset_info.json ...: as TFDS builds it, with a feature `label`

What is not split already is split by a seed (`peftjax.data.splits`); classes are in
alphabetical order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data import source
from peftjax.data.class_folders import NAMES, FolderError, check_classes, listed
from peftjax.data.images import Encoded, Images, Split, png, read_files, read_source
from peftjax.data.npz import open_npz
from peftjax.data.splits import SPLITS, by_seed, few_shot
from peftjax.data.views import VIEWS
from peftjax.errors import unknown

_GIVEN = ("train", "val", "test")  # the arrays of `SPLITS` in a file


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

    def rows(self, seed: int, shots: int = 0, draw: int = 0) -> dict[str, np.ndarray]:
        """Return the rows of each split: the file's own, or drawn by the seed.

        Args:
            seed: of the split, where the file has none of its own.
            shots: of each class, drawn from what is not tested on: `train` and
                `validation` are then what `splits.few_shot` returns; 0 for all.
            draw: the seed of the shots.

        Raises:
            ValueError: too few images to split, or of a class.
        """
        parts: dict[str, np.ndarray]
        if self.given is None:
            parts = by_seed(self.labels, self.classes, seed)
        else:
            rows = np.split(np.arange(len(self.labels)), self.given)
            parts = {name: part for name, part in zip(SPLITS, rows)}
        if not shots:
            return parts
        pool = np.concatenate([parts["train"], parts["validation"]])
        train, held = few_shot(self.labels, pool, self.classes, shots, draw)
        return {**parts, "train": train, "validation": held}


def read(path: str | os.PathLike[str], size: int, view: str = "resize") -> Pictures:
    """Open a folder `<class>/<image>`, an npz file or a data set of TFDS.

    Files that are no images by their names are left out, with a warning.

    Args:
        path: the folder, or the file.
        size: height and width that images are brought to.
        view: how, of `peftjax.data.views.VIEWS`.

    Raises:
        MissingData: there is neither.
        FolderError: no class or only one, a class without images, splits that do not
            fit each other, or arrays that are no images and labels.
        DataError: a data set of TFDS is damaged.
        ImportError: there is one, and no tensorflow-datasets to read it.
        ValueError: an unknown view.
    """
    if view not in VIEWS:
        raise unknown("view", view, VIEWS)
    found = _opened(storage.local(path), size)
    return found._replace(images=found.images.seen(VIEWS[view]))


def _opened(path: Path, size: int) -> Pictures:
    if path.is_dir() and any(path.glob("*/dataset_info.json")):
        return _tfds(path, size)
    if path.is_dir():
        return _folder(path, size)
    if path.is_file():
        return _arrays(path, size)
    raise source.MissingData(
        f"{path}: no such folder or file; expected {path}/<class>/<image>, or an npz "
        "file of images and labels"
    )


def load(
    path: str | os.PathLike[str],
    *,
    size: int,
    seed: int = 0,
    shots: int = 0,
    draw: int = 0,
    view: str = "resize",
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the splits of a folder or an npz file by name, and the classes.

    Args:
        path: as in `read`.
        size: as in `read`.
        seed: of the split, where the file has none of its own.
        shots: as in `Pictures.rows`.
        draw: as in `Pictures.rows`.
        view: as in `read`.

    Raises:
        DataError: as `read`.
        FolderError: too, where there are too few images to split, or fewer of a class
            than shots.
    """
    found, name = read(path, size, view), storage.path(path).name
    try:
        parts = found.rows(seed, shots, draw)
    except ValueError as error:
        raise FolderError(f"{path}: {error}") from error
    return {
        split: Split(
            name,
            split,
            found.images.taken(rows),
            found.labels[rows],
            len(found.classes),
        )
        for split, rows in parts.items()
    }, found.classes


def _folder(root: Path, size: int) -> Pictures:
    files, classes, given = listed(root)
    labels, images = read_files(str(root), files, len(classes), size)
    return Pictures(images, labels, classes, given)


def _tfds(root: Path, size: int) -> Pictures:
    """Read a data set that TFDS, or `experiments.prepare_data`, has built."""
    name, folder = root.name, root.parent
    present = source.splits(name, folder)
    named = {NAMES[split]: split for split in present if split in NAMES}
    if not {0, 2} <= named.keys():
        raise FolderError(
            f"{root}: expected the splits train, test and perhaps validation, found "
            f"{', '.join(present)}"
        )
    opened = [source.open_split(name, named[part], folder) for part in sorted(named)]
    classes = opened[0].classes
    check_classes(root, classes)
    parts = [read_source(one, len(classes), size) for one in opened]
    sizes = dict(zip(sorted(named), (len(labels) for labels, _ in parts)))
    given = sizes[0], sizes[0] + sizes.get(1, 0)
    labels = np.concatenate([labels for labels, _ in parts])
    return Pictures(_joined([x for _, x in parts]), labels, classes, given)


def joined(*splits: Split) -> Split:
    """Return the first split with the examples of the others after its own."""
    labels = np.concatenate([split.labels for split in splits])
    images = _joined([split.images for split in splits])
    return splits[0]._replace(images=images, labels=labels)


def _joined(parts: Sequence[Images]) -> Images:
    ends = np.cumsum([len(part) for part in parts]).tolist()

    def read(rows: Sequence[int]) -> list[Encoded]:
        found: dict[int, Encoded] = {}
        for part, end in zip(parts, ends):
            start = end - len(part)
            own = [row for row in rows if start <= row < end]
            found |= zip(own, part.read([row - start for row in own]), strict=True)
        return [found[row] for row in rows]

    return Images(read, ends[-1], parts[0].size, parts[0].scale, parts[0].view)


def _arrays(path: Path, size: int) -> Pictures:
    with open_npz(path) as opened:
        headers = opened.headers
        split = "images" not in headers and "train_images" in headers
        there = [x for x in _GIVEN if x != "val" or "val_images" in headers]
        prefixes = [f"{part}_" for part in there] if split else [""]
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
    check_classes(path, classes)
    source.check_labels(f"{path}, labels", labels, 0, len(classes) - 1)

    def read(rows: Sequence[int]) -> list[Encoded]:
        return [(png(pixels[row]), f"{path}, image {row}") for row in rows]

    ends = [int(end) for end in np.cumsum([len(part) for _, part in parts])]
    given = (ends[0], ends[-2]) if split else None
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
