"""Images from npz files and class folders: read back as they were."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import prepare_data
from peftjax.data import image_files, images, source
from tests.helpers.no_tensorflow import files, no_tensorflow  # noqa: F401

pytestmark = pytest.mark.slow

tfds = pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")


def npz(folder: Path, **changes) -> Path:
    draw = np.random.default_rng(1)
    content = {"class_names": np.array(["cat", "dog", "eel"])}
    for split, size in {"train": 7, "test": 4}.items():
        content[f"{split}_images"] = draw.integers(0, 256, (size, 6, 5, 1), np.uint8)
        content[f"{split}_labels"] = draw.integers(0, 3, size).astype(np.int32)
    content |= changes
    np.savez(folder / "pets.npz", **content)
    return folder / "pets.npz"


def test_npz(tmp_path):
    file = npz(tmp_path)
    assert image_files.prepare_npz(file, tmp_path) == tmp_path / "images/pets/1.0.0"
    content = np.load(file)
    for split in ("train", "test"):
        found = images.load("pets", split, tmp_path, size=6)
        assert found.classes == 3
        np.testing.assert_array_equal(found.labels, content[f"{split}_labels"])
        wanted = np.repeat(content[f"{split}_images"], 3, axis=3)
        originals = np.stack(list(found.images.originals()))
        np.testing.assert_array_equal(originals, wanted)
    opened = source.open_split("images/pets", "train", tmp_path)
    assert opened.classes == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": np.zeros((4, 2, 2, 3))}, "test_images: expected uint8"),
        ({"test_images": np.zeros((4, 2, 2), np.uint8)}, "test_images: expected uint8"),
        ({"test_labels": np.zeros(3, int)}, "test_labels: expected 4 integers"),
        ({"test_labels": np.zeros(4)}, "test_labels: expected 4 integers"),
        ({"test_labels": np.full(4, 3)}, "label 3; expected 0 to 2"),
        ({"train_labels": np.array([{}])}, "not a whole npz file"),
    ],
)
def test_npz_that_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        image_files.prepare_npz(npz(tmp_path, **changes), tmp_path / "data")
    assert not files(tmp_path / "data")


def class_folder(root: Path) -> None:
    for split, kinds in {"train": ("ant", "bee"), "test": ("bee",)}.items():
        for kind in kinds:
            for i in range(3):
                path = root / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4 + i, 5), (i, 2 * i, len(kind))).save(path)


def test_class_folder(tmp_path):
    class_folder(tmp_path / "raw/bugs")
    (tmp_path / "raw/bugs/train/ant/.hidden").write_text("no image")
    image_files.prepare_folder(tmp_path / "raw/bugs", tmp_path)
    found = images.load("bugs", "train", tmp_path, size=4)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    sizes = [image.shape for image in found.images.originals()]
    assert sizes == [(5, 4, 3), (5, 5, 3), (5, 6, 3)] * 2
    assert images.load("bugs", "test", tmp_path, size=4).labels.tolist() == [1, 1, 1]


def test_a_damaged_image_stops_the_writing(tmp_path):
    class_folder(tmp_path / "raw/bugs")
    path = tmp_path / "raw/bugs/test/bee/1.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"bee/1\.png: not a whole image"):
        image_files.prepare_folder(tmp_path / "raw/bugs", tmp_path / "data")
    assert not files(tmp_path / "data")


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "raw/x").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected <split>/<class>/<image>"):
        image_files.prepare_folder(tmp_path / "raw", tmp_path / "data")


def test_command_for_images(tmp_path, capsys):
    class_folder(tmp_path / "raw/bugs")
    npz(tmp_path / "raw")
    options = ["--source", str(tmp_path / "raw"), "--data-dir", str(tmp_path)]
    assert prepare_data.main(["images", *options]) == 0
    found = capsys.readouterr().out
    assert "bugs: wrote" in found and "pets: wrote" in found
    assert "'dataset': 'images/pets', 'split': 'train', 'examples': 7" in found


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["cifar10_1k", "caltech101_1k_64px", "eurosat5_1k", "mnist_1k"]
)
def test_real_images(shared_data, tmp_path, name):
    file = shared_data / "vision" / f"{name}.npz"
    image_files.prepare_npz(file, tmp_path)
    with np.load(file) as content:
        for split in ("train", "val", "test"):
            wanted, labels = content[f"{split}_images"], content[f"{split}_labels"]
            task = images.load(name, split, tmp_path, size=wanted.shape[1])
            np.testing.assert_array_equal(task.labels, labels)
            np.testing.assert_array_equal(
                task.images, np.broadcast_to(wanted, task.images.shape)
            )
            assert task.classes == len(content["class_names"])
            direct = tfds.data_source(
                f"images/{name}", split=split, data_dir=tmp_path, download=False
            )
            assert len(direct) == len(labels)
            np.testing.assert_array_equal(direct[5]["image"], task.images[[5]][0])
