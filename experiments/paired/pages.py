"""A comparison as Markdown and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from experiments.report.plot import GRID, OURS


def markdown(result: Mapping[str, Any]) -> str:
    """Return a table of each task, the best mean first."""
    against = result["against"]
    lines = []
    for task, rows in result["tasks"].items():
        metric = rows[against]["metric"]
        lines += [
            f"| {task} | {metric} | rate | parameters | minus {against} |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for method, row in ordered(rows):
            lines.append(
                f"| {method} | {_score(row['scores'])} | {row['rate']:g} | "
                f"{row['parameters']:,} | {_difference(row.get('difference'))} |"
            )
        lines.append("")
    seeds = result["seeds"]
    lines.append(
        f"Percent on the test split, mean ± sample standard deviation of "
        f"{seeds['table']} seeds. Parameters without the head. Rate: of each method's "
        f"grid of {len(result['config']['grid'])}, the best mean over "
        f"{seeds['choosing']} other seeds on held-out training examples. Minus "
        f"{against}: paired over seeds and test examples, with the central 95 % of "
        f"{result['draws']:,} bootstrap draws of both; bold where they leave out zero."
    )
    return "\n".join(lines) + "\n"


def ordered(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the methods and their rows, the best mean first."""
    return sorted(rows.items(), key=lambda pair: -mean(pair[1]["scores"]))


def png(result: Mapping[str, Any]) -> bytes:
    """Return the picture: of each task the differences with their intervals."""
    from matplotlib.figure import Figure

    tasks, against = result["tasks"], result["against"]
    tallest = max(map(len, tasks.values()))
    size = (0.6 + 4.2 * len(tasks), 1.2 + 0.19 * tallest)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (task, rows) in zip(
        figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items()
    ):
        shown = [(m, row) for m, row in ordered(rows) if "difference" in row]
        for place, (_, row) in enumerate(reversed(shown)):
            found = {key: 100 * x for key, x in row["difference"].items()}
            sure = found["low"] > 0 or found["high"] < 0
            reach = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
            axes.errorbar(
                found["mean"],
                place,
                xerr=reach,
                fmt="o",
                color=OURS,
                mfc=OURS if sure else "white",
                markersize=4,
                linewidth=1,
                capsize=2,
            )
        names = [method for method, _ in reversed(shown)]
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.axvline(0, color="gray", linewidth=0.8)
        level = 100 * mean(rows[against]["scores"])
        axes.set_title(f"{task}: {against} {level:.1f} %", fontsize=9)
        axes.set_xlabel(f"points more than {against}, 95 % intervals", fontsize=8)
        axes.grid(**GRID)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _score(scores: list[float]) -> str:
    percent = [100 * score for score in scores]
    spread = f" ± {stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{mean(percent):.1f}{spread}"


def _difference(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    text = "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(
        **{key: 100 * x for key, x in found.items()}
    ).replace("-", "−")
    return f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text
