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


def test_grey_and_sixteen_bit_files_lie_beside_colour(photos):
    """Sixteen bits lose the lower eight, transparency goes, grey is three channels."""
    wide = np.full((4, 6), 200 * 256 + 255, np.uint16)
    Image.fromarray(wide).save(photos / "cat" / "wide.png")
    Image.fromarray(wide).save(photos / "cat" / "wide.tif")
    Image.new("L", (6, 4), 50).save(photos / "dog" / "grey.png")
    Image.new("LA", (6, 4), (60, 9)).save(photos / "dog" / "veiled.png")
    found = folder.read(photos, 4)
    pixels = np.asarray(found.images)
    assert pixels.shape == (24, 4, 4, 3) and pixels.dtype == np.uint8
    # Of each class in the order of names: after 9.JPG and before dog/0.png, then last.
    for row, shade, label in ((10, 200, 0), (11, 200, 0), (22, 50, 1), (23, 60, 1)):
        assert (pixels[row] == shade).all() and found.labels[row] == label


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
            picture(root / "spring" / "dog" / "1.png", 1)
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
        ("splits", FolderError, r"spring: .* of <split>/<class> folders give one"),
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


def shaded(root, splits):
    """Write `<split>/<class>/<image>`, each image of its own shade."""
    shade = 0
    for split, counts in splits.items():
        for kind, count in counts.items():
            for number in range(count):
                picture(root / split / kind / f"{number}.png", shade)
                shade += 1
    return root


def test_folders_of_splits_are_kept(tmp_path):
    counts = {"train": {"cat": 3, "dog": 2}, "val": {"dog": 1}}
    root = shaded(tmp_path / "pets", {**counts, "test": {"cat": 1, "dog": 1}})
    parts, classes = folder.load(root, size=4)
    assert classes == ("cat", "dog")
    labels = {name: part.labels.tolist() for name, part in parts.items()}
    assert labels == {"train": [0, 0, 0, 1, 1], "validation": [1], "test": [0, 1]}
    shades = np.asarray(parts["test"].images)[:, 0, 0, 0]
    assert shades.tolist() == [6, 7]


def test_folders_of_classes_may_be_called_like_splits(tmp_path):
    for kind in ("train", "test"):
        for number in range(10):
            picture(tmp_path / "toys" / kind / f"{number}.png", number)
    assert folder.read(tmp_path / "toys", 4).classes == ("test", "train")


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        ({"train": {"a": 1, "b": 1}}, "train, test and perhaps val, found train$"),
        (
            {"train": {"a": 1, "b": 1}, "test": {"a": 1, "B": 1}},
            "test: has the class 'B', which .*train lacks; expected its classes, a, b$",
        ),
        (
            {"train": {"a": 1}, "test": {"a": 1}},
            "two classes or more, found only 'a'",
        ),
        (
            {"train": {"a": 1, "b": 0}, "test": {"a": 1}},
            "b: expected images of one class, found none$",
        ),
        (
            {
                "train": {"a": 1, "b": 1},
                "val": {"a": 1},
                "validation": {"a": 1},
                "test": {"a": 1},
            },
            "found test, train, val, validation$",
        ),
    ],
)
def test_folders_of_splits_that_do_not_fit_are_told(tmp_path, splits, told):
    root = shaded(tmp_path / "pets", splits)
    for split, kinds in splits.items():
        for kind in kinds:
            (root / split / kind).mkdir(exist_ok=True, parents=True)
    with pytest.raises(FolderError, match=told):
        folder.read(root, 4)


def test_a_split_file_keeps_its_splits(tmp_path):
    draw, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{part}_images"] = draw.integers(0, 255, (count, 4, 4, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    parts, _ = folder.load(tmp_path / "x.npz", size=4)
    for name, part in zip(("train", "val", "test"), parts.values()):
        np.testing.assert_array_equal(part.images, arrays[f"{name}_images"])
    del arrays["val_labels"]
    np.savez(tmp_path / "y.npz", **arrays)
    with pytest.raises(FolderError, match=r"\['val_labels'\] not found"):
        folder.read(tmp_path / "y.npz", 4)


def test_a_data_set_of_tfds_is_read(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")
    from peftjax.data.image_files import prepare_npz

    draw, arrays = np.random.default_rng(0), {"class_names": ["a", "b"]}
    for part, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{part}_images"] = draw.integers(0, 255, (count, 4, 4, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    place = prepare_npz(tmp_path / "x.npz", tmp_path / "data")
    built, classes = folder.load(place.parent, size=4)
    plain, _ = folder.load(tmp_path / "x.npz", size=4)
    assert classes == ("a", "b")
    for name, part in built.items():
        found = part.describe()
        expected = plain[name].describe()
        assert found["sha256"] == expected["sha256"]
    # Rows of several splits, in any order.
    found = folder.read(place.parent, 4)
    mixed = [11, 0, 7, 3, 6]
    np.testing.assert_array_equal(found.images[mixed], np.asarray(found.images)[mixed])


LABELS = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [40, 20, 16]))
NAMES = ("cat", "dog", "owl")


def test_shots_are_nested_and_of_equal_number():
    rows = np.arange(0, len(LABELS), 1)
    smaller: set[int] = set()
    for shots, held_out in ((1, 0), (2, 1), (4, 1), (5, 1), (8, 1), (16, 3)):
        train, held = splits.few_shot(LABELS, rows, NAMES, shots, seed=2)
        assert np.bincount(LABELS[train]).tolist() == 3 * [shots - held_out]
        assert np.bincount(LABELS[held], minlength=3).tolist() == 3 * [held_out]
        both = {*train.tolist(), *held.tolist()}
        assert len(both) == 3 * shots and smaller <= both
        smaller = both
    again = splits.few_shot(LABELS, rows[::-1], NAMES, 16, seed=2)
    other = splits.few_shot(LABELS, rows, NAMES, 16, seed=3)
    assert {*again[0].tolist(), *again[1].tolist()} == smaller
    assert {*other[0].tolist(), *other[1].tolist()} != smaller


def test_shots_that_a_class_lacks_are_told(tmp_path):
    with pytest.raises(ValueError, match="'owl': expected at least 17 .* found 16"):
        splits.few_shot(LABELS, np.arange(len(LABELS)), NAMES, 17)
    with pytest.raises(ValueError, match="at least 1 shot, found 0"):
        splits.few_shot(LABELS, np.arange(len(LABELS)), NAMES, 0)
    splits_of = {"train": {"a": 3, "b": 1}, "test": {"a": 1}}
    root = shaded(tmp_path / "pets", splits_of)
    with pytest.raises(FolderError, match=r"pets: class 'b': expected at least 2 exa"):
        folder.load(root, size=4, shots=2)


def test_shots_are_drawn_from_what_is_not_tested_on(tmp_path):
    photos = shaded(tmp_path, {"photos": {"cat": 10, "dog": 10}}) / "photos"
    whole, _ = folder.load(photos, size=4)
    few, _ = folder.load(photos, size=4, shots=5, draw=2)
    assert {k: len(x.labels) for k, x in few.items()} == {
        "train": 8,
        "validation": 2,
        "test": 2,
    }
    tested = np.asarray(whole["test"].images)[:, 0, 0, 0]
    assert np.asarray(few["test"].images)[:, 0, 0, 0].tolist() == tested.tolist()
    drawn = {
        int(x)
        for part in ("train", "validation")
        for x in np.asarray(few[part].images)[:, 0, 0, 0]
    }
    assert len(drawn) == 10 and not drawn & set(tested.tolist())
