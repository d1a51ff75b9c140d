"""Scores against the number of examples of each class: a panel per set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from experiments.report.plot import GRID
from experiments.report.rows import Table

Curves = Mapping[str, Mapping[str, int]]
MARKS = "os^Dv<>pXP"


def png(table: Table, curves: Curves) -> bytes:
    """Return the picture of the curves of a table.

    Args:
        table: of the runs.
        curves: of each set, how many examples of a class each of its tasks has.
    """
    stream = io.BytesIO()
    draw(table, curves).savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def draw(table: Table, curves: Curves) -> Any:
    """Return the figure: means, with bands of one sample standard deviation.

    A task without a score is left out of its method's curve, and a seed alone has no
    band.
    """
    from matplotlib.figure import Figure

    panels = {name: x for name, x in curves.items() if set(x) & set(table.tasks)}
    figure = Figure(figsize=(0.8 + 3.6 * len(panels), 4.2), layout="constrained")
    grid = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axes, (name, shots) in zip(grid, panels.items()):
        ticks = sorted({shots[task] for task in shots if task in table.tasks})
        for place, row in enumerate(table.rows):
            points = sorted(
                (count, row.scores[task])
                for task, count in shots.items()
                if task in row.scores and row.scores[task].mean is not None
            )
            if points:
                _curve(axes, row.label, MARKS[place % len(MARKS)], points)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(title=name, xlabel="examples of each class")
        axes.grid(**GRID)
    metrics = ", ".join(sorted({result["metric"] for result in table.results}))
    grid[0].set_ylabel(f"{metrics} (%)")
    found = {
        label: line
        for axes in grid
        for line, label in zip(*axes.get_legend_handles_labels())
    }
    if found:
        below = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        figure.legend([*found.values()], [*found], ncols=5, **below)
    spread = any(axes.collections for axes in grid)
    bands = "\nband: one sample standard deviation" if spread else ""
    figure.suptitle(f"{table.name}{bands}", fontsize=9)
    return figure


def _curve(axes: Any, label: str, mark: str, points: Any) -> None:
    counts, means = zip(*((count, score.mean) for count, score in points))
    (line,) = axes.plot(counts, means, marker=mark, markersize=4, label=label)
    banded = [(n, x.mean, x.std) for n, x in points if x.std is not None]
    if banded:
        counts, means, spreads = zip(*banded)
        low = [mean - spread for mean, spread in zip(means, spreads)]
        high = [min(mean + spread, 100) for mean, spread in zip(means, spreads)]
        axes.fill_between(counts, low, high, color=line.get_color(), alpha=0.15)
