"""An adapted leaf: its static facts, and what goes with its arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax

from peftjax.core.axes import Axis, View, whole
from peftjax.core.method import Kind, Layer, Method

Adapters = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class Leaves:
    """The model's parameters: paths (None outside `params`), shapes and dtypes."""

    paths: tuple[str | None, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]


@dataclass(frozen=True)
class Site:
    """The static facts of one adapted leaf.

    Attributes:
        path: of the leaf, relative to `params`.
        index: its position among the model's leaves.
        method: the adapter.
        kind: dense, conv, embedding, output or prefix (what a module returns, whose
            path ends in `:output`), or other (a leaf that `Full` replaces).
        shape: of the stored leaf.
        dtype: of the stored leaf, by name.
        stack: sizes of the stacked axes (scanned layers, experts); adapter arrays carry
            them in front.
        d_in, d_out: the `[in, out]` view of one layer; 0 for kind other.
        trainable: number of trainable parameters, all stacked layers together.
        flops: FLOPs that the adapter adds to a forward pass, per example.
        fast: no merged weight is formed.
        reason: why not.
        bias: path of the layer's bias, where it is paired with this weight.
        bias_index: its position among the model's leaves.
        bias_groups: the stored axes of that bias in the order `[*stack, out]`.
        notes: what a user should know.
        atoms: stacked, in and out axes in terms of the stored ones.
        spatial: the window of a convolution.
        quantised: the weight is stored in integers, scaled by the model.
        flatten: activations are flattened to `[tokens, in]`; None: but on a TPU.
        fused: a low-rank product runs as one kernel, see `fused`.
        arrays: name and shape of each adapter array, the stacked axes left out.
    """

    path: str
    index: int
    method: Method
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    stack: tuple[int, ...] = ()
    d_in: int = 0
    d_out: int = 0
    trainable: int = 0
    flops: int = 0
    fast: bool = True
    reason: str = ""
    bias: str | None = None
    bias_index: int | None = None
    bias_groups: tuple[Axis, ...] = ()
    notes: tuple[str, ...] = ()
    atoms: tuple[tuple[Axis, ...], Axis, Axis] = ((), (), ())
    spatial: tuple[int, ...] = ()
    quantised: bool = False
    flatten: bool | None = None
    fused: bool = False
    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def on_output(self) -> bool:
        """Whether it edits what a module returns, and not a leaf."""
        return self.kind in ("output", "prefix")

    @property
    def groups(self) -> tuple[Axis, ...]:
        """The canonical axes `[*stack, in, out]`."""
        stack, d_in, d_out = self.atoms
        return (*stack, d_in, d_out)

    @property
    def stored(self) -> View:
        return whole(self.shape)

    @property
    def takes_bias(self) -> bool:
        """Whether the formula, and not the model, adds the bias."""
        return self.method.uses_bias and self.bias_index is not None

    @cached_property
    def form(self) -> Site:
        """The facts that decide a program: sites of one form share a compiled one."""
        return replace(
            self,
            path="",
            index=0,
            bias=None,
            bias_index=None if self.bias_index is None else 0,
            flops=0,
            reason="",
            notes=(),
        )

    @property
    def kin(self) -> Any:
        """What sites of a form have in common; the path where a method has no hash."""
        try:
            hash(self.method)
        except TypeError:
            return self.path
        return self.form

    def layer(self, kernel: jax.Array | None = None) -> Layer:
        return Layer(self.d_in, self.d_out, self.kind, kernel, self.path, self.spatial)

    def key(self, adapter_key: jax.Array | None) -> jax.Array | None:
        """Return the keys of its dropout, `[*stack]`."""
        if adapter_key is None:
            return None
        key = jax.random.fold_in(adapter_key, self.index)
        return jax.random.split(key, self.stack) if self.stack else key

    def stacked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one layer over the stacked layers."""
        for _ in self.stack:
            function = jax.vmap(function)
        return function


def by_form(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function `(site, *arrays)` once for all sites of one form.

    Inside a user's own `jit` it is a part of that program. A method that cannot be
    hashed runs without a compiled program.
    """
    program = jax.jit(function, static_argnums=0)

    def call(site: Site, *arguments: Any) -> Any:
        try:
            hash(site.method)
        except TypeError:
            return function(site, *arguments)
        # a form has no path: whoever calls this names the site in errors
        return program(site.form, *arguments)

    return call


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "gates", "is_base", "total"),
    meta_fields=(),
)
@dataclass(frozen=True)
class Given:
    """What a call gives to a site, the stacked axes in front.

    Attributes:
        params: adapter arrays by name.
        gates: `[*stack, heads]`, constants for a gated method.
        is_base: `[*stack]` bool: this row of a bank runs the frozen layer.
        total: `[*stack, heads + 1]` zeros whose cotangent is the gates' sum, see
            `gates.observe`.
    """

    params: dict[str, jax.Array] = field(default_factory=dict[str, jax.Array])
    gates: jax.Array | None = None
    is_base: jax.Array | None = None
    total: jax.Array | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the formula that only some calls have."""
        return {} if self.gates is None else {"gates": self.gates}
