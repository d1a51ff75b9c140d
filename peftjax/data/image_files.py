"""Image tasks from local files: npz, class folders, and the VTAB-1k folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data import source, vtab, vtab_folder, writer
from peftjax.data.errors import DataError
from peftjax.data.images import decode, image_paths, png
from peftjax.data.npz import Header, Npz, open_npz

Item = tuple[bytes, int, str]


def prepare_npz(file: str | os.PathLike[str], data_dir: str | os.PathLike[str]) -> Path:
    """Write an npz file as `<data_dir>/images/<stem>/1.0.0`.

    Args:
        file: holds `<split>_images` (uint8 `[N, H, W, 1 or 3]`) and `<split>_labels`
            (integers `[N]`) for each split, and perhaps `class_names` and
            `<split>_files`.
        data_dir: TFDS's data folder.

    Returns:
        The folder written.

    Raises:
        DataError: the file is damaged, needs pickle, or does not hold such arrays.
        FileExistsError: the task is in `data_dir` already.
    """
    path = Path(file)
    with open_npz(path) as content:
        headers = content.headers
        names = [n.removesuffix("_images") for n in headers if n.endswith("_images")]
        if not names:
            raise DataError(
                f"{path}: no array named <split>_images; found {[*headers]}"
            )
        for split in names:
            _check_headers(path, headers, split)
        labels = {split: content[f"{split}_labels"] for split in names}
        classes = _class_names(content)
        count = len(classes) or 1 + max(int(x.max(initial=0)) for x in labels.values())
        for split, part in labels.items():
            source.check_labels(f"{path}, {split}_labels", part, 0, count - 1)

        def items(split: str) -> Iterator[Item]:
            part, named = labels[split], f"{split}_files" in headers
            files = content[f"{split}_files"] if named else np.arange(len(part))
            pictures = content[f"{split}_images"]
            for picture, label, name in zip(pictures, part, files, strict=True):
                yield png(picture), int(label), str(name)

        parts = {split: items(split) for split in names}
        return _write("images", path.stem, classes or count, parts, data_dir)


def prepare_folder(
    folder: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> Path:
    """Write `<folder>/<split>/<class>/<image>` as `<data_dir>/images/<folder>/1.0.0`.

    Classes are numbered in alphabetical order over all splits.

    Args:
        folder: holds one folder per split.
        data_dir: TFDS's data folder.

    Returns:
        The folder written.

    Raises:
        DataError: there is no such layout, or an image is damaged.
        FileExistsError: the task is in `data_dir` already.
    """
    root = Path(folder)
    splits = [split for split in _visible(root) if split.is_dir()]
    classes = sorted(
        {kind.name for split in splits for kind in _visible(split) if kind.is_dir()}
    )
    if not classes:
        raise DataError(f"{root}: expected <split>/<class>/<image> below it")

    def items(split: Path) -> Iterator[Item]:
        for label, kind in enumerate(classes):
            inside = split / kind
            for path in image_paths(inside) if inside.is_dir() else ():
                yield path.read_bytes(), label, f"{kind}/{path.name}"

    parts = {split.name: items(split) for split in splits}
    return _write("images", root.name, classes, parts, data_dir)


def prepare_vtab(
    task: str, root: str | os.PathLike[str], data_dir: str | os.PathLike[str]
) -> Path:
    """Write a task's folder of the torch papers as `<data_dir>/vtab/<task>/1.0.0`.

    Args:
        task: a name of `vtab.TASKS` and of its folder.
        root: the folder of the task folders; see `vtab_folder`.
        data_dir: TFDS's data folder.

    Returns:
        The folder written, with the splits `train800`, `val200` and `test`.

    Raises:
        MissingData: a list or an image is absent.
        DataError: a malformed list, a label out of range, a damaged image, or a
            `train800val200.txt` that is not the two other lists together.
        FileExistsError: the task is in `data_dir` already.
    """
    spec = vtab.get_task(task)
    lists = {name: vtab_folder.read(root, task, name) for name in vtab_folder.SPLITS}
    both = lists.pop("train800val200")
    if sorted(both) != sorted(lists["train800"] + lists["val200"]):
        raise DataError(
            f"{Path(root) / task / 'train800val200.txt'}: expected the images and "
            "labels of train800.txt and val200.txt together"
        )
    for name, files in lists.items():
        labels = np.array([label for _, label in files])
        where = str(Path(root) / task / f"{name}.txt")
        source.check_labels(where, labels, 0, spec.classes - 1)

    def items(name: str) -> Iterator[Item]:
        base = Path(root) / task
        for path, label in lists[name]:
            yield path.read_bytes(), label, path.relative_to(base).as_posix()

    parts = {name: items(name) for name in lists}
    return _write("vtab", task, spec.classes, parts, data_dir)


def _write(
    name: str,
    task: str,
    classes: Sequence[str] | int,
    splits: Mapping[str, Iterator[Item]],
    data_dir: str | os.PathLike[str],
) -> Path:
    def records(items: Iterator[Item]) -> Iterator[Mapping[str, Any]]:
        for content, label, file in items:
            decode(content, file)
            yield {"image": content, "label": label, "file": file}

    builder = writer.image_builder(name, task, classes)
    parts = {split: records(items) for split, items in splits.items()}
    return writer.write(builder, task, parts, data_dir)


def _check_headers(path: Path, headers: Mapping[str, Header], split: str) -> None:
    """Raise DataError unless a split's arrays are images, labels and file names."""
    pictures = headers[f"{split}_images"]
    if (
        pictures.dtype != np.uint8
        or len(pictures.shape) != 4
        or pictures.shape[3] not in (1, 3)
        or not all(pictures.shape)
    ):
        raise DataError(
            f"{path}, {split}_images: expected uint8 [N, H, W, 1 or 3], found "
            f"{pictures}"
        )
    for name, kinds, what in (("labels", "iu", "integers"), ("files", "Uiu", "names")):
        found = headers.get(f"{split}_{name}")
        if found is None and name == "files":
            continue
        fits = found and found.shape == pictures.shape[:1] and found.dtype.kind in kinds
        if not fits:
            raise DataError(
                f"{path}, {split}_{name}: expected {pictures.shape[0]} {what}, found "
                f"{found or 'none'}"
            )


def _class_names(content: Npz) -> list[str]:
    header = content.headers.get("class_names")
    if header is None:
        return []
    fits = len(header.shape) == 1 and header.dtype.kind == "U"
    names = content["class_names"].tolist() if fits else []
    if not names or len(set(names)) != len(names):
        raise DataError(
            f"{content.path}, class_names: expected distinct names, found {header}"
        )
    return names


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
