"""What GLoRA's few shots do to images: crops, RandAugment (arXiv 1909.13719), erasing.

A part of 8 to 100 % of the image, between 3:4 and 4:3, becomes the whole, and half of
them are mirrored. Then timm's `rand-m9-mstd0.5-inc1` and `reprob=0.25`: two of 15
operations, each done half the time, at a magnitude drawn about 9 of 10; then a quarter
of the images loses a rectangle to noise (1708.04896). Pillow does the operations.
Images stay bytes here, so that the noise, normal after ImageNet's normalisation, is
rounded and cut at 0 and 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.data.images import NORMALISATIONS

MAGNITUDE, DEVIATION, HIGHEST = 9.0, 0.5, 10.0
DRAWN = 2  # operations of an image
DONE = 0.5  # how likely each of them is done
MIRRORED = 0.5
ERASED = 0.25  # how likely a rectangle is erased
AREA, ASPECT, TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
CROPPED, SHAPE = (0.08, 1.0), (3 / 4, 4 / 3)
GREY = (124, 116, 104)  # ImageNet's mean, where an image is moved away from

Change = Callable[[Any, float], Any]


def _enhanced(name: str) -> Change:
    def change(image: Any, share: float) -> Any:
        from PIL import ImageEnhance

        factor = max(0.1, 1.0 + 0.9 * share)
        return getattr(ImageEnhance, name)(image).enhance(factor)

    return change


def _moved(matrix: Callable[[float, Any], tuple[float, ...]]) -> Change:
    def change(image: Any, share: float) -> Any:
        from PIL import Image

        bicubic, data = Image.Resampling.BICUBIC, matrix(share, image.size)
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, data, bicubic, fillcolor=GREY)

    return change


def _rotated(image: Any, share: float) -> Any:
    from PIL import Image

    return image.rotate(30.0 * share, Image.Resampling.BICUBIC, fillcolor=GREY)


def _plain(name: str, *argument: Callable[[float], int]) -> Change:
    def change(image: Any, share: float) -> Any:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image, *(value(share) for value in argument))

    return change


def _solarize_add(image: Any, share: float) -> Any:
    added = min(128, int(110 * share))
    table = [min(255, i + added) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


# An image and its share of the highest magnitude, to an image.
OPERATIONS: Mapping[str, Change] = {
    "AutoContrast": _plain("autocontrast"),
    "Equalize": _plain("equalize"),
    "Invert": _plain("invert"),
    "Rotate": _rotated,
    "Posterize": _plain("posterize", lambda share: 4 - int(4 * share)),
    "Solarize": _plain("solarize", lambda share: 256 - min(256, int(256 * share))),
    "SolarizeAdd": _solarize_add,
    "Color": _enhanced("Color"),
    "Contrast": _enhanced("Contrast"),
    "Brightness": _enhanced("Brightness"),
    "Sharpness": _enhanced("Sharpness"),
    "ShearX": _moved(lambda share, size: (1, 0.3 * share, 0, 0, 1, 0)),
    "ShearY": _moved(lambda share, size: (1, 0, 0, 0.3 * share, 1, 0)),
    "TranslateX": _moved(lambda share, size: (1, 0, 0.45 * share * size[0], 0, 1, 0)),
    "TranslateY": _moved(lambda share, size: (1, 0, 0, 0, 1, 0.45 * share * size[1])),
}
# Those whose share has a sign, drawn with even chances.
SIGNED = frozenset(
    {
        *("Rotate", "Color", "Contrast", "Brightness", "Sharpness"),
        *("ShearX", "ShearY", "TranslateX", "TranslateY"),
    }
)


def operate(image: np.ndarray, name: str, share: float) -> np.ndarray:
    """Return an image after one operation.

    Args:
        image: `[H, W, 3]`, uint8.
        name: of `OPERATIONS`.
        share: of the highest magnitude, in [-1, 1]; without a sign where none is
            `SIGNED`.
    """
    from PIL import Image

    return np.asarray(OPERATIONS[name](Image.fromarray(image), share))


def rand_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image `[H, W, 3]`, uint8, after the operations that are drawn."""
    for name in rng.choice(list(OPERATIONS), DRAWN):
        done, sign = rng.random() < DONE, rng.choice([-1, 1])
        share = np.clip(rng.normal(MAGNITUDE, DEVIATION), 0, HIGHEST) / HIGHEST
        if done:
            image = operate(image, name, share * (sign if name in SIGNED else 1))
    return image


def rectangle(
    height: int, width: int, rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return the rows and columns to erase; None where no draw fits the image."""
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * height * width
        aspect = math.exp(rng.uniform(*np.log(ASPECT)))
        high, wide = (round(math.sqrt(x)) for x in (area * aspect, area / aspect))
        if high < height and wide < width:
            top = int(rng.integers(height - high + 1))
            left = int(rng.integers(width - wide + 1))
            return slice(top, top + high), slice(left, left + wide)
    return None


def erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image `[H, W, 3]`, uint8, a quarter of them with noise in a part."""
    if rng.random() >= ERASED:
        return image
    if (place := rectangle(image.shape[0], image.shape[1], rng)) is None:
        return image
    mean, deviation = NORMALISATIONS["imagenet"]
    noise = rng.normal(mean, deviation, image[place].shape) * 255
    image = image.copy()
    image[place] = noise.round().clip(0, 255).astype(np.uint8)
    return image


def place_of(
    height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return what of an image is kept: top, left, height, width.

    Where no draw fits, it is the middle, cut to the nearest shape that is allowed.
    """
    low, high = SHAPE
    for _ in range(TRIES):
        area = rng.uniform(*CROPPED) * height * width
        shape = math.exp(rng.uniform(math.log(low), math.log(high)))
        wide, tall = (round(math.sqrt(x)) for x in (area * shape, area / shape))
        if wide <= width and tall <= height:
            top = int(rng.integers(height - tall + 1))
            return top, int(rng.integers(width - wide + 1)), tall, wide
    tall = min(height, round(width / low))
    wide = min(width, round(height * high))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a part of an image `[H, W, 3]`, uint8, as `[size, size, 3]`, or mirrored.

    Args:
        image: of any height and width.
        size: of the result.
        rng: decides the part; half of the images are mirrored.
    """
    from PIL import Image

    top, left, tall, wide = place_of(image.shape[0], image.shape[1], rng)
    part = Image.fromarray(image[top : top + tall, left : left + wide])
    found = np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))
    return found[:, ::-1] if rng.random() < MIRRORED else found


def cropped(size: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Return `augment` of a `crop` of `size`, for images in their own sizes.

    >>> image = np.full((20, 30, 3), 100, np.uint8)
    >>> cropped(8)(image, np.random.default_rng(0)).shape
    (8, 8, 3)
    """
    return lambda image, rng: augment(crop(image, size, rng), rng)


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image `[H, W, 3]`, uint8, of the same shape, for one step of training.

    >>> image = np.full((8, 8, 3), 100, np.uint8)
    >>> one, same = (augment(image, np.random.default_rng(3)) for _ in range(2))
    >>> one.shape, np.array_equal(one, same)
    ((8, 8, 3), True)
    """
    return erase(rand_augment(image, rng), rng)
