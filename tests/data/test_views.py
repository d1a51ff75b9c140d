"""What is taken of an image: the pixels of torchvision and timm, in any size."""

import io

import numpy as np
import pytest
from PIL import Image

from peftjax.data import augment, folder, views
from peftjax.data.images import Images, png
from peftjax.data.pipeline import train_batches
from tests.helpers.model_cases import DATA

SIZES = {"shorter": 10, "margin": 14}


def recorded():
    with np.load(DATA / "views.npz") as file:
        return {key: file[key] for key in file.files}


class Said:
    """A generator that says what was recorded."""

    def __init__(self, draws):
        self.draws = list(draws)

    def uniform(self, low, high):
        found = self.draws.pop(0)
        assert low <= found <= high
        return found

    def integers(self, end):
        found = self.draws.pop(0)
        assert 0 <= found < end
        return found

    def random(self):
        return 1.0  # not mirrored


@pytest.mark.parametrize("name", SIZES)
def test_the_middle_is_that_of_torchvision(name):
    found, seen = recorded(), 0
    for key, expected in found.items():
        if key.startswith(f"{name}|"):
            image = Image.fromarray(found[key.replace(name, "image")])
            ours = views.VIEWS[name](image, SIZES[name])
            np.testing.assert_array_equal(ours, expected, err_msg=key)
            seen += 1
    assert seen == 5


def test_a_crop_is_that_of_timm():
    found, whole = recorded(), 0
    boxes = [key for key in found if key.startswith("box|")]
    for key in boxes:
        _, height, width, _ = key.split("|")
        image = found[f"image|{height}|{width}"]
        draws = found[key.replace("box", "draws")]
        box = augment.place_of(*image.shape[:2], Said(draws))  # pyright: ignore[reportArgumentType]
        assert list(box) == found[key].tolist(), key
        ours = augment.crop(image, 9, Said(draws))  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(ours, found[key.replace("box", "crop")])
        whole += len(draws) == 2 * augment.TRIES
    assert len(boxes) == 30 and whole  # some images no draw fits


def test_half_are_mirrored():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    rng = np.random.default_rng(0)
    sides = [augment.crop(image, 8, rng).astype(int) for _ in range(400)]
    falls = [x[0, 0, 0] > x[0, -1, 0] for x in sides]
    differ = [x[0, 0, 0] != x[0, -1, 0] for x in sides]
    assert abs(np.mean(falls) / np.mean(differ) - 0.5) < 0.08


def column(view):
    shapes = ((20, 30), (9, 12), (40, 15), (16, 16))
    draw = np.random.default_rng(1)
    files = [png(draw.integers(0, 256, (*x, 3)).astype(np.uint8)) for x in shapes]
    return Images(lambda rows: [(files[i], f"{i}") for i in rows], 4, 8, view=view)


def test_images_in_their_own_size_are_cropped_batch_by_batch():
    arrays = {"image": column(views.original), "label": np.arange(4)}
    assert [x.shape[:2] for x in arrays["image"][:]][1] == (9, 12)

    def batches():
        return train_batches(arrays, 2, seed=3, augment=augment.cropped(8))

    data = batches()
    one = [next(data)]
    left = data.get_state()
    one += [next(data) for _ in range(3)]
    assert all(x["image"].shape == (2, 8, 8, 3) for x in one)
    assert one[0]["image"].dtype == np.uint8
    again = batches()
    again.set_state(left)
    for batch in one[1:]:
        np.testing.assert_array_equal(next(again)["image"], batch["image"])
    images = [image for x in one for image, y in zip(*x.values()) if y == 0]
    assert len(images) == 2 and (images[0] != images[1]).any()  # anew in each epoch


def test_views_of_a_folder(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(20):
        place = tmp_path / "pets" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (12, 20, 3)).astype(np.uint8)
        place.write_bytes(png(pixels))
    whole, _ = folder.load(tmp_path / "pets", size=6)
    middle, _ = folder.load(tmp_path / "pets", size=6, view="shorter")
    first, seen = (parts["test"].images for parts in (whole, middle))
    assert first[:].shape == seen[:].shape and (first[:] != seen[:]).any()
    content, _ = seen.read([0])[0]
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(seen[[0]][0], views.shorter(image, 6))
    with pytest.raises(ValueError, match="view 'shortr': did you mean shorter"):
        folder.load(tmp_path / "pets", size=6, view="shortr")
