"""Where one looks rather than reads: score against size and time, a panel per task."""

from __future__ import annotations

import io
import math
import textwrap
from statistics import mean
from typing import Any

from experiments.report.caption import Caption
from experiments.report.labels import label
from experiments.report.rows import Table
from experiments.report.scores import AVERAGE, Score, score

OURS, THEIRS, GRID = "#1f4e79", "#c8641e", {"alpha": 0.25, "linewidth": 0.6}
ACROSS = 5  # panels beside each other
BAR = {"fmt": "o", "capsize": 2.5, "color": OURS, "markersize": 5, "linewidth": 1}
# What scores are drawn against: its words, its scale, what is said of a row without.
AGAINST = {
    "trainable": ("trainable parameters", "log", "no score"),
    "step_over_bound": ("time of a step / of its bound", "linear", "not timed"),
}
HOLLOW = {"marker": "D", "s": 26, "facecolors": "none", "edgecolors": THEIRS}


def png(table: Table, caption: Caption) -> bytes:
    """Return the picture of a table."""
    stream = io.BytesIO()
    draw(table, caption).savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def draw(table: Table, caption: Caption) -> Any:
    """Return the figure of a table."""
    from matplotlib.figure import Figure

    panels = table.tasks if len(table.tasks) > 1 else ()
    timed = any(row.values("step_over_bound") for row in table.rows)
    against = list(AGAINST) if timed else ["trainable"]
    below = math.ceil(len(panels) / ACROSS)
    height = 4.5 + below * (0.9 + 0.2 * len(table.rows))
    across = min(ACROSS, len(panels))
    width = max(12.0 if timed else 7.0, 2.4 * across)
    figure = Figure(figsize=(width, height), layout="constrained")
    heights = (4.5, height - 4.5) if panels else (4.5,)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    top, *bottom = parts if panels else (parts,)
    for part in bottom:
        _panels(part, table)
    grid = top.subplots(1, len(against), squeeze=False, sharey=True)[0]
    drawn = [_against(axes, table, name) for axes, name in zip(grid, against)]
    _legend(grid[0], table)
    facts = textwrap.wrap(" ".join(caption.facts), int(16 * figure.get_figwidth()))
    top.suptitle(table.name, fontsize="large")
    top.supxlabel("\n".join(facts), fontsize=7, color="dimgray")
    if caption.loud:
        figure.suptitle(caption.loud, color="firebrick", fontweight="bold", fontsize=9)
    figure.draw_without_rendering()  # so that the axes have their place
    for axes, one in zip(grid, drawn):
        label(axes, **one)
    return figure


def _spread(found: Score) -> Any:
    """Return how far a bar reaches below and above: none of one seed, 100 at most."""
    if found.std is None or found.mean is None:
        return None
    return [[found.std], [min(found.std, max(100 - found.mean, 0.0))]]


def _against(axes: Any, table: Table, name: str) -> dict[str, list[Any]]:
    """Draw the last column against one entry of results; return what is there."""
    words, scale, lacks = AGAINST[name]
    column, points, bars = table.summary, [], []
    for row in table.rows:
        found, values = row.scores[column], row.values(name)
        if found.mean is not None and values:
            place, spread = mean(values), found.std or 0.0
            axes.errorbar(place, found.mean, _spread(found), **BAR)
            points.append((row.label, place, found.mean))
            bars.append((place, found.mean, spread))
            if found.published is not None:
                axes.scatter(place, found.published.value, **HOLLOW)
                bars.append((place, found.published.value, 0.0))
    drawn = {own for own, *_ in points}
    if left := [row.label for row in table.rows if row.label not in drawn]:
        text = f"{lacks}: {', '.join(left)}"
        place = {"xy": (0.99, 0.02), "xycoords": "axes fraction", "ha": "right"}
        axes.annotate(text, **place, fontsize=8, color="gray")
    metrics = ", ".join(sorted({result["metric"] for result in table.results}))
    what = "average over the tasks" if column == AVERAGE else f"{column}, {metrics}"
    axes.set(xscale=scale, xlabel=words, ylabel=f"{what} (%)")
    axes.label_outer()
    axes.margins(x=0.12, y=0.12)
    axes.grid(**GRID)
    return {"points": points, "bars": bars}


def _legend(axes: Any, table: Table) -> None:
    if any(x.published for row in table.rows for x in row.scores.values()):
        axes.errorbar([], [], **BAR, label="here")
        axes.scatter([], [], **HOLLOW, label="published")
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
        axes.legend(**above, fontsize=8, frameon=False)


def _panels(figure: Any, table: Table) -> None:
    """Draw one panel per task: a line per method, the best mean marked."""
    lacks = {"ha": "right", "va": "center", "fontsize": 6, "color": "gray"}
    count = len(table.tasks)
    across = min(ACROSS, count)
    grid = figure.subplots(
        math.ceil(count / across), across, squeeze=False, sharey=True
    )
    places = range(len(table.rows), 0, -1)
    for axes, task in zip(grid.flat, table.tasks):
        scores = [row.scores[task] for row in table.rows]
        means = [x.mean for x in scores if x.mean is not None]
        for place, found in zip(places, scores):
            if found.mean is None:
                across_axes = {"transform": axes.get_yaxis_transform()}
                axes.text(0.97, place, score(found), **across_axes, **lacks)
            else:
                bar = {**BAR, "mfc": OURS if found.mean == max(means) else "white"}
                axes.errorbar(found.mean, place, xerr=_spread(found), **bar)
            if found.published is not None:
                axes.scatter(found.published.value, place, zorder=3, **HOLLOW)
        axes.set_yticks(places, [row.label for row in table.rows], fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(task, fontsize=9)
        axes.set_ylim(0.4, len(table.rows) + 0.6)
        axes.grid(**GRID)
    figure.supxlabel("%, filled: the best mean of the task", fontsize=8)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
