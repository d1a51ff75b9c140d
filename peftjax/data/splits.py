"""Training, validation and test examples of a data set that comes in one piece."""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "validation", "test")
FEWEST = 3  # examples of a class, so that one of them is trained on


def by_seed(
    labels: np.ndarray, classes: tuple[str, ...], seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the rows of each of `SPLITS`: eight, one and one in ten of each class.

    The same labels and seed give the same rows.

    Args:
        labels: `[N]`, from 0 to the number of classes.
        classes: their names, for messages.
        seed: of the draw.

    Raises:
        ValueError: fewer than ten examples, or than three of a class.

    >>> rows = by_seed(np.arange(40) % 2, ("cat", "dog"))
    >>> {name: len(part) for name, part in rows.items()}
    {'train': 32, 'validation': 4, 'test': 4}
    """
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts):
        if count < FEWEST:
            raise ValueError(
                f"class {name!r}: expected at least {FEWEST} examples, found {count}"
            )
    if len(labels) < 10:
        raise ValueError(f"expected at least 10 examples, found {len(labels)}")
    rows = np.random.default_rng(seed).permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    # Neighbours in each ten, so that of three of a class one is left to train on.
    tenth = np.arange(len(rows)) % 10
    parts = {"train": tenth < 8, "validation": tenth == 8, "test": tenth == 9}
    return {name: np.sort(rows[part]) for name, part in parts.items()}
