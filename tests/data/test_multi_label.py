"""Images of several classes, from VOC's own folder and from an npz file."""

import numpy as np
import pytest
from PIL import Image

from peftjax.data import multi_label, voc
from peftjax.data.class_folders import FolderError
from peftjax.data.source import MissingData

CLASSES = ("bird", "bus", "cat")
OPTIONS = {"size": 8, "classes": CLASSES, "shots": 2}
# by image: bird, bus, cat; 0 is difficult
LISTS = {
    "trainval": {
        "000001": "1 -1 -1",
        "000003": "1 1 -1",
        "000004": "-1 1 0",
        "000007": "-1 -1 1",
        "000008": "-1 0 1",
        "000009": "1 -1 -1",
    },
    "test": {"000002": "-1 1 -1", "000005": "0 -1 1"},
}


@pytest.fixture
def folder(tmp_path):
    root, draw = tmp_path / "VOC2007", np.random.default_rng(0)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for split, images in LISTS.items():
        for column, name in enumerate(CLASSES):
            lines = [f"{image} {x.split()[column]:>2}\n" for image, x in images.items()]
            file = root / "ImageSets" / "Main" / f"{name}_{split}.txt"
            file.write_text("".join(lines))
        for image in images:
            pixels = draw.integers(0, 255, (10, 14, 3), np.uint8)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{image}.jpg")
    return root


def test_the_folder_is_read_as_the_same_arrays_are(folder, tmp_path):
    found = voc.listed(folder, CLASSES)
    files, labels = found["train"]
    assert [file.name for file in files] == [
        f"{name}.jpg" for name in LISTS["trainval"]
    ]
    wanted = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]]
    assert labels.tolist() == wanted and labels.dtype == np.float32
    assert found["test"][1].tolist() == [[0, 1, 0], [0, 0, 1]]

    arrays = {}
    for part, (files, labels) in found.items():
        arrays[f"{part}_images"] = np.stack([np.asarray(Image.open(x)) for x in files])
        arrays[f"{part}_labels"] = labels
    np.savez(tmp_path / "voc.npz", **arrays)
    ours = multi_label.load(folder, draw=3, **OPTIONS)
    theirs = multi_label.load(tmp_path / "voc.npz", draw=3, **OPTIONS)
    assert len(ours["test"].labels) == 2 and len(ours["validation"].labels) >= 1
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(ours[part].images, theirs[part].images)
        np.testing.assert_array_equal(ours[part].labels, theirs[part].labels)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("bus_test", None, r"bus_test\.txt: no such file; expected VOC's"),
        ("bus_test", "000002 1\n", r"'000005' in one of bird_test\.txt and bus_test"),
        ("bus_test", "000002 yes\n", r"line 1: expected .* found '000002 yes'"),
        ("bus_test", "../../secret 1\n", r"line 1: expected an image .*secret"),
        ("bird_trainval", "000001 1\n000001 1\n", "line 2: .* not named before"),
    ],
)
def test_lists_that_cannot_be_used_are_told(folder, name, text, told):
    file = folder / "ImageSets" / "Main" / f"{name}.txt"
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(FolderError, match=told):
        multi_label.load(folder, **OPTIONS)


def test_images_that_are_not_there_are_told(folder):
    (folder / "JPEGImages" / "000005.jpg").unlink()
    with pytest.raises(FolderError, match=r"000005\.jpg: no such image; .*Main lists"):
        multi_label.load(folder, **OPTIONS)
    with pytest.raises(FolderError, match="'bus': expected at least 3 examples"):
        (folder / "JPEGImages" / "000005.jpg").write_bytes(b"")
        multi_label.load(folder, **{**OPTIONS, "shots": 3})
    with pytest.raises(MissingData, match="VOC2008: no such folder or file"):
        multi_label.load(folder.with_name("VOC2008"), **OPTIONS)
