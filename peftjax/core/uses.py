"""The symbols in a model: leaves, adapted weights, products not yet evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.axes import TOKENS, Atom, Axis, View, arrange, inside, shape
from peftjax.core.coded import moved
from peftjax.core.jaxpr import Symbol
from peftjax.core.method import Kind
from peftjax.core.site import Given, Site

# What took a stacked axis off: two leaves belong together if the same thing did.
Token = tuple[str, Any]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("value",),
    meta_fields=("index", "view", "dropped"),
)
@dataclass(frozen=True, eq=False)
class Leaf(Symbol):
    """A parameter that is not adapted, but may be the bias of one that is.

    Attributes:
        value: the array, as the model has laid it out; only its shape while planning.
        index: the parameter's position among the model's leaves.
        view: the axes of `value`; one that was broadcast holds no atoms.
        dropped: stacked axes taken off on the way, with what took them.
    """

    value: Any
    index: int
    view: View
    dropped: tuple[tuple[Axis, Token], ...] = ()

    def moved(self, function: Callable[[Any], Any], view: View) -> Leaf:
        """Lay the value out anew."""
        return replace(self, value=moved(self.value, function), view=view)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Leaf:
        """Apply a function to all that carries the stacked axes in front."""
        return self

    def leading(self) -> Leaf:
        """Bring the stacked axis that is first in the view to the front of all that."""
        return self

    def member(self, token: Token) -> Leaf:
        """Describe one member, after the leading axis of every array was taken off."""
        dropped = (*self.dropped, (self.view[0], token))
        return replace(self, view=self.view[1:], dropped=dropped)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "given", "key", "factor"),
    meta_fields=("index", "view", "dropped", "site", "scaled", "varies", "exact"),
)
@dataclass(frozen=True, eq=False)
class Weight(Leaf):
    """An adapted weight on its way through the model.

    Attributes:
        site: the static facts; while planning only those known before.
        given: adapter arrays and what goes with them, the stacked axes still to come
            in front; none while planning.
        key: dropout keys `[*stack]`, or None.
        scaled: a weight in integers has met its scale.
        factor: what the model has multiplied the weight by, `[*stack, in, out]` with
            1 for an axis along which it is the same; None while planning.
        varies: the axes along which it is not the same; None without a factor.
        exact: the factor is a power of two, which commutes with rounding.
    """

    site: Site = field(kw_only=True)
    given: Given = field(default_factory=Given)
    key: jax.Array | None = None
    scaled: bool = False
    factor: jax.Array | None = None
    varies: Axis | None = None
    exact: bool = True

    @property
    def stack(self) -> tuple[Axis, ...]:
        """The planned stacked axes that are still to come."""
        gone = [axis for axis, _ in self.dropped]
        return tuple(axis for axis in self.site.atoms[0] if axis not in gone)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Weight:
        parts = self.given, self.key, self.factor
        given, key, factor = jax.tree.map(function, parts)
        return replace(self, given=given, key=key, factor=factor)

    def leading(self) -> Weight:
        place = partial(self.stack.index, self.view[0])
        return self.map(lambda array: jnp.moveaxis(array, place(), 0))

    def times(self, factor: Any, size: Sequence[int], exact: bool) -> Weight:
        """Multiply by a factor whose shape `size` has 1 where it does not vary."""
        axes = [axis for axis, n in zip(self.view, size) if n != 1]
        varies = (*(self.varies or ()), *sum(axes, ()))
        if self.value is None:  # while planning
            factor = None
        else:
            d_in, d_out = self.site.atoms[1:]
            whole = jnp.broadcast_to(factor, shape(self.view))
            factor = arrange(whole, self.view, [*self.stack, d_in, d_out])
            if not any(inside(atom, [d_in]) for atom in varies):
                factor = factor[..., :1, :]
            if not any(inside(atom, [d_out]) for atom in varies):
                factor = factor[..., :1]
            factor = factor if self.factor is None else self.factor * factor
        exact = exact and self.exact
        return replace(self, factor=factor, varies=varies, exact=exact)

    def folded(self, count: Any) -> Weight:
        """Fold a number into the dropout keys."""
        fold: Any = partial(jax.random.fold_in, data=count)
        for _ in self.stack:
            fold = jax.vmap(fold)
        return replace(self, key=fold(self.key))


@dataclass(frozen=True, eq=False)
class Trained(Symbol):
    """The value of a leaf that `Full` replaces; the model cannot stop its gradient."""

    value: jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "delta"),
    meta_fields=("path", "is_bias", "curved"),
)
@dataclass(frozen=True, eq=False)
class Merged(Symbol):
    """The merged weight or bias of a site, in two parts whose sum it is.

    They stay apart until a product, so that an update is kept which the weight's own
    type would round away.

    Attributes:
        value: what the model has made of its own, in its own type.
        delta: what the adapters add, of the same shape, at least float32.
        path: of the site.
        is_bias: it is the site's bias.
        curved: it has been through what is not linear, so that a model which stops its
            gradient means more than the frozen weight.
    """

    value: jax.Array
    delta: jax.Array
    path: str
    is_bias: bool = False
    curved: bool = False

    @property
    def sum(self) -> jax.Array:
        return self.value.astype(self.delta.dtype) + self.delta


@dataclass(frozen=True)
class Asked:
    """What the model asked of its own product."""

    precision: Any
    preferred: Any
    out_dtype: Any

    @classmethod
    def by(cls, eqn: Any) -> Asked:
        return cls(
            eqn.params.get("precision"),
            eqn.params.get("preferred_element_type"),
            eqn.outvars[0].aval.dtype,
        )

    @property
    def name(self) -> str | None:
        """The precision as `jax.default_matmul_precision` takes it."""
        wanted = self.precision
        if isinstance(wanted, tuple):
            wanted = max(wanted, key=lambda item: item.value)
        if isinstance(wanted, lax.Precision):
            return wanted.name.lower()
        return None if wanted is None else str(getattr(wanted, "name", wanted))


@dataclass(eq=False)
class Use:
    """One use of an adapted weight by the model.

    Attributes:
        kind: of the layer.
        stack, d_in, d_out: the axes of the weight as this use sees them.
        rows: tokens, output positions or ids, for one layer.
        spatial: the window of a convolution.
        times: how often it runs: loops around it, and layers that it does at once.
        scaled: its output is multiplied by the weight's factor.
        biases: leaves that are added to it, with their axes as `[*stack, out]`.
        others: what else is done to its output.
    """

    kind: Kind
    stack: tuple[Axis, ...]
    d_in: Axis
    d_out: Axis
    rows: int
    spatial: tuple[int, ...] = ()
    times: int = 1
    scaled: bool = False
    biases: list[tuple[int, tuple[Axis, ...]]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Product(Symbol):
    """The output of one use of a weight, evaluated when it is known what is added.

    Attributes:
        weight: the weight, as it was used.
        use: that use.
        view: the output's axes; they hold atoms of the weight or of tokens.
        asked: the type and precision of the output.
        compute: the output, given the bias `[*stack, out]` that the formula is to add,
            or None, the dropout keys, and what is asked.
    """

    weight: Weight
    use: Use
    view: View
    asked: Asked
    compute: Callable[[Any, Any, Asked], Any]

    def moved(self, function: Callable[[Any], Any], view: View) -> Product:
        """Lay the output out anew, once it is there."""
        return replace(self, view=view, compute=lambda *a: function(self.compute(*a)))

    def cast(self, dtype: Any) -> Product:
        """Ask for another type."""
        return replace(self, asked=replace(self.asked, out_dtype=dtype))


def bias_groups(product: Product, leaf: Leaf) -> tuple[Axis, ...] | None:
    """Return a leaf's axes as `[*stack, out]` if it is the bias of a product.

    It is one if it holds one number per output, in the order of the outputs, and was
    taken from its stack together with the weight.
    """
    use, dropped = product.use, product.weight.dropped
    if len(leaf.view) != len(product.view) or len(leaf.dropped) != len(dropped):
        return None
    of: dict[Axis, Axis] = {}
    for (axis, token), (bias_axis, bias_token) in zip(dropped, leaf.dropped):
        if token != bias_token or shape((axis,)) != shape((bias_axis,)):
            return None
        of[axis] = bias_axis
    out: list[Atom] = []
    out_bias: list[Atom] = []
    for axis, bias_axis in zip(product.view, leaf.view, strict=True):
        if not any(atom.axis < TOKENS for atom in axis):
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
