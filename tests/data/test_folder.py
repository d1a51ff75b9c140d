"""Images of one's own: a folder of classes, or arrays."""

import numpy as np
import pytest
from PIL import Image

from peftjax.data import folder, splits
from peftjax.data.errors import DataError
from peftjax.data.folder import FolderError
from peftjax.data.source import MissingData


def picture(file, shade):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(file)


@pytest.fixture
def photos(tmp_path):
    for number in range(10):
        picture(tmp_path / "photos" / "dog" / f"{number}.png", number)
        picture(tmp_path / "photos" / "cat" / f"{number}.JPG", 100 + number)
    return tmp_path / "photos"


def test_a_folder_is_split_by_its_seed(photos):
    first, classes = folder.load(photos, size=8)
    assert classes == ("cat", "dog")
    sizes = {name: len(split.labels) for name, split in first.items()}
    assert sizes == {"train": 16, "validation": 2, "test": 2}
    seen = []
    for split in first.values():
        arrays = split.arrays(in_memory=True)
        assert arrays["image"].shape == (len(split.labels), 8, 8, 3)
        seen += [(int(x[0, 0, 0]), int(y)) for x, y in zip(*arrays.values())]
        assert set(split.labels) == {0, 1}
        assert split.describe()["examples"] == len(split.labels)
    dogs = sorted(shade for shade, label in seen if label == 1)
    assert dogs == list(range(10)) and len(seen) == 20
    again, _ = folder.load(photos, size=8)
    other, _ = folder.load(photos, size=8, seed=1)
    prints = [
        {k: x.describe() for k, x in one.items()} for one in (first, again, other)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_what_is_no_image_is_told_and_left_out(photos):
    (photos / "dog" / "notes.txt").write_text("")
    (photos / "cat" / ".DS_Store").write_text("")
    (photos / "README").write_text("")
    with pytest.warns(UserWarning, match=r"no images: README, dog/notes\.txt") as told:
        found = folder.read(photos, 8)
    assert len(found.labels) == 20 and len(told) == 1


def test_an_npz_file_is_read_like_a_folder(tmp_path):
    pixels = np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2, 1)
    labels = np.arange(12) % 2
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels, class_names=["a", "b"])
    found = folder.read(tmp_path / "x.npz", 2)
    np.testing.assert_array_equal(np.asarray(found.images), pixels.repeat(3, axis=3))
    assert found.classes == ("a", "b") and found.labels.tolist() == labels.tolist()
    parts, _ = folder.load(tmp_path / "x.npz", size=2)
    assert sum(len(part.labels) for part in parts.values()) == 12


def spoiled(tmp_path, what):
    root = tmp_path / "photos"
    root.mkdir(exist_ok=True)
    match what:
        case "absent":
            return tmp_path / "nowhere"
        case "one class":
            picture(root / "dog" / "1.png", 1)
        case "empty class":
            picture(root / "dog" / "1.png", 1)
            (root / "cat").mkdir()
        case "splits":
            picture(root / "train" / "dog" / "1.png", 1)
        case "few":
            for name in ("dog/1.png", "cat/1.png", "cat/2.png", "cat/3.png"):
                picture(root / name, 1)
    return root


@pytest.mark.parametrize(
    ("what", "error", "told"),
    [
        ("absent", MissingData, r"nowhere: no such folder or file; expected"),
        ("nothing", FolderError, r"photos: expected .* found no images"),
        ("one class", FolderError, r"two classes or more, found only 'dog'"),
        ("empty class", FolderError, r"photos/cat: expected images of one class, fo"),
        ("splits", FolderError, r"train: .* of <split>/<class> folders give one"),
        ("few", FolderError, r"photos: class 'dog': expected at least 3 .* found 1"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(tmp_path, what, error, told):
    with pytest.raises(error, match=told):
        folder.load(spoiled(tmp_path, what), size=8)


def test_an_image_that_is_damaged_is_named(photos):
    (photos / "dog" / "3.png").write_bytes(b"\x89PNG")
    found = folder.read(photos, 8)
    with pytest.raises(ValueError, match=r"dog/3\.png: not a whole image"):
        np.asarray(found.images)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": np.zeros((3, 2, 2, 3), np.uint8)}, r"\['labels'\] not found"),
        ({"images": np.zeros((3, 2, 2, 3)), "labels": [0, 1, 1]}, "found float64"),
        (
            {"images": np.zeros((3, 2, 2, 3), np.uint8), "labels": [0, 1]},
            r"N integers as labels, found uint8 \[3, 2, 2, 3\] and int64 \[2\]",
        ),
        (
            {"images": np.zeros((2, 2, 2, 3), np.uint8), "labels": [0, -1]},
            "found only '0'",
        ),
    ],
)
def test_arrays_that_are_no_images_are_told(tmp_path, arrays, told):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FolderError, match=rf"x\.npz: .*{told}"):
        folder.read(tmp_path / "x.npz", 8)
    (tmp_path / "x.npz").write_text("no npz")
    with pytest.raises(DataError, match="not a whole npz file"):
        folder.read(tmp_path / "x.npz", 8)


def test_every_class_is_trained_on():
    """Whatever its size, and wherever the tenths fall."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        counts = draw.integers(3, 9, draw.integers(4, 9))
        labels = np.repeat(np.arange(len(counts)), counts)
        names = tuple(map(str, range(len(counts))))
        rows = splits.by_seed(labels, names, int(draw.integers(100)))
        assert set(labels[rows["train"]]) == set(labels)
        assert sorted(np.concatenate([*rows.values()])) == list(range(len(labels)))
