"""Learned weights of composed modules: a heat map of layers and modules per task."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from experiments.layers import by_number
from experiments.report.rows import Table

ACROSS = 5  # panels beside each other
Panel = tuple[str, list[str], list[str], np.ndarray]


def panels(table: Table) -> list[Panel]:
    """Return title, layers, modules and mean weights `[layers, modules]` over seeds."""
    found: list[Panel] = []
    for row in table.rows:
        for task in table.tasks:
            runs = [run.result for run in row.of(task) if run.result.get("mixture")]
            alike = [
                run["mixture"]
                for run in runs
                if run["upstream"].keys() == runs[0]["upstream"].keys()
                and run["mixture"].keys() == runs[0]["mixture"].keys()
            ]
            if alike:
                layers = sorted(alike[0], key=by_number)
                modules = [*runs[0]["upstream"]]
                mean = np.mean([[one[x] for x in layers] for one in alike], axis=0)
                found.append((f"{task}, {row.label}", layers, modules, mean))
    return found


def png(found: list[Panel]) -> bytes:
    """Return the picture of `panels`."""
    stream = io.BytesIO()
    draw(found).savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def draw(found: list[Panel]) -> Any:
    """Return the figure; a uniform mixture has the middle colour."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(found))
    below = math.ceil(len(found) / across)
    tall = max(len(layers) for _, layers, _, _ in found)
    size = 1.2 + 2.4 * across, below * (1.4 + 0.16 * tall)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(below, across, squeeze=False).flat
    reach = max(float(abs(x - 1 / x.shape[1]).max()) for _, _, _, x in found)
    image = None
    for axes, (title, layers, modules, weights) in zip(grid, found):
        image = axes.imshow(
            weights - 1 / len(modules),
            cmap="RdBu_r",
            vmin=-max(reach, 1e-3),
            vmax=max(reach, 1e-3),
            aspect="auto",
        )
        names = [layer.removesuffix("/kernel") or "all layers" for layer in layers]
        axes.set_yticks(range(len(layers)), names, fontsize=6)
        axes.set_xticks(range(len(modules)), modules, fontsize=7, rotation=30)
        axes.set_title(title, fontsize=8)
    for axes in [*grid][len(found) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=figure.axes, label="weight less 1 / N, mean over seeds")
    return figure
