"""Pictures of a search: what was tried, and what was found."""

from __future__ import annotations

import io
from math import prod
from typing import Any

from experiments.layers import by_number
from peftjax.methods.glora_supernet import FORMS
from peftjax.search import Candidate, Found, Space

ORIGINS = {"random": "#9a9a9a", "mutant": "#1f4e79", "crossover": "#5b9bd5"}
FRONT = "#c8641e"
SHADES = ("#ffffff", "#d6e4f0", "#7fa8cf", "#1f4e79")  # none … lora


def front(archive: list[Candidate]) -> list[Candidate]:
    """Return the candidates that none of as many or fewer parameters beats.

    >>> two = [Candidate((), n, s, 0, "random") for n, s in ((5, 0.1), (3, 0.2))]
    >>> [candidate.parameters for candidate in front(two)]
    [3]
    """
    best: list[Candidate] = []
    for candidate in sorted(archive, key=lambda c: (c.parameters, -c.score)):
        if not best or candidate.score > best[-1].score:
            best.append(candidate)
    return best


def archive_png(found: Found, metric: str) -> bytes:
    """Return score against parameters of all candidates, the front marked."""
    figure, axes = _figure(7.0, 4.5)
    for origin, color in ORIGINS.items():
        of = [c for c in found.archive if c.origin == origin]
        at = [c.parameters for c in of], [c.score for c in of]
        axes.scatter(*at, s=14, color=color, label=f"{origin}, {len(of)}")
    line = front(found.archive)
    at = [c.parameters for c in line], [c.score for c in line]
    axes.plot(*at, "o-", color=FRONT, markersize=4, linewidth=1, label="front")
    axes.scatter(
        found.best.parameters, found.best.score, marker="*", s=160, color=FRONT
    )
    axes.set_xlabel("parameters, head aside")
    axes.set_ylabel(f"{metric} on the split that is selected on")
    axes.legend(fontsize="small")
    return _png(figure)


def structure_png(space: Space, best: Candidate) -> bytes:
    """Return the form of each support of each layer."""
    paths = [
        site.path.removesuffix("/kernel")
        for site, _ in space.supernets
        for _ in range(prod(site.stack))
    ]
    figure, axes = _figure(5.5, 0.8 + 0.22 * len(paths))
    layers = sorted(zip(paths, best.genes), key=lambda layer: by_number(layer[0]))
    paths = [path for path, _ in layers]
    for row, (_, genes) in enumerate(layers):
        for column, gene in enumerate(genes):
            form = min(gene, len(FORMS) - 1)
            axes.fill_between([column, column + 1], row, row + 1, color=SHADES[form])
            ink = "white" if form == len(FORMS) - 1 else "black"
            place = column + 0.5, row + 0.5
            axes.text(*place, FORMS[form], ha="center", va="center", size=6, color=ink)
    axes.set(xlim=(0, 5), ylim=(len(paths), 0))
    axes.set_xticks([i + 0.5 for i in range(5)], "ABCDE")
    axes.set_yticks([i + 0.5 for i in range(len(paths))], paths, fontsize=6)
    axes.set_title(f"{best.parameters:,} parameters", fontsize="medium")
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
