"""The bundled digits: counts, disjoint stratified splits, the same every time."""

import sys
from zlib import crc32

import numpy as np
import pytest
from sklearn.datasets import load_digits

from peftjax.data import digits


def keys(split):
    return [image.tobytes() for image in split.images]


def test_all_scans_are_there_once_and_unchanged():
    loaded = digits.load()
    assert [len(split.labels) for split in loaded] == [1257, 180, 360]
    images = np.concatenate([split.images for split in loaded])
    assert images.dtype == np.float32 and images.shape == (1797, 8, 8, 1)
    assert images.min() == 0 and images.max() == 1
    source = load_digits()
    expected = sorted(
        (scan.astype(np.float32).tobytes(), label)
        for scan, label in zip(source.images, source.target)
    )
    labels = np.concatenate([split.labels for split in loaded])
    assert labels.dtype == np.int32
    found = sorted(
        ((16 * image[..., 0]).tobytes(), label) for image, label in zip(images, labels)
    )
    assert found == expected


def test_splits_are_stratified():
    total = np.bincount(load_digits().target)
    for split, size in zip(digits.load(seed=3), (1257, 180, 360)):
        share = total * size / 1797
        assert np.abs(np.bincount(split.labels) - share).max() < 1.5


def test_labels_follow_the_order_of_the_classes():
    everything = digits.load(seed=1)
    some = digits.load(classes=(7, 0, 4), seed=1)
    for whole, part in zip(everything, some):
        chosen = np.isin(whole.labels, (7, 0, 4))
        np.testing.assert_array_equal(part.images, whole.images[chosen])
        original = np.array([7, 0, 4])[part.labels]
        np.testing.assert_array_equal(original, whole.labels[chosen])
    assert set(some.train.labels) == {0, 1, 2}


def test_a_test_scan_is_in_no_other_training_set():
    test = set(keys(digits.load(range(5), seed=0).test))
    others = digits.load(range(3, 8), seed=0)
    assert not test & set(keys(others.train) + keys(others.validation))


def test_the_same_seed_gives_the_same_arrays_and_another_gives_others():
    first, again, other = (digits.load([5, 6], seed=seed) for seed in (0, 0, 1))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert keys(first.test) != keys(other.test)
    # Fixed across library versions: a change would silently change every table.
    assert crc32(first.test.images.tobytes()) == 1894122105


@pytest.mark.parametrize("classes", [[], [1, 1], [10], [-1], [0.5], "01", None, 5])
def test_bad_classes_are_named(classes):
    with pytest.raises(ValueError, match="distinct integers from 0 to 9"):
        digits.load(classes)


def test_absent_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits.load([0])
