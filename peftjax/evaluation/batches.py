"""Token rows of like length in batches of one size, so that little is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BUCKETS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def bucket(length: int, buckets: Sequence[int] = BUCKETS) -> int:
    """Return the smallest bucket that holds so many tokens.

    Raises:
        ValueError: none does.

    >>> bucket(17)
    32
    """
    for size in buckets:
        if length <= size:
            return size
    raise ValueError(
        f"{length} tokens: expected at most {buckets[-1]}; shorten the text, or give "
        "larger buckets"
    )


def like_length(
    lengths: Sequence[int], size: int, buckets: Sequence[int] = BUCKETS
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the length and the rows of each batch, the shortest first.

    The last batch is filled with its first row.

    >>> [(length, rows.tolist()) for length, rows in like_length([30, 5, 9], 2)]
    [(16, [1, 2]), (32, [0, 0])]
    """
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        part = order[start : start + size]
        longest = bucket(int(lengths[part[-1]]), buckets)
        yield longest, np.concatenate([part, np.repeat(part[:1], size - len(part))])


def padded_left(
    rows: Sequence[Sequence[int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask `[rows, length]`, int32, padded on the left with 0."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        if len(row):
            ids[number, -len(row) :], mask[number, -len(row) :] = row, 1
    return ids, mask
