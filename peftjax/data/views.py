"""What a model sees of an image: Pillow's bicubic interpolation, as torch papers do it.

`resize` is VTAB's, `shorter` CLIP's and ELEVATER's, `margin` that of GLoRA's few shots:
256 by 256, of which the middle 224 by 224 are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

View = Callable[[Any, int], np.ndarray]
MARGIN = 256 / 224


def resize(image: Any, size: int) -> np.ndarray:
    """Return a `PIL.Image` as uint8 `[size, size, 3]`; its sides need not be equal."""
    return np.asarray(_resized(image, size, size))


def shorter(image: Any, size: int) -> np.ndarray:
    """Return the middle square of a `PIL.Image` whose shorter side becomes `size`."""
    width, height = image.size
    short = min(width, height)
    sides = (size * side // short for side in (width, height))
    return _middle(_resized(image, *sides), size)


def margin(image: Any, size: int) -> np.ndarray:
    """Return the middle of a `PIL.Image` that is resized to 8/7 of `size` squared."""
    whole = round(MARGIN * size)
    return _middle(_resized(image, whole, whole), size)


def original(image: Any, size: int) -> np.ndarray:
    """Return a `PIL.Image` as uint8 `[H, W, 3]`, in its own size."""
    return np.asarray(image)


VIEWS: Mapping[str, View] = {
    "resize": resize,
    "shorter": shorter,
    "margin": margin,
    "original": original,
}


def _resized(image: Any, width: int, height: int) -> Any:
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _middle(image: Any, size: int) -> np.ndarray:
    # Halves are rounded to even, as torchvision rounds them.
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))
