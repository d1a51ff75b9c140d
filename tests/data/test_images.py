"""Images decoded to RGB and normalised as the papers do."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from peftjax.data import images


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
