"""What discovery speaks of: leaves, products, and the uses of adapted weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftjax.core.method import Kind
from peftjax.core.views import TOKENS, Atom, Axis, View, shape
from peftjax.core.walker import Symbol


@dataclass(frozen=True)
class Leaf(Symbol):
    """A parameter, or a view of it.

    Attributes:
        index: the parameter's position among the model's leaves.
        view: its axes now.
        dropped: stacked axes taken off on the way, with what took them.
        repeat: how often the surrounding loops run.
        adapted: a formula is to be evaluated here.
        integer: it is stored in integers, so that a scale follows.
    """

    index: int
    view: View
    dropped: tuple[tuple[Axis, Any], ...] = ()
    repeat: int = 1
    adapted: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Product(Symbol):
    """The output of one use of a weight; axes hold atoms of the weight or tokens."""

    use: Use
    view: View


@dataclass(eq=False)
class Use:
    """One use of an adapted weight by the model."""

    leaf: int
    kind: Kind
    stack: tuple[Axis, ...]
    d_in: Axis
    d_out: Axis
    rows: int
    dropped: tuple[tuple[Axis, Any], ...]
    spatial: tuple[int, ...] = ()
    repeat: int = 1
    biases: list[tuple[int, tuple[Axis, ...]]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass
class Findings:
    """Everything known of the parameters of a model.

    Attributes:
        uses: per adapted leaf, the recognised uses.
        opaque: per adapted leaf, why a use is not recognised.
        elsewhere: leaves used otherwise than as the bias of an adapted weight.
        seen: leaves that are used at all.
    """

    uses: dict[int, list[Use]] = field(default_factory=dict)
    opaque: dict[int, list[str]] = field(default_factory=dict)
    elsewhere: dict[int, list[str]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


def bias_groups(product: Product, leaf: Leaf) -> tuple[Axis, ...] | None:
    """Return a leaf's axes as `[*stack, out]` if it is the bias of a product.

    It is one if it holds one number per output, in the order of the outputs, and was
    taken from its stack together with the weight.
    """
    use = product.use
    if len(leaf.view) != len(product.view) or len(leaf.dropped) != len(use.dropped):
        return None
    of: dict[Axis, Axis] = {}
    for (axis, token), (bias_axis, bias_token) in zip(use.dropped, leaf.dropped):
        if token != bias_token or shape((axis,)) != shape((bias_axis,)):
            return None
        of[axis] = bias_axis
    out: list[Atom] = []
    out_bias: list[Atom] = []
    for axis, bias_axis in zip(product.view, leaf.view, strict=True):
        is_weight = any(atom.axis < TOKENS for atom in axis)
        if not is_weight:
            if any(atom.size != 1 for atom in bias_axis):
                return None
        elif shape((axis,)) != shape((bias_axis,)):
            return None
        elif axis in use.stack:
            of[axis] = bias_axis
        else:
            out += [atom for atom in axis if atom.size != 1]
            out_bias += [atom for atom in bias_axis if atom.size != 1]
    if not (_sorted(out) and _sorted(out_bias)):
        return None
    return (*(of[axis] for axis in use.stack), tuple(out_bias))


def _sorted(atoms: list[Atom]) -> bool:
    return atoms == sorted(atoms, key=lambda atom: (atom.axis, -atom.stride))
