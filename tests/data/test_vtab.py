"""VTAB-1k: tasks, labels, splits, folders; images decoded and normalised."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftjax.data import image_files, images, source, vtab, writer
from peftjax.data.pipeline import eval_batches, train_batches

pytest.importorskip("tensorflow_datasets", reason="needs peftjax[data]")

pytestmark = pytest.mark.filterwarnings("ignore:.*published split has")
PUBLISHED = Path(__file__).parents[2] / "experiments/published/vtab1k_datasets.csv"

# Number of examples of the TFDS data sets, from TFDS's catalogue.
TFDS_SIZES = {
    "cifar100": {"train": 50_000, "test": 10_000},
    "caltech101": {"train": 3_060, "test": 6_084},
    "dtd": {"train": 1_880, "validation": 1_880, "test": 1_880},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "sun397/tfds": {"train": 76_128, "validation": 10_875, "test": 21_750},
    "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "eurosat/rgb": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "diabetic_retinopathy_detection/btgraham-300": {
        "train": 35_126,
        "validation": 10_906,
        "test": 42_670,
    },
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
    "kitti": {"train": 6_347, "validation": 423, "test": 711},
    "dsprites": {"train": 737_280},
    "smallnorb": {"train": 24_300, "test": 24_300},
}
# The share of the training split that VTAB trains on, where it has no validation split.
TRAIN_PERCENT = {
    "cifar100": 90,
    "caltech101": 90,
    "oxford_iiit_pet": 80,
    "svhn_cropped": 90,
    "eurosat/rgb": 60,
    "resisc45": 60,
    "clevr": 90,
    "dsprites": 80,
}


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture.squeeze()).save(stream, "PNG")
    return stream.getvalue()


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_tasks_are_the_published_ones():
    with PUBLISHED.open() as stream:
        published = list(csv.DictReader(stream))
    assert [row["task"] for row in published] == list(vtab.TASKS)
    assert len(vtab.TASKS) == 19
    for row in published:
        task = vtab.TASKS[row["task"]]
        assert (task.group, task.classes) == (row["group"], int(row["classes"]))
        assert task.test_size == int(row["test"])
    sizes = [int(published[0][name]) for name in ("train", "val", "trainval")]
    assert sizes == list(vtab.SIZES.values())


@pytest.mark.parametrize("name", vtab.TASKS)
def test_splits_are_disjoint_and_of_the_published_sizes(name):
    task = vtab.TASKS[name]
    sizes = TFDS_SIZES[task.data.name]

    def rows(split):
        found = set()
        for part in task.data.split(split).split("+"):
            base, _, cut = part.partition("[")
            start, _, stop = cut.rstrip("]").partition(":")
            total = sizes[base]
            assert not stop or int(stop) <= total
            found |= {(base, row) for row in range(int(start or 0), int(stop or total))}
        return found

    train, validation, test = rows("train800"), rows("val200"), rows("test")
    assert [len(train), len(validation), len(test)] == [800, 200, task.test_size]
    assert rows("train800val200") == train | validation
    assert not (train & validation or train & test or validation & test)
    if task.data.name in TRAIN_PERCENT:
        first = TRAIN_PERCENT[task.data.name] * sizes["train"] // 100
        assert min(validation) == ("train", first)


def prepare_official(name, data_dir, splits):
    """Write records as TFDS's own builder would, with its features."""
    import tensorflow_datasets as tfds

    builder = writer.offline(tfds.builder_cls(name), splits)(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")


def test_kitti_from_official_tfds_data(tmp_path):
    import tensorflow_datasets as tfds

    draw = np.random.default_rng(0)

    def row(number):
        found = {"type": int(draw.integers(8)), "location": [0, 0, draw.uniform(1, 40)]}
        found |= {"truncated": 0.0, "occluded": 0, "alpha": 0.0, "rotation_y": 0.0}
        found |= {"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
        found |= {"dimensions": [1, 1, 1]}
        return {
            "image": png(picture(number, 4, 6, 3)),
            "image/file_name": f"{number:06d}.png",
            "objects": [found] * int(draw.integers(0, 3)),
        }

    sizes = {"train": 805, "validation": 210, "test": 11}
    made = {
        split: [row(1000 * part + i) for i in range(size)]
        for part, (split, size) in enumerate(sizes.items())
    }
    prepare_official("kitti", tmp_path, made)
    by_image = {row["image"]: row for part in made.values() for row in part}
    for split, size in [("train800", 800), ("train800val200", 1000), ("test", 11)]:
        found = vtab.load("kitti", split, tmp_path, size=4)
        assert len(found.labels) == len(found.images) == size
        for i in range(0, size, 101):
            content = found.images.read([i])[0][0]
            objects = by_image[content]["objects"]
            near = [o["location"][2] for o in objects if o["type"] < 3]
            wanted = sum(np.float32(min(near, default=1e3)) > np.array([8, 20, 999]))
            assert found.labels[i] == wanted
    assert set(found.labels) <= set(range(4))


def test_dsprites_pixels_and_grey_channels(tmp_path):
    def row(number):
        labels = {"shape": 0, "scale": 1, "orientation": 39, "x_position": number}
        labels["y_position"] = 3
        return {
            "image": png(picture(number, 64, 64, 1) % 2),
            **{f"label_{name}": value for name, value in labels.items()},
            **{f"value_{name}": 0.0 for name in labels},
        }

    prepare_official("dsprites", tmp_path, {"train": [row(i) for i in range(32)]})
    opened = source.open_split("dsprites", "train", tmp_path)
    task = vtab.TASKS["dsprites_loc"]
    labels, found = images.read_source(opened, 16, 64, task.label, task.data.scale)
    for i in range(32):
        number = opened.take([i])[0]["label_x_position"]
        assert labels[i] == number // 2
        expected = np.repeat(picture(number, 64, 64, 1) % 2 * 255, 3, axis=2)
        np.testing.assert_array_equal(found[np.array([i])][0], expected)


@pytest.fixture
def folder(tmp_path):
    """A task's folder in the layout of the torch papers."""
    sizes = {"train800": 8, "val200": 4, "test": 5}
    both = []
    for part, (split, size) in enumerate(sizes.items()):
        lines = []
        for i in range(size):
            name = f"images/{split}/{i:06d}.png"
            path = tmp_path / "svhn" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture(100 * part + i, 32, 20, 3)))
            lines.append(f"{name} {(i + part) % 10}")
        (tmp_path / "svhn" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        both += lines if split != "test" else []
    (tmp_path / "svhn/train800val200.txt").write_text("\n".join(both))
    return tmp_path


def test_folder_layout(folder):
    found = vtab.load("svhn", "val200", folder, size=24)
    assert (found.name, found.split, found.classes) == ("vtab/svhn", "val200", 10)
    assert found.labels.tolist() == [1, 2, 3, 4] and found.published == 200
    assert found.images.shape == (4, 24, 24, 3)
    for i in range(4):
        expected = Image.fromarray(picture(100 + i, 32, 20, 3)).resize((24, 24), 3)
        np.testing.assert_array_equal(found.images[[i]][0], np.asarray(expected))
    assert len(vtab.load("svhn", "train800val200", folder).labels) == 12


def test_the_folder_prepared_is_the_same_task(folder, tmp_path):
    image_files.prepare_vtab("svhn", folder, tmp_path / "data")
    assert source.splits("vtab/svhn", tmp_path / "data") == (
        "train800",
        "val200",
        "test",
    )
    for split in ("train800", "val200", "train800val200", "test"):
        first = vtab.load("svhn", split, folder, size=16)
        second = vtab.load("svhn", split, tmp_path / "data", size=16)
        assert first.describe() == second.describe()
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.images, second.images)


def test_lists_that_do_not_agree_are_refused(folder, tmp_path):
    listing = folder / "svhn/train800val200.txt"
    listing.write_text(listing.read_text().replace("000001.png 1", "000001.png 2"))
    with pytest.raises(ValueError, match=r"train800\.txt and val200\.txt together"):
        image_files.prepare_vtab("svhn", folder, tmp_path / "data")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/val200/000000.png", "line 2: expected '<image> <label>'"),
        ("images/val200/000000.png one", "line 2: expected '<image> <label>'"),
        ("../secret.png 1", "line 2: .*leaves the task's folder"),
        ("/etc/passwd 1", "line 2: .*leaves the task's folder"),
        ("images/absent.png 1", r"line 2: .*absent\.png does not exist"),
        ("images/val200/000000.png 10", "example 1 has the label 10; expected 0 to 9"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    (folder / "svhn/val200.txt").write_text(f"images/val200/000000.png 0\n{line}\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        vtab.load("svhn", "val200", folder)


def test_bad_lists_are_named(folder):
    listing = folder / "svhn/val200.txt"
    listing.write_text("\n")
    with pytest.raises(ValueError, match=r"val200\.txt: an empty list"):
        vtab.load("svhn", "val200", folder)
    listing.write_bytes(b"images/\xff.png 1")
    with pytest.raises(ValueError, match=r"val200\.txt: not a text file"):
        vtab.load("svhn", "val200", folder)
    listing.unlink()
    with pytest.raises(source.MissingData, match=r"val200\.txt: no such list"):
        vtab.load("svhn", "val200", folder)


def test_unknown_names_and_missing_data(tmp_path):
    with pytest.raises(ValueError, match="'dsprite_loc': did you mean dsprites_loc"):
        vtab.load("dsprite_loc", "test", tmp_path)
    with pytest.raises(ValueError, match="unknown split of VTAB-1k 'train1000'"):
        vtab.load("svhn", "train1000", tmp_path)
    with pytest.raises(source.MissingData, match=r"svhn_cropped is not in .*prepare_d"):
        vtab.load("svhn", "test", tmp_path)


def test_a_damaged_image_is_named(folder):
    path = folder / "svhn/images/val200/000002.png"
    path.write_bytes(path.read_bytes()[:60])
    found = vtab.load("svhn", "val200", folder, size=8)
    with pytest.raises(ValueError, match=r"000002\.png: not a whole image"):
        np.asarray(found.images)


def test_batches_resume_bit_for_bit_and_stream_like_memory(folder):
    found = vtab.load("svhn", "train800val200", folder, size=16)

    def take(data, count):
        return [next(data)["image"] for _ in range(count)]

    lazy = train_batches(found.arrays(), 4, seed=1)
    first = take(lazy, 7)
    held = train_batches(found.arrays(in_memory=True), 4, seed=1)
    np.testing.assert_array_equal(first, take(held, 7))
    resumed = train_batches(found.arrays(), 4, seed=1)
    resumed.set_state(lazy.get_state())
    np.testing.assert_array_equal(take(lazy, 5), take(resumed, 5))
    batches = list(eval_batches(found.arrays(), 5))
    assert [batch["mask"].sum() for batch in batches] == [5, 5, 2]
