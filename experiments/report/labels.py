"""Names beside points, kept off each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}
DISTANCES = (6, 10, 16, 24, 32)  # typographic points
AROUND = [(1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def label(
    axes: Any,
    points: Sequence[tuple[str, float, float]],
    bars: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Write each point's name where it covers least of what is there already.

    Args:
        axes: laid out already.
        points: name, x and y.
        bars: x, y and half the height of what else must not be covered.
    """
    from matplotlib.transforms import Bbox

    marked = [*bars, *((x, y, 0.0) for _, x, y in points)]
    ends = [[(x, y - half), (x, y + half)] for x, y, half in marked]
    taken = [Bbox(axes.transData.transform(end)).padded(4) for end in ends]
    frame = axes.get_window_extent()
    for name, x, y in sorted(points, key=lambda point: point[1:]):
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8
        )
        text.set_in_layout(False)
        tried = {}
        for far, (right, up) in product(DISTANCES, AROUND):
            box = _place(text, far, right, up)
            hidden = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, frame)
            tried[far, right, up] = hidden + 10 * outside + far
        best = min(tried, key=tried.__getitem__)
        taken.append(_place(text, *best))
        if best[0] > DISTANCES[1]:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": "gray"}
            end = {"xytext": text.get_position(), "textcoords": "offset points"}
            axes.annotate("", (x, y), **end, arrowprops=line)


def _place(text: Any, far: int, right: int, up: int) -> Any:
    """Put the text beside its point; return the box that it fills."""
    text.set_position((far * right, far * up))
    text.set(ha=ALIGNED[right][0], va=ALIGNED[up][1])
    return text.get_window_extent()


def _overlap(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
