"""The order of the data: the seed decides it, and it can be left and taken up."""

import functools
import json
import threading

import numpy as np
import pytest

from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from peftjax.data.ragged import Ragged

ARRAYS = {"x": np.arange(10) * 2.0, "label": np.arange(10)}


def labels(iterator, batches):
    return [next(iterator)["label"].tolist() for _ in range(batches)]


def test_the_seed_decides_the_order():
    runs = [labels(train_batches(ARRAYS, 4, seed=s), 9) for s in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


# Of `ORDER` 2: a run of another order is not resumed.
RECORDED = {
    (10, 0): [3, 7, 4, 2, 9],
    (1257, 7): [823, 1113, 88, 1000, 522],
    (65537, 3): [63417, 44172, 39322, 21997, 21489],
    (300_001, 2**31): [230576, 188174, 18730, 94567, 244430],
}


@pytest.mark.parametrize(("rows", "seed"), RECORDED)
def test_the_order_is_the_recorded_one(rows, seed):
    batches = train_batches({"label": np.arange(rows)}, 5, seed=seed)
    batches.set_state({"next_index": rows // 5})  # the first of epoch 1
    assert next(batches)["label"].tolist() == RECORDED[rows, seed]


class Slow:
    """A column that is no array, and notes who reads it."""

    def __init__(self):
        self.readers = set()

    def __len__(self):
        return 10

    def __getitem__(self, rows):
        self.readers.add(threading.current_thread().name)
        if 9 in rows:
            raise ValueError("a damaged image")
        return rows * 3


def test_columns_that_are_not_in_memory_are_read_ahead():
    column = Slow()
    data = train_batches({"x": column, "label": np.arange(10)}, 2, seed=1)
    plain = labels(train_batches({"label": np.arange(10)}, 2, seed=1), 5)
    good = next(i for i, batch in enumerate(plain) if 9 in batch)
    for number in range(good):
        batch = next(data)
        assert batch["label"].tolist() == plain[number]
        assert (batch["x"] == 3 * batch["label"]).all()
        assert data.get_state() == {"next_index": number + 1}
    with pytest.raises(ValueError, match="a damaged image"):
        next(data)
    assert threading.current_thread().name not in column.readers


def test_an_epoch_is_a_permutation_and_the_next_is_another():
    batches = list(train_batches(ARRAYS, 5, seed=0, epochs=2))
    assert len(batches) == 4
    first, second = (
        np.concatenate([b["label"] for b in half])
        for half in (batches[:2], batches[2:])
    )
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert all((b["x"] == 2 * b["label"]).all() for b in batches)


def test_the_incomplete_batch_is_dropped_or_padded():
    dropped = list(train_batches(ARRAYS, 4, seed=0, epochs=1))
    padded = list(train_batches(ARRAYS, 4, seed=0, epochs=1, last="pad"))
    assert len(dropped) == steps_per_epoch(10, 4) == 2
    assert len(padded) == steps_per_epoch(10, 4, last="pad") == 3
    assert "mask" not in dropped[0]
    assert [b["mask"].sum() for b in padded] == [4, 4, 2]
    assert all(len(b["label"]) == 4 for b in padded)
    real = np.concatenate([b["label"][b["mask"] > 0] for b in padded])
    assert sorted(real) == list(range(10))


def test_the_place_in_the_data_survives_json():
    data = train_batches(ARRAYS, 4, seed=1)
    labels(data, 3)
    place = json.loads(json.dumps(data.get_state()))
    expected = labels(data, 5)
    fresh = train_batches(ARRAYS, 4, seed=1)
    fresh.set_state(place)
    assert labels(fresh, 5) == expected


def test_eval_batches_hold_every_example_once_in_order():
    batches = list(eval_batches(ARRAYS, 4))
    assert {b["x"].shape for b in batches} == {(4,)}
    real = np.concatenate([b["label"][b["mask"] > 0] for b in batches])
    assert real.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"x": np.zeros(3), "y": np.zeros(4)}, 2), r"one length, found .*'y': 4"),
        ((ARRAYS, 11), "10 examples do not fill one batch of 11"),
        (({}, 2), "one length, found {}"),
        ((ARRAYS, 0), "batch_size=0: expected at least 1"),
        ((ARRAYS, -2), "batch_size=-2: expected at least 1"),
    ],
)
def test_unusable_arrays(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_batches(*arguments, seed=0)
    if "do not fill" not in message:
        with pytest.raises(ValueError, match=message):
            eval_batches(*arguments)


def test_no_epoch_and_a_name_that_is_taken():
    with pytest.raises(ValueError, match="epochs=0: expected at least 1"):
        train_batches(ARRAYS, 2, seed=0, epochs=0)
    arrays = ARRAYS | {"mask": np.ones(10)}
    next(train_batches(arrays, 2, seed=0))
    for make in (eval_batches, functools.partial(train_batches, seed=0, last="pad")):
        with pytest.raises(ValueError, match="call a mask of tokens 'token_mask'"):
            make(arrays, 2)


def test_examples_of_like_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(3, 99, 1000)
    arrays = {"row": np.arange(1000)}

    def rows(seed, batches, **options):
        data = train_batches(arrays, 32, seed=seed, lengths=lengths, **options)
        return [next(data)["row"] for _ in range(batches)]

    one, two = rows(1, 31), rows(1, 62)[31:]
    for epoch in (one, two):  # 31 whole batches, no example twice
        assert len(np.unique(np.concatenate(epoch))) == 31 * 32
    assert np.concatenate(one).tolist() != np.concatenate(two).tolist()
    assert np.concatenate(one).tolist() != np.concatenate(rows(2, 31)).tolist()
    # Padded to the longest of the batch: far less than in batches drawn at random.
    padded = sum(lengths[batch].max() for batch in one)
    at_random = train_batches(arrays, 32, seed=1)
    assert padded < 0.62 * sum(lengths[next(at_random)["row"]].max() for _ in range(31))
    # Batches do not come in the order of their length.
    assert np.abs(np.corrcoef(range(31), [lengths[b].max() for b in one])[0, 1]) < 0.5
    everything = rows(1, 32, last="pad", epochs=1)
    assert set(np.concatenate(everything)) == set(range(1000))


def test_the_place_among_grouped_batches_survives_json():
    lengths = np.arange(100) % 7
    arrays = {"row": np.arange(100)}
    data = train_batches(arrays, 8, seed=3, lengths=lengths)
    for _ in range(17):  # in the second epoch
        next(data)
    state = json.loads(json.dumps(data.get_state()))
    again = train_batches(arrays, 8, seed=3, lengths=lengths)
    again.set_state(state)
    for _ in range(9):
        assert next(data)["row"].tolist() == next(again)["row"].tolist()


def test_rows_selected_from_a_ragged_column():
    column = Ragged(np.arange(10), np.array([0, 3, 4, 10]), -1, (2, 4, 8))
    part = column.select(np.array([2, 0]))
    assert part.lengths.tolist() == [6, 3] and len(part) == 2
    assert part[np.array([1])].tolist() == [[0, 1, 2, -1]]
    assert part[np.array([0])].tolist() == [[4, 5, 6, 7, 8, 9, -1, -1]]


def test_parts_of_a_batch_are_the_batch_and_are_all_that_is_read():
    """Of several processes each reads its own rows, padded as the whole batch is."""
    lengths = np.array([1, 2, 9, 4, 3, 1, 7, 2, 5, 6])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Ragged(np.arange(starts[-1]), starts, 0, (4, 8, 16))

    class Recorded(np.ndarray):
        def __getitem__(self, rows):
            read.append(np.asarray(rows))
            return np.asarray(self)[rows]

    read = []
    label = np.arange(10).view(Recorded)
    arrays = {"tokens": tokens, "label": label}
    settings = {"seed": 3, "lengths": lengths, "last": "pad"}
    parts = [np.array([0, 1]), np.array([2, 3])]
    whole = train_batches(arrays, 4, **settings)
    own = [train_batches(arrays, 4, part=part, **settings) for part in parts]
    for _ in range(6):
        batch = next(whole)
        read.clear()
        found = [next(data) for data in own]
        assert [len(rows) for rows in read] == [2, 2]
        for name, column in batch.items():
            np.testing.assert_array_equal(
                np.concatenate([half[name] for half in found]), column
            )
        assert own[0].get_state() == whole.get_state()
    for batches in zip(
        eval_batches(arrays, 4), *(eval_batches(arrays, 4, p) for p in parts)
    ):
        batch, *found = batches
        for name, column in batch.items():
            joined = np.concatenate([half[name] for half in found])
            np.testing.assert_array_equal(joined, column)
