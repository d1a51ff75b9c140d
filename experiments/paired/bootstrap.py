"""How sure a difference between two methods is, over seeds and over test examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """One method's score minus another's, of seeds and examples drawn alike for both.

    Attributes:
        mean: over the seeds, on the test split as it is.
        low, high: the central 95 % of the draws.
    """

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def difference(mine: np.ndarray, theirs: np.ndarray) -> Difference:
    """Return the paired difference and its bootstrap interval (percentiles).

    A draw takes as many seeds and as many test examples as there are, with
    replacement, the same for both methods. So what a hard example or a lucky start does
    to both of them cancels.

    Args:
        mine: what `scores` returns of one method.
        theirs: of the other one, with the same seeds and the same labels.

    Raises:
        ValueError: the two are not of equal shape.

    >>> labels, right = np.arange(100) % 2, np.eye(2)[np.arange(100) % 2][None]
    >>> wrong = right.copy()
    >>> wrong[:, :50] = 1 - wrong[:, :50]
    >>> accuracy = lambda labels, outputs: (outputs.argmax(-1) == labels).mean()
    >>> found = difference(*(scores(accuracy, labels, x) for x in (right, wrong)))
    >>> float(found.mean), 0.35 < found.low < 0.45, 0.55 < found.high < 0.65
    (0.5, True, True)
    """
    if mine.shape != theirs.shape:
        raise ValueError(f"expected equal shapes; found {mine.shape}, {theirs.shape}")
    apart = mine - theirs
    draws, seeds = apart.shape
    which = np.random.default_rng(1).integers(seeds, size=(draws - 1, seeds))
    found = np.take_along_axis(apart[1:], which, axis=1).mean(1)
    ends = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(apart[0].mean()), *map(float, ends))


def scores(
    score: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    outputs: np.ndarray,
    draws: int = DRAWS,
) -> np.ndarray:
    """Return the score of each seed on the test split and on draws of its examples.

    Args:
        score: labels `[N]` and outputs `[N, ...]` to a score.
        labels: of the test split, `[N]`.
        outputs: of each seed, `[seeds, N, ...]`.
        draws: how many; those of equal labels are of the same examples.

    Returns:
        `[1 + draws, seeds]`, the first row of the split as it is.
    """
    count, rng = len(labels), np.random.default_rng(0)
    drawn = [np.arange(count), *rng.integers(count, size=(draws, count))]
    return np.array([[score(labels[i], own[i]) for own in outputs] for i in drawn])
