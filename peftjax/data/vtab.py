"""VTAB-1k: 19 tasks of 800 training and 200 validation images, and the full test split.

Zhai et al., arXiv 1910.04867. Splits: `train800`, `val200` (hyperparameters),
`train800val200` (the final run) and `test`. Three sources: the folders that torch
papers use (`vtab_folder`), what `experiments.prepare_data vtab` made of them under
`vtab/<task>`, and the official TFDS data sets with VTAB's split boundaries.
The example lists of the papers came from the TFDS versions of their time; only their
folders hold exactly these examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peftjax.data import images, source, vtab_folder, vtab_labels
from peftjax.errors import unknown

Group = Literal["natural", "specialized", "structured"]
SIZES = {"train800": 800, "val200": 200, "train800val200": 1000}


@dataclass(frozen=True)
class Dataset:
    """A data set of TFDS as VTAB divides it; training images are its first 800.

    Attributes:
        name: name in TFDS.
        validation: TFDS split of the 200 validation images.
        test: TFDS split of the test images.
        scale: pixels are multiplied by it.
    """

    name: str
    validation: str = "validation[:200]"
    test: str = "test"
    scale: int = 1

    def split(self, name: str) -> str:
        """Return the TFDS split of one of VTAB's."""
        train = "train[:800]"
        return {
            "train800": train,
            "val200": self.validation,
            "train800val200": f"{train}+{self.validation}",
            "test": self.test,
        }[name]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        group: natural, specialized or structured; tables average the three group means.
        classes: number of classes.
        test_size: published number of test images.
        data: where its images come from.
        label: derives the label from an example of TFDS, or names its annotation.
    """

    group: Group
    classes: int
    test_size: int
    data: Dataset
    label: Callable[[Mapping[str, Any]], int] | str = "label"


def _after(start: int) -> str:
    # VTAB takes the validation images after its own, larger training part.
    return f"train[{start}:{start + 200}]"


_CLEVR = Dataset("clevr", _after(63_000), "validation")
# dSprites stores 0 and 1.
_DSPRITES = Dataset("dsprites", _after(589_824), "train[663552:]", scale=255)
_NORB = Dataset("smallnorb", "test[:200]", "test[12150:]")
_EUROSAT = Dataset("eurosat/rgb", _after(16_200), "train[21600:]")
_RESISC = Dataset("resisc45", _after(18_900), "train[25200:]")
_RETINOPATHY = Dataset("diabetic_retinopathy_detection/btgraham-300")
_X = vtab_labels.binned("label_x_position", 32)
_ORIENTATION = vtab_labels.binned("label_orientation", 40)

_NATURAL = {
    "cifar": (100, 10_000, Dataset("cifar100", _after(45_000))),
    "caltech101": (102, 6_084, Dataset("caltech101", _after(2_754))),
    "dtd": (47, 1_880, Dataset("dtd")),
    "oxford_flowers102": (102, 6_149, Dataset("oxford_flowers102")),
    "oxford_iiit_pet": (37, 3_669, Dataset("oxford_iiit_pet", _after(2_944))),
    "svhn": (10, 26_032, Dataset("svhn_cropped", _after(65_931))),
    "sun397": (397, 21_750, Dataset("sun397/tfds")),
}
_SPECIALIZED = {
    "patch_camelyon": (2, 32_768, Dataset("patch_camelyon")),
    "eurosat": (10, 5_400, _EUROSAT),
    "resisc45": (45, 6_300, _RESISC),
    "diabetic_retinopathy": (5, 42_670, _RETINOPATHY),
}
_STRUCTURED = {
    "clevr_count": (8, 15_000, _CLEVR, vtab_labels.clevr_count),
    "clevr_dist": (6, 15_000, _CLEVR, vtab_labels.clevr_distance),
    "dmlab": (6, 22_735, Dataset("dmlab")),
    "kitti": (4, 711, Dataset("kitti"), vtab_labels.kitti_distance),
    "dsprites_loc": (16, 73_728, _DSPRITES, _X),
    "dsprites_ori": (16, 73_728, _DSPRITES, _ORIENTATION),
    "smallnorb_azi": (18, 12_150, _NORB, "label_azimuth"),
    "smallnorb_ele": (9, 12_150, _NORB, "label_elevation"),
}
TASKS: dict[str, Task] = {
    **{name: Task("natural", *facts) for name, facts in _NATURAL.items()},
    **{name: Task("specialized", *facts) for name, facts in _SPECIALIZED.items()},
    **{name: Task("structured", *facts) for name, facts in _STRUCTURED.items()},
}


def get_task(name: str) -> Task:
    """Return a task.

    Raises:
        ValueError: there is none of this name; the message holds the nearest ones.
    """
    if name not in TASKS:
        raise unknown("VTAB-1k task", name, TASKS)
    return TASKS[name]


def load(
    task: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: int = 224,
    download: bool = False,
) -> images.Split:
    """Open one split of one task.

    Args:
        task: `"cifar"`, `"clevr_count"`, ..., see `TASKS`.
        split: `"train800"`, `"val200"`, `"train800val200"` or `"test"`.
        data_dir: TFDS's data folder, or the folder of the torch papers' task folders.
        size: height and width that images are resized to.
        download: let TFDS fetch what is absent.

    Raises:
        ValueError: unknown task or split, a damaged image, a label out of range.
        MissingData: none of the three sources is in `data_dir`.
    """
    spec = get_task(task)
    published = {**SIZES, "test": spec.test_size}
    if split not in published:
        raise unknown("split of VTAB-1k", split, published)
    name, classes = f"vtab/{task}", spec.classes
    if data_dir and vtab_folder.is_folder(data_dir, task):
        files = vtab_folder.read(data_dir, task, split)
        labels, found = images.read_files(f"{name}:{split}", files, classes, size)
    elif not download and source.splits(name, data_dir):
        part = split.replace("train800val200", "train800+val200")
        opened = source.open_split(name, part, data_dir)
        labels, found = images.read_source(opened, classes, size)
    else:
        data = spec.data
        part = data.split(split)
        opened = source.open_split(data.name, part, data_dir, download=download)
        labels, found = images.read_source(
            opened, classes, size, spec.label, data.scale
        )
    source.check_size(f"{name}:{split}", len(labels), published[split])
    return images.Split(name, split, found, labels, classes, published[split])
