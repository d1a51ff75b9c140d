"""A picture of a layer and its adapter: each array a box, its sides to scale."""

from collections.abc import Collection, Mapping

LONGEST = 150  # of a side, for the longest axis of the weight
THINNEST = 3
GAP, LABEL, WIDTH = 22, 16, 620
SHIFT, MOST = 4, 4  # of the boxes of a pile


def picture(
    arrays: Mapping[str, tuple[int, ...]],
    frozen: Collection[str],
    weight: tuple[int, int],
) -> str:
    """Return an SVG of the frozen weight and the arrays beside it.

    An array of more than two axes is a pile of boxes; rows of boxes are filled one
    after the other.
    """
    scale = LONGEST / max(weight)
    drawn, x, y, deepest = [], 0, 0, 0
    for name, shape in {"weight": weight, **arrays}.items():
        down, across = (1, 1, *shape)[-2:]
        pile = min(shape[0], MOST) if len(shape) > 2 else 1
        high, wide = (round(max(scale * side, THINNEST)) for side in (down, across))
        taken = max(wide + SHIFT * pile, 8 * len(name)) + GAP
        if x and x + taken > WIDTH:
            x, y, deepest = 0, y + LABEL + deepest + GAP, 0
        kind = "weight" if name == "weight" else "trained"
        kind = "frozen" if name in frozen else kind
        drawn.append(f'<text x="{x + 1}" y="{y + LABEL - 5}">{name}</text>')
        for shift in range(SHIFT * (pile - 1), -1, -SHIFT):
            at = f'x="{x + 1 + shift}" y="{y + LABEL + shift}"'
            drawn.append(f'<rect class="{kind}" {at} width="{wide}" height="{high}"/>')
        x, deepest = x + taken, max(deepest, high + SHIFT * pile)
    size = f'viewBox="0 0 {WIDTH} {y + LABEL + deepest + 2}" width="{WIDTH}"'
    said = "the frozen weight, and the arrays of the adapter to the same scale"
    inside = "".join(drawn)
    return f'<svg class="arrays" role="img" aria-label="{said}" {size}>{inside}</svg>\n'
