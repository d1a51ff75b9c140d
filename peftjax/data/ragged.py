"""Rows of different lengths that batch like an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Ragged:
    """A column of token rows; indexing pads the rows taken to one bucket's length.

    `column[rows]`, `rows [B]`, is `[B, L]`, int32, where L is the smallest bucket that
    holds the longest of these rows. It stands where `peftjax.data.pipeline` takes an
    array: each batch is as short as its rows allow, and a jitted step is compiled once
    per bucket.

    Args:
        values: `[T]`, the rows one after the other.
        starts: `[N + 1]`, int64; row i is `values[starts[i]:starts[i + 1]]`.
        fill: what rows are padded with, on the right.
        buckets: the lengths allowed, ascending.

    Raises:
        ValueError: the longest row is longer than the largest bucket.

    >>> column = Ragged(np.array([7, 8, 9]), np.array([0, 1, 3]), 0, (2, 4))
    >>> column[np.array([1, 0])].tolist()
    [[8, 9], [7, 0]]
    """

    def __init__(
        self, values: np.ndarray, starts: np.ndarray, fill: int, buckets: Sequence[int]
    ):
        self.values, self.starts, self.fill = values, starts, fill
        self.buckets = np.array(buckets)
        if not len(buckets) or np.any(np.diff(self.buckets) <= 0) or buckets[0] < 1:
            raise ValueError(f"buckets={buckets}: expected ascending positive lengths")
        longest = int(np.diff(starts).max(initial=0))
        if longest > self.buckets[-1]:
            raise ValueError(
                f"the longest row has {longest} tokens and the largest bucket holds "
                f"{self.buckets[-1]}: add a bucket, or truncate to a smaller max_length"
            )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, `[N]`."""
        return np.diff(self.starts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.part(rows, slice(None))

    def part(self, rows: Any, which: Any) -> np.ndarray:
        """Return `self[rows][which]`; no row is read that is not in it."""
        longest = (self.starts[1:][rows] - self.starts[:-1][rows]).max(initial=0)
        bucket = np.searchsorted(self.buckets, longest)
        first = self.starts[:-1][rows][which][:, None]
        lengths = self.starts[1:][rows][which][:, None] - first
        offset = np.arange(int(self.buckets[bucket]))
        inside = offset < lengths
        taken = self.values.take(np.where(inside, first + offset, 0), mode="clip")
        return np.where(inside, taken, self.fill).astype(np.int32)

    def select(self, rows: np.ndarray) -> Ragged:
        """Return the column of these rows alone."""
        spans = [self.values[self.starts[row] : self.starts[row + 1]] for row in rows]
        starts = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
        values = np.concatenate(spans) if spans else self.values[:0]
        return Ragged(values, starts.astype(np.int64), self.fill, self.buckets.tolist())
