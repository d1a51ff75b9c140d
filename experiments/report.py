"""A table from result files: on the screen, as Markdown, JSON and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.records import circumstances, write_json
from peftjax.hub.tensors import replacing

HEADER = (
    "method",
    "accuracy %",
    "trainable",
    "share %",
    "step / bound",
    "adapter KB",
    "|adapted - merged|",
)
CAPTION = (
    "Accuracy: test split, last step, mean ± standard deviation over the seeds. Step: "
    "one training step, optimizer included, relative to the frozen model's forward and "
    "input gradient, timed in turn. Last column: largest difference of a logit; none "
    "where gates depend on the token, so that no merged weight exists."
)


@dataclass(frozen=True)
class Row:
    """One method: its seeds summed up."""

    method: str
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_std: float | None
    trainable: int
    share: float
    step_over_bound: float
    adapter_bytes: int
    merge_difference: float | None

    @classmethod
    def of(cls, results: Sequence[dict[str, Any]]) -> Row:
        """Sum up the results of one method."""
        first = results[0]["metrics"]
        scores = [result["metrics"]["test_accuracy"] for result in results]
        differences = [result["metrics"]["merge_difference"] for result in results]
        return cls(
            method=results[0]["method"],
            seeds=tuple(result["seed"] for result in results),
            accuracy=mean(scores),
            accuracy_std=stdev(scores) if len(scores) > 1 else None,
            trainable=first["trainable"],
            share=first["share"],
            step_over_bound=median(r["metrics"]["step_over_bound"] for r in results),
            adapter_bytes=first["adapter_bytes"],
            merge_difference=None if None in differences else max(differences),
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        difference, spread = self.merge_difference, self.accuracy_std
        return (
            self.method,
            f"{100 * self.accuracy:.1f}"
            + ("" if spread is None else f" ± {100 * spread:.1f}"),
            f"{self.trainable:,}",
            f"{100 * self.share:.2f}",
            f"{self.step_over_bound:.2f}",
            f"{self.adapter_bytes / 1000:.1f}",
            "none" if difference is None else f"{difference:.1e}",
        )


def write(
    name: str, results: Sequence[Sequence[dict[str, Any]]], workdir: Path
) -> None:
    """Print the table and write `table.md`, `table.json` and `table.png`."""
    rows = [Row.of(runs) for runs in results]
    document = {"rows": [asdict(row) for row in rows], **circumstances()}
    write_json(workdir / "table.json", document)
    with replacing(workdir / "table.md") as new:
        new.write_text(_markdown(rows, document))
    with replacing(workdir / "table.png") as new:
        _plot(name, rows, new)
    table = Table(*HEADER, title=name)
    for row in rows:
        table.add_row(*row.cells())
    Console(width=100).print(table)
    print(f"{CAPTION}\nWritten: {workdir}/table.md, table.json, table.png")


def _markdown(rows: Sequence[Row], document: dict[str, Any]) -> str:
    lines = [HEADER, ("---",) + ("---:",) * (len(HEADER) - 1)]
    lines += [row.cells() for row in rows]
    table = "\n".join("| " + " | ".join(_escaped(line)) + " |" for line in lines)
    hardware, versions = document["hardware"], document["versions"]
    return (
        f"{table}\n\n{CAPTION}\n\n{hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['devices'][0]}; jax {versions['jax']}, flax {versions['flax']}, "
        f"Python {versions['python']}; {document['date']}.\n"
    )


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def _plot(name: str, rows: Sequence[Row], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        x, y, spread = row.trainable, row.accuracy, row.accuracy_std or 0.0
        axes.errorbar(x, 100 * y, 100 * spread, fmt="o", capsize=3)
        axes.annotate(
            row.method, (x, 100 * y), xytext=(5, 5), textcoords="offset points"
        )
    axes.set(
        xscale="log",
        xlabel="trainable parameters",
        ylabel="test accuracy (%)",
        title=name,
    )
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=150)
