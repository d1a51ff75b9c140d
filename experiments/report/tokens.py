"""Lengths of tokens by layer, before and after adaptation: a panel per task."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from experiments.report.plot import GRID
from experiments.report.rows import Table

ACROSS = 4
Panel = tuple[str, np.ndarray, dict[str, np.ndarray]]


def panels(table: Table) -> list[Panel]:
    """Return title, lengths before, and after by method, means over seeds."""
    found: list[Panel] = []
    for task in table.tasks:
        before, after = [], {}
        for row in table.rows:
            if own := [x for x in row.values("token_lengths", task) if x]:
                before += [x["before"] for x in own]
                after[row.label] = np.mean([x["after"] for x in own], axis=0)
        if before:
            found.append((task, np.mean(before, axis=0), after))
    return found


def png(found: list[Panel]) -> bytes:
    """Return the picture of `panels`."""
    stream = io.BytesIO()
    draw(found).savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def draw(found: list[Panel]) -> Any:
    """Return the figure; the model before adaptation is dashed."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(found))
    below = -(-len(found) // across)
    figure = Figure(figsize=(1 + 3.4 * across, 1 + 2.6 * below), layout="constrained")
    grid = figure.subplots(below, across, squeeze=False).flat
    lines: dict[str, Any] = {}
    for axes, (title, before, after) in zip(grid, found):
        layers = np.arange(1, len(before) + 1)
        style = {"color": "black", "linestyle": "--", "linewidth": 1}
        (lines["before"],) = axes.plot(layers, before, **style)
        for label, lengths in after.items():
            (lines[label],) = axes.plot(layers, lengths, linewidth=1.2)
        axes.set(title=title, xlabel="layer", ylabel="mean length of a token")
        axes.grid(**GRID)
    for axes in [*grid][len(found) :]:
        axes.set_visible(False)
    below_all = {"loc": "outside lower center", "ncols": 6, "frameon": False}
    figure.legend([*lines.values()], [*lines], **below_all, fontsize=8)
    return figure
