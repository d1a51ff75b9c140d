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


def few_shot(
    labels: np.ndarray,
    rows: np.ndarray,
    classes: tuple[str, ...],
    shots: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of k examples of each class: to train on, and held out of them.

    The k of a seed are among its 2k: each class is shuffled once, and its first k are
    taken. The last fifth of the k, at least one, is held out, as ELEVATER
    (arXiv 2204.08790) holds one of five out; of one shot there is none.

    Args:
        labels: `[N]`, from 0 to the number of classes.
        rows: those of the N to draw from.
        classes: their names, for messages.
        shots: k.
        seed: of the draw.

    Raises:
        ValueError: k is below 1, or a class has fewer examples among the rows.

    >>> labels = np.arange(40) % 2
    >>> train, held_out = few_shot(labels, np.arange(30), ("cat", "dog"), shots=5)
    >>> np.bincount(labels[train]).tolist(), np.bincount(labels[held_out]).tolist()
    ([4, 4], [1, 1])
    """
    if shots < 1:
        raise ValueError(f"expected at least 1 shot, found {shots}")
    draw, kept, held = np.random.default_rng(seed), [], []
    count = shots - (max(1, shots // 5) if shots > 1 else 0)
    for label, name in enumerate(classes):
        own = draw.permutation(np.sort(rows[labels[rows] == label]))
        if len(own) < shots:
            raise ValueError(
                f"class {name!r}: expected at least {shots} examples to draw "
                f"{shots} shots from, found {len(own)}"
            )
        kept.append(own[:count])
        held.append(own[count:shots])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))
