"""scikit-learn's bundled handwritten digits: 1,797 real 8x8 scans, no download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), test part.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_VALIDATION = 180
_TEST = 360


class Examples(NamedTuple):
    """`images [N, 8, 8, 1]` float32 in [0, 1] and `labels [N]` int32."""

    images: np.ndarray
    labels: np.ndarray


class Digits(NamedTuple):
    """The three splits."""

    train: Examples
    validation: Examples
    test: Examples


def load(classes: Iterable[int] = range(10), seed: int = 0) -> Digits:
    """Return the scans of some digits, split 70/10/20 into train, validation and test.

    All scans are split once per seed, stratified by digit, and then filtered: which
    split a scan belongs to does not depend on `classes`, so that a test scan is never
    among the training scans of another choice of classes.

    Args:
        classes: the digits wanted; label i stands for the i-th of them.
        seed: decides the split and the order of the examples.

    Raises:
        ValueError: `classes` is empty, repeats a digit, or holds anything but 0 to 9.
        ImportError: scikit-learn is not installed.

    >>> digits = load([7, 3])
    >>> digits.train.images.shape, digits.train.images.dtype
    ((253, 8, 8, 1), dtype('float32'))
    >>> [len(split.labels) for split in digits]
    [253, 36, 73]
    """
    wanted = _checked(classes)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits data set needs scikit-learn: pip install scikit-learn"
        ) from error
    pixels, target = load_digits(return_X_y=True)
    images = np.asarray(pixels / 16, np.float32).reshape(-1, 8, 8, 1)
    digit = np.asarray(target, np.int32)

    def split(rows: np.ndarray, held_out: int) -> Iterable[np.ndarray]:
        return train_test_split(  # pyright: ignore[reportReturnType]
            rows, test_size=held_out, random_state=seed, stratify=digit[rows]
        )

    rest, test = split(np.arange(len(digit)), _TEST)
    train, validation = split(rest, _VALIDATION)
    label = np.full(10, -1, np.int32)
    label[wanted] = np.arange(len(wanted))

    def select(rows: np.ndarray) -> Examples:
        rows = rows[label[digit[rows]] >= 0]
        return Examples(images[rows], label[digit[rows]])

    return Digits(select(train), select(validation), select(test))


def _checked(classes: Iterable[int]) -> list[int]:
    try:
        wanted = [operator.index(digit) for digit in classes]
    except TypeError:
        wanted = []
    distinct = set(wanted)
    if not wanted or len(distinct) < len(wanted) or not distinct <= {*range(10)}:
        raise ValueError(
            "classes: expected distinct integers from 0 to 9, at least one, found "
            f"{classes!r}; write for example classes=[5, 6, 7, 8, 9]"
        )
    return wanted
