"""A table as LaTeX: as many tabulars below each other as its columns need."""

from __future__ import annotations

import math

from experiments.report.caption import Caption
from experiments.report.cells import costs, ours, theirs
from experiments.report.rows import Table

# What LaTeX reads as a command, or lacks in its default encoding.
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": r"\textendash{}",
        **{char: f"\\{char}" for char in "&%$#_{}"},
    }
)
ACROSS = 9  # columns that are still read easily
PUBLISHED = r"\quad published"
SMALLER_IF_WIDE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex(table: Table, caption: Caption) -> str:
    """Return a `table` environment; it needs the packages booktabs and graphicx.

    Published numbers stand in a row of their own below the method's.
    """
    loud = rf" \textbf{{{_escaped(caption.loud)}}}" if caption.loud else ""
    circumstances = "; ".join(caption.circumstances)
    notes = [
        *caption.failures,
        *caption.abandoned,
        *caption.sources,
        circumstances,
    ]
    told = [*caption.sentences, *(f"{note}." for note in notes if note)]
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.name)}.{loud}}}",
        r"\scriptsize",
        *_tabulars(table),
        rf"\raggedright {_escaped(' '.join(told))}\par",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tabulars(table: Table) -> list[str]:
    names, sizes = costs(table)
    header, rows = [*table.columns, *names], []
    for row, beside in zip(table.rows, sizes):
        rows.append(
            (_escaped(row.label), [ours(row, x) for x in table.columns] + beside)
        )
        published = [theirs(row, x) for x in table.columns] + [""] * len(names)
        rows.append((PUBLISHED, published))
    width = math.ceil(len(header) / math.ceil(len(header) / ACROSS))
    lines = []
    for start in range(0, len(header), width):
        part = slice(start, start + width)
        lines += _tabular(header[part], [(name, row[part]) for name, row in rows])
    return lines


def _tabular(header: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    """Return one tabular; rows of published numbers without any are left out."""
    kept = [(name, row) for name, row in rows if any(row) or name != PUBLISHED]
    return [
        SMALLER_IF_WIDE,
        rf"\begin{{tabular}}{{l{'r' * len(header)}}}",
        r"\toprule",
        _line("method", header),
        r"\midrule",
        *(_line(name, row) for name, row in kept),
        r"\bottomrule",
        r"\end{tabular}}\par\medskip",
    ]


def _line(name: str, cells: list[str]) -> str:
    return " & ".join([name, *map(_escaped, cells)]) + r" \\"


def _escaped(text: str) -> str:
    return text.translate(ESCAPES).replace("--", "-{}-")  # no dash from two hyphens
