"""The table of a folder of runs: Markdown, CSV, LaTeX, JSON, PNG and the screen.

`python -m experiments.report DIR` reads `DIR/plan.json` and the `result.json` of each
run; runs that failed or are missing are shown as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.claims import alone
from experiments.report import (
    caption,
    curves,
    formats,
    gallery,
    latex,
    plot,
    tokens,
    weights,
)
from experiments.report.rows import table
from experiments.report.runs import read
from experiments.workdir import PLAN, ForeignFile
from peftjax import storage


def write(workdir: Path) -> None:
    """Print the table and write `table.md`, `.csv`, `.tex`, `.json` and `.png`.

    And `curves.png`, where the configuration's tasks are sizes of some sets,
    `weights.png`, where weights of composed modules were learned, and, of runs with
    `look`, `gallery.png`, images that each method got wrong, and `tokens.png`.

    All is computed before the first file is replaced.

    Raises:
        FileNotFoundError: no run was ever planned in the folder.
        DamagedFile: a file is no JSON, or lacks what the table is made of.
        ForeignFile: a file of such a name is there that is not the table's.
        UnknownName: of a published number, in the table's configuration.
    """
    if not (workdir / PLAN).is_file():
        read(workdir)  # raises, and leaves no lock file in a folder of something else
    with alone(workdir / PLAN):  # no older table replaces a newer one
        _write(workdir)


def _write(workdir: Path) -> None:
    plan, runs = read(workdir)
    found = table(plan["name"], runs, plan["table"])
    text = caption.Caption.of(found)
    files = {
        "table.md": formats.markdown(found, text).encode(),
        "table.csv": formats.csv(found).encode(),
        "table.tex": latex.latex(found, text).encode(),
        "table.png": plot.png(found, text),
    }
    if given := plan["table"].get("curves"):
        files["curves.png"] = curves.png(found, given)
    if learned := weights.panels(found):
        files["weights.png"] = weights.png(learned)
    if wrong := gallery.rows(workdir, found):
        files["gallery.png"] = gallery.png(wrong)
    if lengths := tokens.panels(found):
        files["tokens.png"] = tokens.png(lengths)
    names = sorted([*files, "table.json"])
    _own(workdir, plan, names)
    storage.write_json(workdir / "table.json", formats.document(found, text))
    for name, content in files.items():
        with storage.replacing(workdir / name) as new:
            new.write_bytes(content)
    formats.show(found, text)
    print(f"Written: {workdir}/{', '.join([*files, 'table.json'])}")


def _own(workdir: Path, plan: dict[str, Any], names: list[str]) -> None:
    """Note in the plan which files are the table's; refuse to replace another's."""
    for name in names:
        if (workdir / name).exists() and name not in plan.get("files", ()):
            raise ForeignFile(
                f"{workdir / name}: not written by this table, which would replace it; "
                "move it"
            )
    if plan.get("files") != names:
        storage.write_json(workdir / PLAN, {**plan, "files": names})
