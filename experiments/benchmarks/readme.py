"""The README's figures, from the committed results alone.

Between `<!-- NAME -->` and `<!-- /NAME -->` stands what `PARTS[NAME]` returns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax import storage

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "results"
BENCHMARKS = RESULTS / "benchmarks_cpu.json"


def write(file: Path = README) -> None:
    """Put the figures of `results/` into the README."""
    storage.write_text(file, filled(file.read_text()))


def filled(text: str) -> str:
    """Return a text with its parts made anew.

    Raises:
        ValueError: a part stands in it never, or more than once.
    """
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"expected one part between {begin.strip()} and {end}")
        body = f"{begin}{part()}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text)
    return text


def quickstart() -> str:
    """Return the table of the README's first command."""
    lines = (RESULTS / "quickstart_cpu.md").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def step_time() -> str:
    """Return what a step costs by method, and on which machine."""
    found = json.loads(BENCHMARKS.read_text())["step_time"]
    layouts = found["layouts"]
    unrolled, scanned = layouts["unrolled"], layouts["scanned"]
    head = ("method", "time", "FLOPs", "memory", "scanned: time", "memory")
    head += ("torch: time", "torch / ours")
    rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for name in found["methods"]:
        torch = unrolled.get(f"torch {name}", {})
        keys = [f"{key}_over_bound" for key in ("time", "flops", "temporary_bytes")]
        ours = [unrolled[name][key] for key in keys]
        ours += [scanned[name][key] for key in (keys[0], keys[2])]
        theirs = [torch.get(f"time_over_{key}") for key in ("bound", "ours")]
        rows.append((name, *map(_shown, [*ours, *theirs])))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    below = [_machine(found)]
    if "torch bound" in unrolled:
        frozen = [unrolled[name]["seconds"] for name in ("torch bound", "bound")]
        below.append(f"Torch's frozen model takes {frozen[0] / frozen[1]:.2f} of ours.")
    return f"{table}\n\n" + "\n".join(below)


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _machine(found: Mapping[str, Any]) -> str:
    hardware, versions = found["hardware"], found["versions"]
    return (
        f"{hardware['cores']} cores of {hardware['cpu']}; Python {versions['python']}, "
        f"jax {versions['jax']}, flax {versions['flax']}; {found['date'][:10]}."
    )


PARTS = {"quickstart": quickstart, "step_time": step_time}
