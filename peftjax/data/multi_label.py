"""Images of several classes each: the folder of VOC2007, or an npz file of arrays.

The folder is as `peftjax.data.voc` says. The file holds `train_images
[N, H, W, 1 or 3]` uint8 and `train_labels [N, classes]` of 0 and 1, and the same of
`test`; those of `val`, where they are there, belong to training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftjax import storage
from peftjax.data import voc
from peftjax.data.class_folders import FolderError
from peftjax.data.images import Encoded, Images, Split, of_files, png
from peftjax.data.npz import Npz, open_npz
from peftjax.data.source import MissingData
from peftjax.data.views import VIEWS, View


def load(
    path: str | os.PathLike[str],
    *,
    size: int,
    classes: Sequence[str],
    shots: int,
    draw: int = 0,
    view: str = "resize",
) -> dict[str, Split]:
    """Return the splits train, validation and test of few shots.

    Args:
        path: of the folder or the file.
        size: height and width that images are brought to.
        classes: names, in the order of the columns of the labels.
        shots: of each class; see `few_shot`.
        draw: the seed of the shots.
        view: of `peftjax.data.views.VIEWS`.

    Returns:
        Their labels are float32 `[N, classes]`, 0 or 1.

    Raises:
        MissingData: there is nothing.
        FolderError: it holds no such lists or arrays, or too few images of a class.
        DataError: it is damaged.
    """
    place = storage.local(path)
    if not place.exists():
        raise MissingData(f"{path}: no such folder or file; expected {__doc__}")
    opened = _of_folder if place.is_dir() else _of_npz
    parts = opened(place, classes, size, VIEWS[view])
    try:
        train, held = few_shot(parts["train"][1], classes, shots, draw)
    except ValueError as error:
        raise FolderError(f"{path}: {error}") from error
    rows = {
        "train": ("train", train),
        "validation": ("train", held),
        "test": ("test", np.arange(len(parts["test"][1]))),
    }

    def split(name: str, part: str, rows: np.ndarray) -> Split:
        images, labels = parts[part]
        # 0 classes: the labels are numbers, of which a fingerprint tells the mean.
        return Split(place.stem, name, images.taken(rows), labels[rows], 0)

    return {name: split(name, *of) for name, of in rows.items()}


def _of_folder(
    folder: Path, classes: Sequence[str], size: int, view: View
) -> dict[str, tuple[Images, np.ndarray]]:
    """Return images, and labels float32 `[N, classes]` of 0 and 1, by split."""
    found = voc.listed(folder, classes).items()
    return {part: (of_files(paths, size, view), y) for part, (paths, y) in found}


def _of_npz(
    file: Path, classes: Sequence[str], size: int, view: View
) -> dict[str, tuple[Images, np.ndarray]]:
    """Return the same of an npz file."""
    with open_npz(file) as opened:
        names = [
            name for name in ("train", "val") if f"{name}_images" in opened.headers
        ]
        pool = [_arrays(opened, name, len(classes)) for name in names or ["train"]]
        test = _arrays(opened, "test", len(classes))

    def images(part: str, pixels: np.ndarray) -> Images:
        def read(rows: Sequence[int]) -> list[Encoded]:
            return [(png(pixels[row]), f"{file}, {part} {row}") for row in rows]

        return Images(read, len(pixels), size, view=view)

    pixels, labels = (np.concatenate(arrays) for arrays in zip(*pool))
    return {
        "train": (images("train", pixels), labels),
        "test": (images("test", test[0]), test[1]),
    }


def few_shot(
    labels: np.ndarray, classes: Sequence[str], shots: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of k examples or more of each class: to train on, and held out.

    The examples are shuffled once, and each is taken that has a class of which there
    are fewer than k yet. Of those taken, so many are held out, in the same way, that
    each class has a fifth of k, at least one; of one shot there is none.

    Args:
        labels: `[N, classes]`, 0 or 1.
        classes: names, for messages.
        shots: k.
        seed: of the draw.

    Raises:
        ValueError: k is below 1, or a class has fewer examples.

    >>> labels = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [0, 1], [1, 1]])
    >>> train, held = few_shot(labels, ("cat", "dog"), shots=2)
    >>> bool((labels[[*train, *held]].sum(0) >= 2).all()), len({*train} & {*held})
    (True, 0)
    """
    if shots < 1:
        raise ValueError(f"expected at least 1 shot, found {shots}")
    for name, count in zip(classes, labels.sum(axis=0)):
        if count < shots:
            raise ValueError(
                f"class {name!r}: expected at least {shots} examples to draw {shots} "
                f"shots from, found {int(count)}"
            )
    rows = _greedy(labels, np.random.default_rng(seed).permutation(len(labels)), shots)
    held = _greedy(labels, rows, max(1, shots // 5)) if shots > 1 else rows[:0]
    return np.sort(np.setdiff1d(rows, held)), np.sort(held)


def _greedy(labels: np.ndarray, rows: np.ndarray, shots: int) -> np.ndarray:
    counts, taken = np.zeros(labels.shape[1]), []
    for row in rows:
        if (labels[row].astype(bool) & (counts < shots)).any():
            counts += labels[row]
            taken.append(row)
    return np.array(taken, rows.dtype)


def _arrays(opened: Npz, part: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    found = [opened.headers.get(f"{part}_{name}") for name in ("images", "labels")]
    images, labels = found
    fits = (
        images is not None
        and labels is not None
        and (images.dtype, len(images.shape)) == (np.uint8, 4)
        and images.shape[3] in (1, 3)
        and labels.shape == (images.shape[0], classes)
        and labels.dtype.kind in "biuf"
    )
    values = opened[f"{part}_labels"] if fits else np.zeros(0)
    if not fits or not np.isin(values, (0, 1)).all():
        raise FolderError(
            f"{opened.path}: expected {part}_images uint8 [N, H, W, 1 or 3] and "
            f"{part}_labels [N, {classes}] of 0 and 1, found {found[0]} and {found[1]}"
        )
    return opened[f"{part}_images"], values.astype(np.float32)
