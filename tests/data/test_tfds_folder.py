"""A received TFDS folder is data: it imports nothing and leads nowhere else."""

import json
import sys

import numpy as np
import pytest

from peftjax.data import image_files, images, source, tfds_folder
from peftjax.data.errors import DataError

pytestmark = pytest.mark.slow

tfds = pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {
        "train_images": draw.integers(0, 255, (6, 5, 5, 3), np.uint8),
        "train_labels": np.arange(6) % 3,
        "class_names": np.array(["a", "b", "c"]),
    }
    np.savez(tmp_path / "pics.npz", **arrays)
    return image_files.prepare_npz(tmp_path / "pics.npz", tmp_path / "data")


def load(folder):
    root = folder.parents[2]
    return images.load("pics", "train", root, size=4).describe()


def edit(folder, name, change):
    file = folder / name
    document = json.loads(file.read_text())
    file.write_text(json.dumps(change(document) or document))


def test_all_features_of_tfds_are_known():
    registered = tfds.features.FeatureConnector._registered_features
    tops = {"tensorflow_datasets.core.features.top_level_feature.TopLevelFeature"}
    own = {name for name in registered if name.startswith("tensorflow_datasets.core.")}
    dataset = {"tensorflow_datasets.core.features.dataset_feature.Dataset"}
    assert own - tops - dataset <= tfds_folder.FEATURES


def nested(document):
    document["featuresDict"]["features"]["image"]["pythonClassName"] = "evil.Feature"


def snake_case(document):
    image = document["featuresDict"]["features"]["image"]
    image["python_class_name"] = image.pop("pythonClassName") and "evil.Feature"


def legacy(document):
    return {"type": "evil.Feature", "content": {}}


def no_text(document):
    document["pythonClassName"] = ["evil.Feature"]


def message(document):
    name = "tensorflow_datasets.core.features.scalar.Scalar"
    return {"type": name, "content": "{}", "proto_cls": "evil.Message"}


@pytest.mark.parametrize("change", [nested, snake_case, legacy, no_text, message])
def test_a_folder_chooses_no_module(folder, tmp_path, monkeypatch, change):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, "features.json", change)
    with pytest.raises(DataError, match=r"features\.json: .*evil\."):
        load(folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000 + b"]" * 100_000, b"\xff\xfe", b"[]", b"{", b"{}"]
)
def test_damaged_descriptions_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises((DataError, source.MissingData)) as error:
        load(folder)
    assert str(folder.parents[1].name) in str(error.value)
    assert len(str(error.value)) < 900


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a")
    (folder / "label.labels.txt").unlink()
    (folder / "label.labels.txt").symlink_to(secret)
    with pytest.raises(DataError, match=r"label\.labels\.txt: a link to .*secret\.txt"):
        load(folder)


def test_a_linked_data_folder_is_fine(folder, tmp_path):
    expected = load(folder)
    link = tmp_path / "link"
    link.symlink_to(folder.parents[2])
    found = images.load("pics", "train", link, size=4).describe()
    assert found == expected


def test_records_outside_of_the_folder_are_not_read(folder):
    def outside(document):
        document["splits"][0]["filepathTemplate"] = "../../../{DATASET}.{FILEFORMAT}"

    edit(folder, "dataset_info.json", outside)
    with pytest.raises(DataError, match="lies outside|not a data set"):
        load(folder)


@pytest.mark.parametrize("names", ["a", "a\nb\nc\na\nb\nc\n"])
def test_labels_that_are_no_classes(folder, names):
    (folder / "label.labels.txt").write_text(names)
    with pytest.raises(DataError, match="label"):
        load(folder)
