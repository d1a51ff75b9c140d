"""Pictures that a run leaves of what its model makes: `samples/` of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.workdir import SAMPLES, RunFolder
from peftjax import storage
from peftjax.data.images import png
from peftjax.parallel.distributed import led

ENLARGED = 4  # pixels a side for each of a small image's
GAP = 1


def scored(
    one: Any, folder: RunFolder, kept: Any, split: Mapping[str, Any], name: str
) -> dict[str, float]:
    """Return the scores of a split; keep `samples/NAME.png` where a task has pictures.

    Args:
        one: the run.
        folder: its folder.
        kept: what is evaluated of it, as `experiments.kept` has it.
        split: on what.
        name: of the file.
    """
    show = one.outline.picture
    if show is None:
        return one.score(kept.adapters, split, kept.collections)
    outputs = one.outputs(kept.adapters, split, kept.collections)
    folder.own(SAMPLES)
    place = folder.path / SAMPLES / f"{name}.png"
    led(lambda: write(place, show(split["label"], outputs)))
    return one.outline.score(split["label"], outputs)


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures in [-1, 1], `[n, H, W, C]` a row, as one, uint8 `[..., C]`.

    >>> grid([np.ones((2, 1, 1, 1)), -np.ones((1, 1, 1, 1))]).shape
    (16, 16, 1)
    """
    height, width, channels = (side for side in rows[0].shape[1:])
    across = max(map(len, rows))
    cell = (height + GAP, width + GAP)
    canvas = np.full((len(rows) * cell[0], across * cell[1], channels), 0.5)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * cell[0], j * cell[1]
            canvas[y : y + height, x : x + width] = (picture.clip(-1, 1) + 1) / 2
    pixels = np.round(255 * canvas).astype(np.uint8)
    if height >= 64:
        return pixels
    return pixels.repeat(ENLARGED, 0).repeat(ENLARGED, 1)


def write(place: Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing(place) as file:
        file.write_bytes(png(picture))
