"""Photographs of any shape as squares: the shorter side fits, the middle is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftjax import storage
from peftjax.data.errors import DataError
from peftjax.data.images import decode, image_paths
from peftjax.data.source import MissingData


def squares(files: Sequence[Path], size: int) -> np.ndarray:
    """Return images, uint8 `[N, size, size, 3]`, by bilinear interpolation.

    Args:
        files: images of any size.
        size: of a side.

    Raises:
        DataError: a file is no whole image.
    """
    from PIL import Image, ImageOps

    def one(file: Path) -> np.ndarray:
        image = decode(storage.local(file).read_bytes(), str(file))
        how = Image.Resampling.BILINEAR
        return np.asarray(ImageOps.fit(image, (size, size), how))

    return np.stack([one(file) for file in files])


def photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the images of a folder, sorted.

    Raises:
        MissingData: there is no such folder.
        DataError: it holds no image.
    """
    place = storage.path(folder)
    if not place.is_dir():
        raise MissingData(f"{place}: no such folder; expected photographs in it")
    found = image_paths(place)
    if not found:
        raise DataError(f"{place}: expected photographs of one subject, found none")
    return found
