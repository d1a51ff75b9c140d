"""The images of `<class>/<image>`, or of `<split>/<class>/<image>`, with labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from peftjax.data.errors import DataError
from peftjax.data.images import EXTENSIONS

# What the three splits are called, by the names of their folders.
NAMES = {"train": 0, "val": 1, "validation": 1, "test": 2}
_SHOWN = 3


class FolderError(DataError):
    """A folder or a file of images cannot be used."""


class Listed(NamedTuple):
    """The images of a folder.

    Attributes:
        files: with their labels; those of training, validation and test in this order,
            where the folder is split.
        classes: names, in alphabetical order; those of training, where it is split.
        given: the first file of validation and of test, where the folder is split.
    """

    files: list[tuple[Path, int]]
    classes: tuple[str, ...]
    given: tuple[int, int] | None


def listed(root: Path) -> Listed:
    """List a folder; files that are no images are left out, with a warning.

    Folders `train`, `test` and perhaps `val` or `validation` that hold folders only are
    splits. Validation and test may lack a class of training, and may not have another.

    Raises:
        FolderError: no class or only one, a class without images, a split is absent, or
            one has a class that training lacks.
    """
    folders, stray = _inside(root)
    if _is_split(folders):
        found = _split(root, folders, stray)
    else:
        classes = tuple(kind.name for kind in folders)
        files = _files(folders, {name: i for i, name in enumerate(classes)}, stray)
        found = Listed(files, classes, None)
    check_classes(root, found.classes)
    if stray:
        names = ", ".join(str(path.relative_to(root)) for path in stray[:_SHOWN])
        more = f" and {len(stray) - _SHOWN} more" if len(stray) > _SHOWN else ""
        warnings.warn(f"{root}: left out, no images: {names}{more}", stacklevel=4)
    return found


def check_classes(path: Path, classes: Sequence[str]) -> None:
    """Raise FolderError for fewer than two classes."""
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "no images"
        raise FolderError(
            f"{path}: expected {path}/<class>/<image> of two classes or more, found "
            f"{found}"
        )


def _is_split(folders: Sequence[Path]) -> bool:
    """Return whether folders are splits, and not classes of such names."""
    names = {path.name for path in folders}
    alone = all(not _images(path) for path in folders)
    return "train" in names and names <= NAMES.keys() and alone


def _split(root: Path, folders: Sequence[Path], stray: list[Path]) -> Listed:
    parts = {NAMES[path.name]: path for path in folders}
    names = ", ".join(path.name for path in folders)
    if 2 not in parts or len(parts) < len(folders):
        raise FolderError(
            f"{root}: expected the splits train, test and perhaps val, found {names}"
        )
    inside = {part: _inside(path) for part, path in parts.items()}
    labels = {kind.name: label for label, kind in enumerate(inside[0][0])}
    files: list[list[tuple[Path, int]]] = [[], [], []]
    for part, (kinds, loose) in inside.items():
        stray += loose
        if others := [kind.name for kind in kinds if kind.name not in labels]:
            raise FolderError(
                f"{parts[part]}: has the class {others[0]!r}, which {parts[0]} lacks; "
                f"expected its classes, {', '.join([*labels][:8])}"
                f"{', ...' if len(labels) > 8 else ''}"
            )
        files[part] = _files(kinds, labels, stray)
    if not files[2]:
        raise FolderError(f"{parts[2]}: expected images to test on, found none")
    ends = len(files[0]), len(files[0]) + len(files[1])
    return Listed([*files[0], *files[1], *files[2]], tuple(labels), ends)


def _files(
    folders: Sequence[Path], labels: dict[str, int], stray: list[Path]
) -> list[tuple[Path, int]]:
    """Return the images of class folders; add what is none to `stray`."""
    found: list[tuple[Path, int]] = []
    for kind in folders:
        own = _images(kind)
        inside = _visible(kind)
        stray += [path for path in inside if path not in set(own)]
        if not own:
            deeper = any(path.is_dir() for path in inside)
            hint = "; of <split>/<class> folders give one" if deeper else ""
            raise FolderError(f"{kind}: expected images of one class, found none{hint}")
        found += [(path, labels[kind.name]) for path in own]
    return found


def _inside(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in a folder, and the rest."""
    visible = _visible(root)
    return [x for x in visible if x.is_dir()], [x for x in visible if not x.is_dir()]


def _images(folder: Path) -> list[Path]:
    inside = _visible(folder)
    return [x for x in inside if x.is_file() and x.suffix.lower() in EXTENSIONS]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
