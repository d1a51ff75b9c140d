"""Images decoded to RGB and normalised as the papers do."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from peftjax.data import images
from peftjax.data.errors import DataError


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_every_kind_of_image_becomes_rgb(mode):
    image = Image.fromarray(picture(0, 9, 7, 3)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    found = np.asarray(images.decode(stream.getvalue(), "x"))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("how", images.NORMALISATIONS)
def test_normalisations(how):
    pixels = picture(3, 5, 4, 4, 3)
    mean, std = {
        "clip": (
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        ),
        "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "unit": (0, 1),
    }[how]
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    found = images.normalise(pixels, how)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    # Three roundings of numbers up to 1 / 0.224, before and after the division.
    bound = 4 * np.finfo(np.float32).eps / 0.224
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(
        images.normalise(jnp.asarray(pixels), how), expected, rtol=0, atol=bound
    )


def test_normalise_refuses_what_it_would_spoil():
    with pytest.raises(ValueError, match="'imagnet': did you mean imagenet"):
        images.normalise(picture(0, 1, 2, 2, 3), "imagnet")
    with pytest.raises(ValueError, match="expected uint8, found float32"):
        images.normalise(np.zeros((1, 2, 2, 3), np.float32))


def encoded(image, kind="PNG", **settings):
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut(kind):
    wide = np.linspace(0, 65535, 35).astype(np.uint16).reshape(5, 7)
    found = np.asarray(images.decode(encoded(Image.fromarray(wide), kind), "x"))
    assert found.shape == (5, 7, 3) and (found == found[..., :1]).all()
    assert np.abs(found[..., 0] - wide / 257).max() <= 1
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_image_whose_white_is_unknown_is_refused(dtype):
    content = encoded(Image.fromarray(np.full((2, 2), 70_000, dtype)), "TIFF")
    with pytest.raises(DataError, match="x: expected 8 or 16 bits a channel"):
        images.decode(content, "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_applied(orientation):
    upright = Image.fromarray(picture(4, 6, 9, 3))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = images.decode(encoded(stored, exif=exif), "x")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))


def test_stray_files_are_reported_and_left_out(tmp_path):
    image = Image.fromarray(picture(0, 3, 3, 3))
    for name in ("b.PNG", "a.jpg"):
        image.save(tmp_path / name)
    for name in ("Thumbs.db", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    with pytest.warns(UserWarning, match=r"no image.*: Thumbs\.db, notes\.txt$"):
        found = images.image_paths(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.PNG"]


@pytest.mark.parametrize("seed", range(20))
def test_damaged_images_are_named(seed):
    draw = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")[seed % 6]
    content = bytearray(encoded(Image.fromarray(picture(seed, 9, 7, 3)), kind))
    for place in draw.integers(0, len(content), 8):
        content[place] ^= 1 << draw.integers(8)
    del content[draw.integers(1, len(content)) :]
    try:
        images.decode(bytes(content), "the.file")
    except DataError as error:
        assert str(error).startswith("the.file: ") and len(str(error)) < 400
