"""Images that each method got wrong: a line per task and method, of its first seed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from experiments.documents import DamagedFile
from experiments.report.rows import Table
from experiments.workdir import MISTAKES, REMEDY
from peftjax import storage
from peftjax.data.errors import DataError
from peftjax.data.npz import open_npz

Line = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def rows(workdir: Path, table: Table) -> list[Line]:
    """Return title, images `[N, H, W, 3]`, labels and answers `[N]` of each line.

    Raises:
        DamagedFile: a run's `mistakes.npz` is no such file.
    """
    found: list[Line] = []
    for task in table.tasks:
        for row in table.rows:
            places = [workdir / run.folder / MISTAKES for run in row.of(task)]
            if files := [place for place in places if place.exists()]:
                found.append((f"{task}, {row.label}", *_read(files[0])))
    return found


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with open_npz(storage.local(file)) as opened:
            images, *numbers = (opened[x] for x in ("images", "labels", "answers"))
    except (DataError, KeyError) as error:
        raise DamagedFile(f"{file}: {error}; {REMEDY}") from error
    picture = images.dtype == np.uint8 and images.ndim == 4
    if not picture or any(x.shape != images.shape[:1] for x in numbers):
        raise DamagedFile(f"{file}: expected images, labels and answers; {REMEDY}")
    return images, numbers[0], numbers[1]


def png(found: list[Line]) -> bytes:
    """Return the picture of `rows`."""
    stream = io.BytesIO()
    draw(found).savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def draw(found: list[Line]) -> Any:
    """Return the figure; above each image its label, and what was answered."""
    from matplotlib.figure import Figure

    across = max(1, *(len(images) for _, images, _, _ in found))
    size = 1.6 + 1.1 * across, 0.5 + 1.35 * len(found)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(found), across, squeeze=False)
    for line, (title, images, labels, answers) in zip(grid, found):
        for axes in line:
            axes.set_axis_off()
        for axes, image, label, answer in zip(line, images, labels, answers):
            axes.imshow(image)
            axes.set_title(f"{label}, not {answer}", fontsize=7)
        told = title if len(images) else f"{title}: none of those looked at"
        place = {"xy": (-0.1, 0.5), "xycoords": "axes fraction", "ha": "right"}
        line[0].annotate(told.replace(", ", "\n"), **place, va="center", fontsize=8)
    figure.suptitle("class, not what was answered", fontsize=9)
    return figure
