"""The table that `peft.summary()` prints."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from peftjax.core.site import Site

_HEADER = (
    "path",
    "kind",
    "[in, out]",
    "method",
    "trainable",
    "+FLOPs",
    "share",
    "runs",
)


def table(sites: Sequence[Site], parameters: int) -> str:
    """Return a table of sites with totals below.

    Args:
        sites: the adapted layers.
        parameters: how many parameters the model has.
    """
    rows = [_HEADER, *(_row(site, parameters) for site in sites)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append(lines[1])
    lines += [f"{site.path}: {note}" for site in sites for note in site.notes]
    trainable = sum(site.trainable for site in sites) + _shared(sites)
    merged = sum(not site.fast for site in sites)
    lines.append(
        f"{len(sites)} sites, {merged} merged; {trainable:,} trainable parameters, "
        f"{_share(trainable, parameters)} of {parameters:,}; "
        f"{sum(site.flops for site in sites):,} FLOPs per example added"
    )
    return "\n".join(lines)


def _shared(sites: Sequence[Site]) -> int:
    """Return the trainable parameters that several sites read, each counted once."""
    shapes = {
        name: shape
        for site in sites
        for name, shape in site.arrays
        if name in site.method.shared and name not in site.method.frozen
    }
    return sum(map(prod, shapes.values()))


def _row(site: Site, parameters: int) -> tuple[str, ...]:
    sizes = [site.d_in, site.d_out] if site.d_out else list(site.shape)
    layers = "".join(f"{n} x " for n in site.stack)
    return (
        site.path,
        site.kind,
        f"{layers}{sizes}",
        str(site.method),
        f"{site.trainable:,}",
        f"{site.flops:,}",
        _share(site.trainable, parameters),
        "fast" if site.fast else f"merged: {site.reason}",
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3f}%"
