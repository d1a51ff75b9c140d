"""Images, each with a second image that describes it and a prompt: JSON lines.

    {"image": "color/1.jpg", "signal": "segm/1.png", "prompt": "a kitchen with a table"}

Paths are relative to the file's folder and do not lead out of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data.errors import DataError
from peftjax.data.images import decode
from peftjax.data.source import MissingData
from peftjax.data.squares import squares


class Pair(NamedTuple):
    """An image, what steers it, and a prompt.

    Attributes:
        image: its file.
        signal: the file of what it is drawn from: edges, segments, landmarks.
        prompt: what it shows.
    """

    image: Path
    signal: Path
    prompt: str


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Return the pairs that a file lists.

    Raises:
        MissingData: there is no such file, or it names one that is not there.
        DataError: a line is damaged, or leads out of the folder.
    """
    file = storage.path(path)
    if not file.is_file():
        raise MissingData(
            f'{file}: no such file; expected lines {{"image": ..., "signal": ..., '
            '"prompt": ...}'
        )
    lines = file.read_text("utf-8").splitlines()
    found = [_pair(file, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{file}: expected pairs of images, found none")
    return found


def _pair(file: Path, number: int, line: str) -> Pair:
    where = f"{file}, line {number}"
    try:
        entry = json.loads(line)
        names = [entry[name] for name in ("image", "signal")]
        prompt = entry["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{where}: expected an object with image, signal and prompt ({error!s:.60})"
        ) from error
    if not all(isinstance(text, str) for text in (*names, prompt)):
        raise DataError(f"{where}: expected texts for image, signal and prompt")
    places = []
    for name in names:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts:
            raise DataError(f"{where}: {name!r}: expected a path inside {file.parent}")
        place = file.parent.joinpath(*inside.parts)
        if not place.is_file():
            raise MissingData(f"{where}: {place}: no such file")
        places.append(place)
    image, signal = places
    return Pair(image, signal, prompt)


def read_images(pairs: list[Pair], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images and signals as squares, uint8 `[N, size, size, 3]` each.

    Raises:
        DataError: an image is damaged, or its signal is of another size, so that the
            two would be cut apart.
    """
    for pair in pairs:
        sizes = [
            decode(storage.local(file).read_bytes(), str(file)).size
            for file in (pair.image, pair.signal)
        ]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{pair.signal}: expected the size of {pair.image}, "
                f"{sizes[0][0]}x{sizes[0][1]}, found {sizes[1][0]}x{sizes[1][1]}"
            )
    images, signals = ([getattr(x, n) for x in pairs] for n in ("image", "signal"))
    return squares(images, size), squares(signals, size)
