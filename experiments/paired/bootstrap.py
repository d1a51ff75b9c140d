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


def difference(
    score: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    mine: np.ndarray,
    theirs: np.ndarray,
    draws: int = DRAWS,
) -> Difference:
    """Return the paired difference and its bootstrap interval (percentiles).

    A draw takes as many seeds and as many test examples as there are, with
    replacement, the same for both methods. So what a hard example or a lucky start does
    to both of them cancels.

    Args:
        score: labels `[N]` and outputs `[N, ...]` to a score.
        labels: of the test split, `[N]`.
        mine: outputs of each seed, `[seeds, N, ...]`.
        theirs: those of the other method, with the same seeds.
        draws: how many.

    Raises:
        ValueError: the two are not of equal shape.

    >>> labels, right = np.arange(100) % 2, np.eye(2)[np.arange(100) % 2][None]
    >>> wrong = right.copy()
    >>> wrong[:, :50] = 1 - wrong[:, :50]
    >>> accuracy = lambda labels, outputs: (outputs.argmax(-1) == labels).mean()
    >>> found = difference(accuracy, labels, right, wrong)
    >>> float(found.mean), 0.35 < found.low < 0.45, 0.55 < found.high < 0.65
    (0.5, True, True)
    """
    if mine.shape != theirs.shape:
        raise ValueError(f"expected equal shapes; found {mine.shape}, {theirs.shape}")
    rng = np.random.default_rng(0)
    seeds, count = mine.shape[:2]

    def between(ours: np.ndarray, others: np.ndarray, labels: np.ndarray) -> float:
        pairs = zip(ours, others)
        return float(np.mean([score(labels, a) - score(labels, b) for a, b in pairs]))

    found = []
    for _ in range(draws):
        which = rng.integers(seeds, size=seeds)[:, None]
        examples = rng.integers(count, size=count)
        drawn = mine[which, examples], theirs[which, examples]
        found.append(between(*drawn, labels[examples]))
    ends = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(between(mine, theirs, labels), *map(float, ends))
