"""How a family says where its parameters lie in the original, and in which order.

The loader, the saver and the import of adapter files all read what is said with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["dense", "norm", "embedding", "conv", "array", "vector", "scalar"]
Layout = Literal["hf", "hf5", "timm", "npz"]
Named = Iterator[tuple[str, "Source"]]

# Name of ours -> name in torch's modules, order of torch's axes in ours.
_TORCH_LEAVES: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "dense": {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},
    "norm": {"scale": ("weight", (0,)), "bias": ("bias", (0,))},
    "embedding": {"embedding": ("weight", (0, 1))},
    "conv": {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", (0,))},
}

# Bare parameters, by their number of axes.
_ARRAYS = {"array": (0, 1, 2), "vector": (0,), "scalar": ()}


@dataclass(frozen=True)
class Source:
    """Where one parameter lies in a checkpoint.

    Attributes:
        tensors: names in the file; several are joined along our last axis.
        order: the original's axes in our order: `(1, 0)` is a transposition.
        part: `(i, n)`: ours is the i-th of n equal parts of the original's output axis.
        shape: the shape in the file, where it is more than ours reordered.
        kind: what holds it.
    """

    tensors: tuple[str, ...]
    order: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    shape: tuple[int, ...] | None = None
    kind: Kind = "array"

    @property
    def bare(self) -> bool:
        """Whether it is a parameter of its own, not one of a module's."""
        return self.kind in _ARRAYS


def module(
    path: str,
    original: str | tuple[str, ...],
    kind: Kind,
    part: tuple[int, int] = (0, 1),
) -> Named:
    """Yield path and source of every parameter that a module of this kind may have.

    Args:
        path: of ours, with unrolled layers: `layers_0/attention/query`.
        original: of torch's, `bert.encoder.layer.0.attention.self.query`; several lie
            side by side along our output axis.
        kind: what it is; `"array"`, `"vector"` and `"scalar"` are bare parameters.
        part: as in `Source`.

    >>> [path for path, _ in module("norm", "bert.norm", "norm")]
    ['norm/scale', 'norm/bias']
    """
    originals = (original,) if isinstance(original, str) else original
    if kind in _ARRAYS:
        yield path, Source(originals, _ARRAYS[kind], part, kind=kind)
        return
    for leaf, (theirs, order) in _TORCH_LEAVES[kind].items():
        tensors = tuple(f"{name}.{theirs}" for name in originals)
        yield f"{path}/{leaf}", Source(tensors, order, part, kind=kind)
