"""The order of the data: the seed decides it, and it can be left and taken up."""

import json

import numpy as np
import pytest

from peftjax.data.pipeline import eval_batches, steps_per_epoch, train_batches

ARRAYS = {"x": np.arange(10) * 2.0, "label": np.arange(10)}


def labels(iterator, batches):
    return [next(iterator)["label"].tolist() for _ in range(batches)]


def test_the_seed_decides_the_order():
    runs = [labels(train_batches(ARRAYS, 4, seed=s), 9) for s in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


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
    ],
)
def test_unusable_arrays(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_batches(*arguments, seed=0)
