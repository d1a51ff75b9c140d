"""Batches from arrays in memory, in an order that the seed alone decides."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import grain

Arrays = Mapping[str, np.ndarray]

Last = Literal["drop", "pad"]
WINDOW = 16


def train_batches(
    arrays: Arrays,
    batch_size: int,
    *,
    seed: int,
    epochs: int | None = None,
    last: Last = "drop",
    lengths: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Return shuffled batches `{name: [batch_size, ...]}`, epoch after epoch.

    Each epoch is a fresh permutation. The same arguments give the same batches bit for
    bit; `get_state()` and `set_state()` continue from anywhere.

    Args:
        arrays: `{name: [examples, ...]}`, any dtype.
        batch_size: examples per batch.
        seed: of the order.
        epochs: how many; endless by default.
        last: what to do with an epoch's last, incomplete batch: `"drop"` it, or `"pad"`
            it by repeating its first example. With `"pad"` every batch has a `"mask"`
            `[batch_size]`, float32, 0 on padding.
        lengths: `[examples]`, the tokens of each. If given, examples of like length
            share a batch: each epoch's permutation is sorted within windows of
            `WINDOW` batches, and the order of the batches is drawn anew. Text then
            takes about half the padding.

    Raises:
        ValueError: arrays of different lengths, none, or fewer examples than one batch
            with `last="drop"`.
    """
    import grain

    examples = _length(arrays)
    steps_per_epoch(examples, batch_size, last)
    if lengths is None:
        dataset = grain.MapDataset.range(examples).seed(seed).shuffle()
        dataset = dataset.batch(batch_size, drop_remainder=last == "drop")
        dataset = dataset.repeat(epochs)
    else:
        order = _Grouped(np.asarray(lengths), batch_size, seed, last)
        dataset = (
            grain.MapDataset.range(len(order)).repeat(epochs).map_with_index(order)
        )

    def take(index: np.ndarray) -> dict[str, np.ndarray]:
        return _take(arrays, index, batch_size if last == "pad" else None)

    # Arrays in memory need no reader threads.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(dataset.map(take).to_iter_dataset(options))


class _Grouped:
    """The examples of each batch, those of like length together, epoch after epoch."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, last: Last):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.steps = steps_per_epoch(len(lengths), batch_size, last)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        return self.steps

    def __call__(self, index: int, _: Any) -> np.ndarray:
        return self.epoch(index // self.steps)[index % self.steps]

    def _epoch(self, number: int) -> list[np.ndarray]:
        draw = np.random.default_rng((self.seed, number))
        # Without the remainder: which examples an epoch leaves out is drawn, too.
        order = draw.permutation(len(self.lengths))[: self.steps * self.batch_size]
        window = WINDOW * self.batch_size
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        parts = [
            rows[np.argsort(self.lengths[rows], kind="stable")] for rows in windows
        ]
        rows = np.concatenate(parts)
        starts = draw.permutation(range(0, len(rows), self.batch_size))
        return [rows[i : i + self.batch_size] for i in starts]


def eval_batches(arrays: Arrays, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield all examples once, in order, in padded batches with a `"mask"`.

    >>> batches = eval_batches({"x": np.arange(3)}, 2)
    >>> [(batch["x"].tolist(), batch["mask"].tolist()) for batch in batches]
    [([0, 1], [1.0, 1.0]), ([2, 2], [1.0, 0.0])]
    """
    examples = _length(arrays)
    for start in range(0, examples, batch_size):
        index = np.arange(start, min(start + batch_size, examples))
        yield _take(arrays, index, batch_size)


def steps_per_epoch(examples: int, batch_size: int, last: Last = "drop") -> int:
    """Return the number of batches in one epoch of `train_batches`.

    >>> steps_per_epoch(1000, 64), steps_per_epoch(1000, 64, last="pad")
    (15, 16)
    """
    if last not in ("drop", "pad"):
        raise ValueError(f"last={last!r}: expected 'drop' or 'pad'")
    steps = examples // batch_size if last == "drop" else -(-examples // batch_size)
    if steps == 0:
        raise ValueError(
            f"{examples} examples do not fill one batch of {batch_size}: choose a "
            "smaller batch, or last='pad'"
        )
    return steps


def _length(arrays: Arrays) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected arrays of one length, found {lengths}")
    return next(iter(lengths.values()))


def _take(arrays: Arrays, index: np.ndarray, size: int | None):
    """Gather rows; pad them to `size`, with a mask, where that is given."""
    if size is None:
        return {name: array[index] for name, array in arrays.items()}
    mask = (np.arange(size) < len(index)).astype(np.float32)
    index = np.concatenate([index, np.repeat(index[:1], size - len(index))])
    return {name: array[index] for name, array in arrays.items()} | {"mask": mask}
