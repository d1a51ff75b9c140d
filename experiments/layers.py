"""The order in which a picture shows layers."""

from __future__ import annotations

import re


def by_number(layer: str) -> list[tuple[int, str]]:
    """Return a key of sorting that has a layer's numbers count as numbers.

    >>> sorted(["blocks_10/q", "blocks_2/v", "blocks_2/q"], key=by_number)
    ['blocks_2/q', 'blocks_2/v', 'blocks_10/q']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", layer)
    return [(int(x), "") if x.isdigit() else (-1, x) for x in parts]
