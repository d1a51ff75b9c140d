"""A planned model: static facts, and pure functions of `(variables, adapters)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.bank import apply_rows
from peftjax.core.call import Call
from peftjax.core.checks import check_adapters, check_finite, planned_leaves
from peftjax.core.gates import TOTAL, mean_gates
from peftjax.core.lift import lift
from peftjax.core.merge import merge_site
from peftjax.core.method import Method
from peftjax.core.plan import Leaves, findings
from peftjax.core.site import Adapters, Site
from peftjax.core.start import fresh
from peftjax.core.substitute import constant, heads_of, params, replaced, symbols
from peftjax.core.summary import table


@dataclass(frozen=True)
class Peft:
    """A planned model: static facts, and pure functions of `(variables, adapters)`.

    Attributes:
        apply_fn: the model.
        rules: the rules, in order.
        sites: the adapted leaves, in the order of the model's.
        leaves: all parameters of the model, with shapes and dtypes.
        structure: the tree structure of `variables`.
        base: the variables given to `adapt`, from which `Full` and DoRA start.
    """

    apply_fn: Callable[..., Any]
    rules: tuple[tuple[str, Method], ...]
    sites: tuple[Site, ...]
    leaves: Leaves
    structure: Any
    base: Any = field(compare=False, repr=False)

    def init(self, key: jax.Array, variables: Any = None) -> Adapters:
        """Return fresh adapters, `{path: {name: array}}`, float32.

        Args:
            key: a PRNG key; a site folds in the index of its leaf, so that its start
                does not depend on the other rules.
            variables: the model's, for methods that start from the weight (`Full`,
                DoRA); by default those given to `adapt`.

        Raises:
            ValueError: such a weight is needed and only its shape is known.
        """
        leaves = self._planned(self.base if variables is None else variables)
        adapters: Adapters = {}
        for site in self.sites:
            kernel = leaves[site.index] if site.method.needs_kernel else None
            if isinstance(kernel, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{site.path}: {type(site.method).__name__} starts from the weight "
                    "itself, but adapt was given only its shape; pass "
                    "init(key, variables)"
                )
            p = fresh(site, jax.random.fold_in(key, site.index), kernel)
            for name in site.method.shared:
                adapters.setdefault("", {}).setdefault(name, p.pop(name))
            adapters[site.path] = p
        return adapters

    def apply(
        self,
        variables: Any,
        adapters: Adapters,
        *args: Any,
        adapter_key: jax.Array | None = None,
        adapter_ids: jax.Array | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the adapted model; no merged weight is formed at a fast site.

        Args:
            variables: the frozen model.
            adapters: `{path: {name: array}}`, or a `bank` of them.
            *args: as for `apply_fn`.
            adapter_key: PRNG key of the adapters' dropout; None is deterministic.
            adapter_ids: integers `[rows]`, for a bank: row i of every array whose first
                axis has that length runs with adapter `adapter_ids[i]`, -1 is the base.
                Arrays are never clamped: an id out of range is an error, and inside
                `jit`, where ids are unknown, gives NaN.
            **kwargs: as for `apply_fn`; those that are no arrays stay Python values.

        Returns:
            What `apply_fn` returns.

        Raises:
            ValueError: variables or adapters do not have the planned paths and shapes;
                an id out of range.
        """
        if adapter_ids is not None:
            run = partial(self.apply, variables)
            call = Call.of(self.apply_fn, self.structure, args, kwargs)
            ids = jnp.asarray(adapter_ids)
            return apply_rows(run, self.sites, call, adapters, ids)
        leaves = self._planned(variables)
        check_adapters(self.sites, adapters)
        call = Call.of(self.apply_fn, self.structure, args, kwargs)
        jaxpr, out_structure = call.trace(leaves)
        found = findings(jaxpr, self.leaves, {s.path: s.method for s in self.sites})
        values = replaced(self.sites, leaves, adapters)
        values = symbols(self.sites, self.leaves, values, adapters, found, adapter_key)
        return jax.tree.unflatten(out_structure, lift(jaxpr, [*values, *call.dynamic]))

    def merge(self, variables: Any, adapters: Adapters, gates: Any = None) -> Any:
        """Return variables with the adapters merged in; the same tree, nothing mutated.

        Every site is merged in float32 and cast once, one stacked layer at a time.

        Args:
            variables: the frozen model.
            adapters: `{path: {name: array}}`.
            gates: constant gates for methods whose gates depend on the token
                (HydraLoRA): `"uniform"`, `[heads]` for all sites, or `{path: gates}`,
                where gates may carry the stacked axes in front.

        Raises:
            NotMergeable: a formula is not affine in x, a layer has no bias to take a
                constant, or a weight is stored in integers.
            ValueError: a non-finite adapter, or gates of wrong paths, shapes or values;
                the site is named.
        """
        leaves = self._planned(variables)
        check_adapters(self.sites, adapters)
        check_finite(adapters)
        given = constant(self.sites, gates)
        values = replaced(self.sites, leaves, adapters)
        for site in self.sites:
            if not site.method.replaces:
                merge_site(site, values, params(site, adapters, given))
        return jax.tree.unflatten(self.structure, values)

    def mean_gates(
        self, variables: Any, adapters: Adapters, *args: Any, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """Return the gates of every gated site, averaged over all tokens of a call.

        Args:
            variables: the frozen model.
            adapters: `{path: {name: array}}`.
            *args: data, as for `apply`.
            **kwargs: as for `apply`.

        Returns:
            `{path: [*stack, heads]}` float32, as `merge(..., gates=...)` takes it; NaN
            where a site has no part in the output.
        """
        gated = [site for site in self.sites if site.method.gated]
        zeros = {s.path: jnp.zeros((*s.stack, heads_of(s) + 1)) for s in gated}

        def run(zeros: dict[str, jax.Array]) -> Any:
            watched = dict(adapters)
            for path, total in zeros.items():
                watched[path] = {**adapters[path], TOTAL: total}
            return self.apply(variables, watched, *args, **kwargs)

        return mean_gates(run, zeros)

    def sample(self, adapters: Adapters, key: jax.Array) -> Adapters:
        """Return adapters with what a search draws (GLoRA's structures) drawn anew."""
        drawn = dict(adapters)
        for site in self.sites:
            site_key = jax.random.fold_in(key, site.index)
            keys = jax.random.split(site_key, site.stack) if site.stack else site_key
            fresh = site.stacked(site.method.draw)(keys)
            drawn[site.path] = {**adapters[site.path], **fresh}
        return drawn

    def penalty(self, adapters: Adapters) -> jax.Array:
        """Return the sum of the methods' own terms of the loss, a float32 scalar."""
        total = jnp.zeros((), jnp.float32)
        for site in self.sites:
            if type(site.method).penalty is not Method.penalty:
                p = params(site, adapters)
                total += jnp.sum(site.stacked(site.method.penalty)(p))
        return total

    def partition(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """Divide adapters into trainable and frozen leaves; `combine` rejoins them."""
        frozen_names = {site.path: site.method.frozen for site in self.sites}
        frozen_names[""] = tuple(n for site in self.sites for n in site.method.frozen)
        trainable: Adapters = {}
        frozen: Adapters = {}
        for path, p in adapters.items():
            for name, value in p.items():
                side = frozen if name in frozen_names[path] else trainable
                side.setdefault(path, {})[name] = value
        return trainable, frozen

    def combine(self, trainable: Adapters, frozen: Adapters) -> Adapters:
        """Rejoin what `partition` divided."""
        both = dict.fromkeys([*trainable, *frozen])
        return {
            path: {**trainable.get(path, {}), **frozen.get(path, {})} for path in both
        }

    def summary(self) -> str:
        """Return a table of the sites: shapes, parameters, FLOPs, fast or merged."""
        sizes = [
            prod(aval.shape)
            for path, aval in zip(self.leaves.paths, self.leaves.avals)
            if path is not None
        ]
        return table(self.sites, sum(sizes))

    def check_formulas(self, call: Call) -> None:
        """Trace an adapted call without arrays, so that a bad formula fails early."""

        def run(leaves: Any, adapters: Adapters, dynamic: Any) -> Any:
            args, kwargs = call.arguments(dynamic)
            variables = jax.tree.unflatten(self.structure, leaves)
            return self.apply(variables, adapters, *args, **kwargs)

        def init(key: jax.Array, leaves: Any) -> Adapters:
            return self.init(key, jax.tree.unflatten(self.structure, leaves))

        key = jax.eval_shape(lambda: jax.random.key(0))
        adapters = jax.eval_shape(init, key, list(self.leaves.avals))
        jax.eval_shape(run, list(self.leaves.avals), adapters, call.dynamic)

    def _planned(self, variables: Any) -> list[Any]:
        return planned_leaves(self.leaves, self.structure, variables)
