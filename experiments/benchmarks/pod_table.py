"""Plans of `pod_plan` as Markdown.

`python -m experiments.benchmarks.pod_table results/pod_plan.json > results/pod_plan.md`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli

HEAD = (
    "model, choices",
    "slice",
    "mesh",
    "base GiB",
    "arguments GiB",
    "temporaries GiB",
    "of the chip %",
    "FLOPs",
    "received GiB",
    "while computing %",
    "least s",
)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("file", type=Path, help="JSON file of plans")
    print(table(json.loads(parser.read(argv).file.read_text())))


def table(plans: Sequence[dict[str, Any]]) -> str:
    """Return plans in a table, each number per chip.

    >>> plan = {"choices": "model=a", "topology": "v5e:2x4", "mesh": {"data": 8},
    ...         "gather": True, "base_bytes": 2**30, "fits": False, "error": "no",
    ...         "flops": 3e12}
    >>> table([plan]).splitlines()[2]
    '| a | v5e:2x4 | 8 | 1.00 | does not fit | | | 3.00e+12 | | | |'
    """
    order = sorted(plans, key=lambda x: (x["topology"], x["choices"], not x["gather"]))
    rows = [HEAD, ("---", "---", *("---:",) * (len(HEAD) - 2)), *map(_row, order)]
    lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(
        line.replace("|  |", "| |").replace("|  |", "| |") for line in lines
    )


def _row(plan: dict[str, Any]) -> tuple[str, ...]:
    parts = [part.partition("=") for part in plan["choices"].split(",")]
    short = ("model", "method")
    names = [value if key in short else f"{key}={value}" for key, _, value in parts]
    if not plan["gather"]:
        names.append("left to the compiler")
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    first = ", ".join(names), plan["topology"], mesh, _gib(plan["base_bytes"])
    flops = f"{plan['flops']:.2e}"
    if "error" in plan:
        return (*first, "does not fit", "", "", flops, "", "", "")
    if "traced" in plan:
        known = _gib(plan["argument_bytes"]), "not compiled", "", flops
        received = _gib(plan["received_bytes"]), "", f"{plan['seconds_at_least']:.3f}"
        return (*first, *known, *received)
    used = plan["argument_bytes"] + plan["temporary_bytes"]
    return (
        *first,
        _gib(plan["argument_bytes"]),
        _gib(plan["temporary_bytes"]),
        f"{100 * used / plan['chip_bytes']:.0f}",
        flops,
        _gib(plan["received_bytes"]),
        f"{100 * plan['received_while_computing']:.0f}",
        f"{plan['seconds_at_least']:.3f}",
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


if __name__ == "__main__":
    main(sys.argv[1:])
