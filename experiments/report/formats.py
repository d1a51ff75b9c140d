"""A table as text: Markdown, CSV, JSON and on the screen."""

from __future__ import annotations

import csv as csv_
import io
from dataclasses import asdict
from statistics import mean
from typing import Any

from experiments.report.caption import Caption, circumstance
from experiments.report.cells import grid, single
from experiments.report.rows import Row, Table

SCORE = ("mean", "std", "finished", "failed", "missing")
SIZES = ("trainable", "trainable_without_head", "share", "adapter_bytes")
MEASURED = ("step_over_bound", "merge_difference")


def markdown(table: Table, caption: Caption) -> str:
    """Return the table and its caption."""
    header, rows = grid(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    parts = [
        "\n".join(f"| {' | '.join(line)} |" for line in escaped),
        f"**{caption.loud}**" if caption.loud else "",
        " ".join(caption.sentences),
        "\n".join(f"- {line}" for line in caption.failures),
        "\n".join(f"- {line}" for line in caption.abandoned),
        "\n".join(f"- {line}" for line in caption.sources),
        "; ".join(caption.circumstances),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv(table: Table) -> str:
    """Return one line per method and task, averages included; empty is unknown."""
    stream = io.StringIO()
    lines = [_line(row, column) for row in table.rows for column in table.columns]
    writer = csv_.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def document(table: Table, caption: Caption) -> dict[str, Any]:
    """Return rows, caption, hardware, versions and dates for a JSON file."""
    dates = sorted(result["date"] for result in table.results)
    return {
        "name": table.name,
        "rows": [
            {
                "label": row.label,
                "method": row.method,
                "settings": {run.task: run.settings for run in row.runs},
                "scores": {
                    column: {**asdict(score), "difference": score.difference}
                    for column, score in row.scores.items()
                },
                **_costs(row),
            }
            for row in table.rows
        ],
        "caption": asdict(caption),
        **{key: _distinct(table, key) for key in ("hardware", "versions")},
        "date": {"first": dates[0], "last": dates[-1]} if dates else {},
    }


def show(table: Table, caption: Caption) -> None:
    """Print the table and what of its caption a reader must not miss."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Screen

    header, rows = grid(table)
    screen = Screen(*map(escape, header), title=escape(table.name))
    for row in rows:
        screen.add_row(*map(escape, row))
    # Lines that the terminal wraps are read more easily than folded cells.
    width = Console(width=10_000).measure(screen).maximum
    Console(width=max(width, Console().width)).print(screen)
    for line in (
        caption.loud,
        " ".join(caption.sentences),
        *caption.failures,
        *caption.abandoned,
    ):
        if line:
            print(line)


def _line(row: Row, column: str) -> dict[str, Any]:
    score, runs = row.scores[column], row.of(column)
    results = [run.result for run in runs if run.result]
    seconds, published = row.values("seconds", column), score.published
    return {
        "method": row.method,
        "settings": single([run.settings for run in runs]),
        "task": column,
        "metric": single([result["metric"] for result in results]),
        "note": single([result["note"] for result in results]),
        "selection": single([run.selection for run in runs]),
        **{key: getattr(score, key) for key in SCORE},
        "published": published.value if published else "",
        "difference": score.difference,
        "source": published.source if published else "",
        **{key: single(row.values(key, column)) for key in SIZES},
        "seconds": mean(seconds) if seconds else "",
        "circumstances": " / ".join(dict.fromkeys(map(circumstance, results))),
        "date": max((result["date"] for result in results), default=""),
    }


def _costs(row: Row) -> dict[str, Any]:
    """Return the least and the largest of what each finished run says."""
    found = {key: row.values(key) for key in (*SIZES, "seconds", *MEASURED)}
    return {
        key: None if None in values else {"min": min(values), "max": max(values)}
        for key, values in found.items()
        if values
    }


def _distinct(table: Table, key: str) -> list[Any]:
    found = [result[key] for result in table.results]
    return [one for place, one in enumerate(found) if one not in found[:place]]
