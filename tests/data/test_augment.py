"""Augmentation: timm's pixels, and draws that seed, step and example decide."""

import numpy as np
import pytest

from peftjax.data import augment
from peftjax.data.pipeline import train_batches
from tests.helpers.model_cases import DATA

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
ARRAYS = {"image": IMAGES, "label": np.arange(10)}


def test_each_operation_gives_the_pixels_of_timm():
    with np.load(DATA / "augment.npz") as recorded:
        image, seen = recorded["image"], set()
        for key in recorded.files[1:]:
            name, share = key.split("|")
            seen.add(name)
            found = augment.operate(image, name, float(share))
            np.testing.assert_array_equal(found, recorded[key], err_msg=key)
    assert seen == set(augment.OPERATIONS)


def test_two_operations_at_about_nine_tenths(monkeypatch):
    seen = []
    monkeypatch.setattr(augment, "operate", lambda x, *given: seen.append(given) or x)
    rng, images = np.random.default_rng(1), 2000
    for _ in range(images):
        augment.rand_augment(IMAGES[0], rng)
    assert abs(len(seen) / images - 1) < 0.06  # two, each half the time
    names = [name for name, _ in seen]
    assert all(abs(names.count(x) * 15 / len(seen) - 1) < 0.3 for x in set(names))
    assert set(names) == set(augment.OPERATIONS)
    shares = np.array([share for _, share in seen])
    assert abs(np.abs(shares).mean() - 0.9) < 0.01 and np.abs(shares).max() <= 1
    negative = {name for name, share in seen if share < 0}
    assert negative == augment.SIGNED


def test_a_quarter_loses_a_rectangle():
    rng = np.random.default_rng(2)
    image = np.full((40, 60, 3), 7, np.uint8)
    erased = [(augment.erase(image, rng) != 7).any(axis=2) for _ in range(800)]
    assert (image == 7).all()
    areas = np.array([x.mean() for x in erased if x.any()])
    assert abs(len(areas) / 800 - 0.25) < 0.05
    assert areas.min() > 0.015 and areas.max() < 0.35 and 0.12 < areas.mean() < 0.22
    for one in erased:
        rows, columns = one.any(axis=1), one.any(axis=0)
        filled = one[rows][:, columns]
        assert not one.any() or filled.mean() > 0.9  # a rectangle


def drawn(**options):
    data = train_batches(ARRAYS, 4, seed=5, augment=augment.augment, **options)
    return [next(data) for _ in range(6)]


def test_seed_step_and_example_decide(monkeypatch):
    monkeypatch.setattr(augment, "ERASED", 1.0)
    first = drawn()
    plain = train_batches(ARRAYS, 4, seed=5)
    for batch in first:
        same = next(plain)
        np.testing.assert_array_equal(batch["label"], same["label"])
        assert batch["image"].dtype == np.uint8
        assert all((a != b).any() for a, b in zip(batch["image"], same["image"]))
    labels = [label for batch in first for label in batch["label"]]
    often = max(labels, key=labels.count)
    seen = [x for b in first for x, y in zip(b["image"], b["label"]) if y == often]
    assert (seen[0] != seen[1]).any()  # anew in each epoch

    other = train_batches(ARRAYS, 4, seed=5, augment=augment.augment)
    for _ in range(3):
        next(other)
    left = other.get_state()
    again = train_batches(ARRAYS, 4, seed=5, augment=augment.augment)
    again.set_state(left)
    for batch in first[3:]:
        np.testing.assert_array_equal(next(again)["image"], batch["image"])

    parts = drawn(part=np.array([1, 3]))  # as one of two processes
    for batch, part in zip(first, parts):
        np.testing.assert_array_equal(part["image"], batch["image"][[1, 3]])


def test_what_has_no_images_is_told():
    with pytest.raises(ValueError, match="augment: expected a column 'image', found l"):
        train_batches({"label": np.arange(4)}, 2, seed=0, augment=augment.augment)
