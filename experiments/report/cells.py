"""The cells of a table as plain text; the formats only escape them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from experiments.report.rows import Row, Table
from experiments.report.scores import AVERAGE, score


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, published numbers beside the scores."""
    names, sizes = costs(table)
    rows = []
    for row, beside in zip(table.rows, sizes):
        pairs = [(ours(row, x), theirs(row, x)) for x in table.columns]
        rows.append([row.label, *(" ".join(filter(None, x)) for x in pairs), *beside])
    return ["method", *table.columns, *names], rows


def ours(row: Row, column: str) -> str:
    """Return a score, with its deviation and the runs that lack."""
    return score(row.scores[column], "runs" if column == AVERAGE else "seeds")


def theirs(row: Row, column: str) -> str:
    """Return the published number and our difference from it, or an empty text."""
    found = row.scores[column]
    if found.published is None:
        return ""
    return f"[{found.published}{_signed(found.difference)}]"


def costs(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the columns beside the scores; those that no result fills are left out."""
    differ = any(len(set(row.values("trainable"))) > 1 for row in table.rows)
    shown = [
        (name, show)
        for name, key, show in COSTS
        if any(row.values(key) for row in table.rows)
        and (differ or key != "trainable_without_head")
    ]
    if any(row.efficiency for row in table.rows):
        shown.append(("efficiency", lambda row: row.efficiency))
    rows = [[show(row) for _, show in shown] for row in table.rows]
    return [name for name, _ in shown], rows


def single(values: Sequence[Any]) -> Any:
    """Return what all values are, or an empty text where they differ or are none."""
    return values[0] if values and all(x == values[0] for x in values) else ""


def _signed(difference: float | None) -> str:
    if difference is None:
        return ""
    text = f"{round(difference, 1) + 0.0:+.1f}"  # adding 0.0 makes -0.0 positive
    return f", {text.replace('-', '−')}"


def _between(key: str, form: str, factor: float = 1) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        values = row.values(key)
        if not values:
            return ""
        ends = dict.fromkeys(form.format(factor * f(values)) for f in (min, max))
        return "–".join(ends)

    return show


def _of(key: str, summary: Callable[[Any], str]) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        values = row.values(key)
        return summary(values) if values else ""

    return show


def _largest(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return "none" if len(known) < len(values) else f"{max(known):.1e}"


# Column, entry of a result, text of a row.
COSTS: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
    ("trainable", "trainable", _between("trainable", "{:,}")),
    (
        "without head",
        "trainable_without_head",
        _between("trainable_without_head", "{:,}"),
    ),
    ("share %", "share", _between("share", "{:.2f}", 100)),
    ("seconds", "seconds", _of("seconds", lambda x: f"{mean(x):.1f}")),
    (
        "step / bound",
        "step_over_bound",
        _of("step_over_bound", lambda x: f"{median(x):.2f}"),
    ),
    ("adapter KB", "adapter_bytes", _between("adapter_bytes", "{:.1f}", 1e-3)),
    ("|adapted - merged|", "merge_difference", _of("merge_difference", _largest)),
)
