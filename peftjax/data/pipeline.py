"""Batches from arrays, in an order that the seed alone decides."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from peftjax.data.order import permutation
from peftjax.data.ragged import Ragged

Arrays = Mapping[str, Any]

Last = Literal["drop", "pad"]
WINDOW = 16


class Batches:
    """An iterator of batches that can be left and taken up anywhere.

    Columns that are not in memory (images that are decoded when they are indexed) are
    read one batch ahead.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        order: _Shuffled | _Grouped,
        batches: int | None,
        last: Last,
    ):
        self._arrays, self._order, self._batches = arrays, order, batches
        self._size = batch_size if last == "pad" else None
        self._next = 0
        in_memory = all(isinstance(x, np.ndarray | Ragged) for x in arrays.values())
        self._reader = None if in_memory else ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[dict[str, np.ndarray]]] | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        number = self._next
        if self._batches is not None and number >= self._batches:
            raise StopIteration
        if self._ahead is not None and self._ahead[0] == number:
            batch = self._ahead[1].result()
        else:
            batch = self._read(number)
        self._next = number + 1
        if self._reader is not None:
            self._ahead = number + 1, self._reader.submit(self._read, number + 1)
        return batch

    def get_state(self) -> dict[str, int]:
        """Return the place in the data; it can be written as JSON."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continue from a place that `get_state` returned.

        Raises:
            ValueError: it is none.
        """
        place = state.get("next_index") if isinstance(state, Mapping) else None
        if set(state) != {"next_index"} or type(place) is not int or place < 0:
            raise ValueError(
                f"the place in the data is {state!r:.80}: expected a count"
            )
        self._next = place

    def _read(self, number: int) -> dict[str, np.ndarray]:
        return _take(self._arrays, self._order(number), self._size)


def train_batches(
    arrays: Arrays,
    batch_size: int,
    *,
    seed: int,
    epochs: int | None = None,
    last: Last = "drop",
    lengths: np.ndarray | None = None,
) -> Batches:
    """Return shuffled batches `{name: [batch_size, ...]}`, epoch after epoch.

    Each epoch is a fresh permutation. The same arguments give the same batches bit for
    bit; `get_state()` and `set_state()` continue from anywhere.

    Args:
        arrays: `{name: [examples, ...]}`, any dtype.
        batch_size: examples per batch.
        seed: of the order, at least 0.
        epochs: how many; endless by default.
        last: what to do with an epoch's last, incomplete batch: `"drop"` it, or `"pad"`
            it by repeating its first example. With `"pad"` every batch has a `"mask"`
            `[batch_size]`, float32, 0 on padding.
        lengths: `[examples]`, the tokens of each. If given, examples of like length
            share a batch: each epoch's permutation is sorted within windows of
            `WINDOW` batches, and the order of the batches is drawn anew. Text then
            takes about half the padding.

    Raises:
        ValueError: arrays of different lengths, none, one named `"mask"` beside a mask
            of padding, fewer examples than one batch with `last="drop"`, or no epoch.
    """
    examples = _length(arrays, masked=last == "pad")
    steps = steps_per_epoch(examples, batch_size, last)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs}: expected at least 1")
    if lengths is None:
        order = _Shuffled(examples, batch_size, seed, steps)
    else:
        order = _Grouped(np.asarray(lengths), batch_size, seed, steps)
    batches = None if epochs is None else epochs * steps
    return Batches(arrays, batch_size, order, batches, last)


class _Shuffled:
    """The examples of each batch, drawn anew in every epoch."""

    def __init__(self, examples: int, batch_size: int, seed: int, steps: int):
        self.batch_size, self.steps = batch_size, steps
        self.epoch = functools.lru_cache(maxsize=2)(
            functools.partial(permutation, examples, seed)
        )

    def __call__(self, number: int) -> np.ndarray:
        start = number % self.steps * self.batch_size
        return self.epoch(number // self.steps)[start : start + self.batch_size]


class _Grouped:
    """The examples of each batch, those of like length together, epoch after epoch."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, steps: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.steps = steps
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def __call__(self, number: int) -> np.ndarray:
        return self.epoch(number // self.steps)[number % self.steps]

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
    """Return all examples once, in order, in padded batches with a `"mask"`.

    >>> batches = eval_batches({"x": np.arange(3)}, 2)
    >>> [(batch["x"].tolist(), batch["mask"].tolist()) for batch in batches]
    [([0, 1], [1.0, 1.0]), ([2, 2], [1.0, 0.0])]
    """
    examples = _length(arrays, masked=True)
    steps_per_epoch(examples, batch_size, "pad")
    starts = range(0, examples, batch_size)
    rows = (np.arange(i, min(i + batch_size, examples)) for i in starts)
    return (_take(arrays, index, batch_size) for index in rows)


def steps_per_epoch(examples: int, batch_size: int, last: Last = "drop") -> int:
    """Return the number of batches in one epoch of `train_batches`.

    >>> steps_per_epoch(1000, 64), steps_per_epoch(1000, 64, last="pad")
    (15, 16)
    """
    if last not in ("drop", "pad"):
        raise ValueError(f"last={last!r}: expected 'drop' or 'pad'")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    steps = examples // batch_size if last == "drop" else -(-examples // batch_size)
    if steps == 0:
        raise ValueError(
            f"{examples} examples do not fill one batch of {batch_size}: choose a "
            "smaller batch, or last='pad'"
        )
    return steps


def _length(arrays: Arrays, masked: bool) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected arrays of one length, found {lengths}")
    if masked and "mask" in arrays:
        raise ValueError(
            "an array named 'mask': the batch's mask of padding takes that name; call "
            "a mask of tokens 'token_mask'"
        )
    return next(iter(lengths.values()))


def _take(arrays: Arrays, index: np.ndarray, size: int | None):
    """Gather rows; pad them to `size`, with a mask, where that is given."""
    if size is None:
        return {name: array[index] for name, array in arrays.items()}
    mask = (np.arange(size) < len(index)).astype(np.float32)
    index = np.concatenate([index, np.repeat(index[:1], size - len(index))])
    return {name: array[index] for name, array in arrays.items()} | {"mask": mask}
