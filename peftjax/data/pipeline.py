"""Batches from arrays, in an order that the seed alone decides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from peftjax.data.ragged import Ragged

if TYPE_CHECKING:
    import grain

Arrays = Mapping[str, Any]

Last = Literal["drop", "pad"]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
ORDER = 2  # raised when a seed comes to mean another order
WINDOW = 16
READERS = 2  # threads that decode, each a batch


def train_batches(
    arrays: Arrays,
    batch_size: int,
    *,
    seed: int,
    epochs: int | None = None,
    last: Last = "drop",
    lengths: np.ndarray | None = None,
    part: np.ndarray | None = None,
    augment: Augment | None = None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Return shuffled batches `{name: [batch_size, ...]}`, epoch after epoch.

    Each epoch is a fresh permutation. The same arguments give the same batches bit for
    bit; `get_state()` and `set_state()` continue from anywhere. Columns that are not in
    memory (images that are decoded when they are indexed) are read ahead.

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
        part: which examples of each batch are read, by their places in it; by default
            all. Of several processes each reads those that its devices hold
            (`parallel.sharding.own_rows`); state, lengths and padding are those of the
            whole batches.
        augment: of the column `"image"`, one by one, to images of the same shape and
            dtype, such as `augment.augment`. Its generator follows from the seed, the
            batch's number and the place in the batch alone.

    Raises:
        ValueError: arrays of different lengths, none, one named `"mask"` beside a mask
            of padding, fewer examples than one batch with `last="drop"`, no epoch, or
            `augment` without images.
    """
    import grain

    examples = _length(arrays, masked=last == "pad")
    steps = steps_per_epoch(examples, batch_size, last)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs}: expected at least 1")
    if augment is not None and "image" not in arrays:
        raise ValueError(
            f"augment: expected a column 'image', found {', '.join(arrays)}"
        )
    drawn = _Order(examples, batch_size, seed, steps, lengths)
    order = grain.MapDataset.range(steps).repeat(epochs).map_with_index(drawn)

    def take(index: np.ndarray) -> dict[str, np.ndarray]:
        return _take(arrays, index, batch_size if last == "pad" else None, part)

    def change(batch: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        assert augment is not None
        seeds = rng.integers(2**63, size=batch_size)
        own = seeds[: len(batch["image"])] if part is None else seeds[part]
        pairs = zip(batch["image"], own)
        images = [augment(x, np.random.default_rng(seed)) for x, seed in pairs]
        return {**batch, "image": np.stack(images)}

    batches = order.map(take)
    if augment is not None:
        batches = batches.random_map(change, seed=seed % 2**32)
    # One read per batch; what is in memory needs no threads that read ahead.
    in_memory = all(isinstance(x, np.ndarray | Ragged) for x in arrays.values())
    threads = 0 if in_memory and augment is None else READERS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(batches.to_iter_dataset(options))


class _Order:
    """The examples of each batch, epoch after epoch; see `train_batches`."""

    def __init__(
        self,
        examples: int,
        batch_size: int,
        seed: int,
        steps: int,
        lengths: np.ndarray | None,
    ):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.steps = steps
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def __call__(self, number: int, _: Any) -> np.ndarray:
        return self.epoch(number // self.steps)[number % self.steps]

    def _epoch(self, number: int) -> list[np.ndarray]:
        # NumPy keeps these bits from version to version, unlike its permutations.
        bits = np.random.Philox(np.random.SeedSequence((self.seed, number)))
        # Without the remainder: which examples an epoch leaves out is drawn, too.
        drawn = np.argsort(bits.random_raw(self.examples), kind="stable")
        rows = drawn[: self.steps * self.batch_size]
        starts = np.arange(0, len(rows), self.batch_size)
        if self.lengths is not None:
            rows = self._grouped(rows)
            starts = starts[np.argsort(bits.random_raw(len(starts)), kind="stable")]
        return [rows[i : i + self.batch_size] for i in starts]

    def _grouped(self, rows: np.ndarray) -> np.ndarray:
        """Sort by length within windows."""
        assert self.lengths is not None
        window = WINDOW * self.batch_size
        windows = [rows[i : i + window] for i in range(0, len(rows), window)]
        return np.concatenate(
            [own[np.argsort(self.lengths[own], kind="stable")] for own in windows]
        )


def eval_batches(
    arrays: Arrays, batch_size: int, part: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Return all examples once, in order, in padded batches with a `"mask"`.

    Args:
        arrays: as of `train_batches`.
        batch_size: examples per batch.
        part: as of `train_batches`.

    >>> batches = eval_batches({"x": np.arange(3)}, 2)
    >>> [(batch["x"].tolist(), batch["mask"].tolist()) for batch in batches]
    [([0, 1], [1.0, 1.0]), ([2, 2], [1.0, 0.0])]
    """
    examples = _length(arrays, masked=True)
    steps_per_epoch(examples, batch_size, "pad")
    starts = range(0, examples, batch_size)
    rows = (np.arange(i, min(i + batch_size, examples)) for i in starts)
    return (_take(arrays, index, batch_size, part) for index in rows)


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


def _take(arrays: Arrays, index: np.ndarray, size: int | None, part: Any):
    """Gather rows; pad them to `size`, with a mask, where that is given."""
    mask = {}
    if size is not None:
        mask["mask"] = (np.arange(size) < len(index)).astype(np.float32)
        index = np.concatenate([index, np.repeat(index[:1], size - len(index))])
    if part is None:
        return {name: array[index] for name, array in arrays.items()} | mask
    rows = {name: _part(array, index, part) for name, array in arrays.items()}
    return rows | {name: column[part] for name, column in mask.items()}


def _part(array: Any, index: np.ndarray, part: np.ndarray) -> np.ndarray:
    # As long as the longest row of the whole batch: one shape on all processes.
    if isinstance(array, Ragged):
        return array.part(index, part)
    return array[index[part]]
