"""The folder of PASCAL VOC's classification task as it is unpacked, `VOC2007`.

`ImageSets/Main/<class>_<split>.txt` has a line for each image of the split, such as
`000005 -1`: 1 where the class is seen in `JPEGImages/000005.jpg`, -1 where it is not,
and 0 where only objects are that were marked difficult. 0 counts as not seen here;
VOC's own evaluation leaves such an image out of that class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftjax.data.class_folders import FolderError

SPLITS = {"train": "trainval", "test": "test"}
_LINE = re.compile(r"(\w{1,64})[ \t]+(-1|0|1)[ \t]*")


def listed(
    folder: Path, classes: Sequence[str]
) -> dict[str, tuple[list[Path], np.ndarray]]:
    """Return the images and labels of train (VOC's trainval) and test.

    Args:
        folder: that holds `ImageSets/Main` and `JPEGImages`.
        classes: names, in the order of the columns of the labels.

    Returns:
        Files, and labels float32 `[N, classes]`, 0 or 1.

    Raises:
        FolderError: a file is absent, has another form, or is of other images than that
            of the first class.
    """
    found = {}
    for part, split in SPLITS.items():
        sets = folder / "ImageSets" / "Main"
        first, *others = (_read(sets / f"{name}_{split}.txt") for name in classes)
        for name, other in zip(classes[1:], others):
            if other.keys() != first.keys():
                differs = min(other.keys() ^ first.keys())
                raise FolderError(
                    f"{sets}: expected one list of images for all classes, found "
                    f"{differs!r} in one of {classes[0]}_{split}.txt and "
                    f"{name}_{split}.txt alone"
                )
        files = [folder / "JPEGImages" / f"{name}.jpg" for name in first]
        for file in files:
            if not file.is_file():
                raise FolderError(f"{file}: no such image; {sets} lists it")
        columns = [[one[name] == "1" for name in first] for one in (first, *others)]
        found[part] = files, np.array(columns, np.float32).T
    return found


def _read(file: Path) -> dict[str, str]:
    """Return `{image: "1", "0" or "-1"}`."""
    if not file.is_file():
        raise FolderError(
            f"{file}: no such file; expected VOC's classification lists, "
            "ImageSets/Main/<class>_trainval.txt and <class>_test.txt"
        )
    found = {}
    for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[1] in found:
            raise FolderError(
                f"{file}, line {number}: expected an image that was not named before, "
                f"and 1, 0 or -1, found {line[:60]!r}"
            )
        found[match[1]] = match[2]
    return found
