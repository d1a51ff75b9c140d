"""`adapt`: a model and rules to pure functions of the adapters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core import paths
from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.bank import check_ids
from peftjax.core.call import Call
from peftjax.core.discover import Findings
from peftjax.core.lift import Weight, lift
from peftjax.core.method import Method
from peftjax.core.plan import Leaves, findings, pair_bias, plan
from peftjax.core.site import BASE, TOTAL, Site
from peftjax.core.summary import table
from peftjax.core.views import arrange, restore, whole

Adapters = dict[str, dict[str, jax.Array]]


def adapt(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_args: Any,
    rules: Mapping[str, Method],
    strict: bool = False,
    flatten: bool = True,
    **example_kwargs: Any,
) -> Peft:
    """Plan the adapters of a model.

    Args:
        apply_fn: `apply_fn(variables, *args, **kwargs)`, such as `model.apply`.
        variables: its variables, arrays or `jax.ShapeDtypeStruct`s; boxed
            (partitioned) parameters are looked into.
        *example_args: arguments like those of later calls, arrays or shapes; the first
            axis of the first array counts the examples.
        rules: regular expression, matched against the whole path of a parameter, to
            method; the first match wins.
        strict: a site that would fall back to merging is an error.
        flatten: flatten activations to `[tokens, in]`, which is faster; False where a
            second leading axis is sharded over an Auto mesh.
        **example_kwargs: keyword arguments of the example call.

    Returns:
        The plan: static facts and pure functions.

    Raises:
        ValueError: a rule decides no parameter, a method does not fit its leaf, or
            (strict) a use of a weight is not recognised.

    >>> import flax.linen as nn
    >>> from peftjax.methods.lora import LoRA
    >>> model, x = nn.Dense(4), jnp.ones((2, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": LoRA(2, alpha=4.0)})
    >>> adapters = peft.init(jax.random.key(1))
    >>> jax.tree.map(jnp.shape, adapters)
    {'kernel': {'a': (3, 2), 'b': (2, 4)}}
    >>> bool((peft.apply(variables, adapters, x) == model.apply(variables, x)).all())
    True
    """
    names, leaves, structure = paths.flatten(variables)
    chosen = paths.match([name for name in names if name is not None], rules)
    avals = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    known = Leaves(tuple(names), avals)
    call = Call.of(apply_fn, structure, example_args, example_kwargs)
    jaxpr, _ = call.trace(avals)
    sites = plan(jaxpr, known, chosen, call.examples, flatten)
    slow = [f"{site.path}: {site.reason}" for site in sites if not site.fast]
    if strict and slow:
        raise ValueError(
            "strict=True, but these sites would form a merged weight at every step:\n  "
            + "\n  ".join(slow)
        )
    peft = Peft(apply_fn, tuple(rules.items()), sites, known, structure, variables)
    peft.check_formulas(call)
    return peft


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
        leaves = self._leaves(self.base if variables is None else variables)
        adapters: Adapters = {}
        for site in self.sites:
            kernel = leaves[site.index] if site.method.needs_kernel else None
            if isinstance(kernel, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{site.path}: {type(site.method).__name__} starts from the weight "
                    "itself, but adapt was given only its shape; pass "
                    "init(key, variables)"
                )
            p = _init(site, jax.random.fold_in(key, site.index), kernel)
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
            ids = jnp.asarray(adapter_ids)
            return self._apply_rows(variables, adapters, ids, args, kwargs)
        leaves = self._leaves(variables)
        self._check_adapters(adapters)
        call = Call.of(self.apply_fn, self.structure, args, kwargs)
        jaxpr, out_structure = call.trace(leaves)
        found = findings(jaxpr, self.leaves, self._methods)
        values = self._replaced(leaves, adapters)
        values = self._symbols(values, adapters, found, adapter_key)
        return jax.tree.unflatten(out_structure, lift(jaxpr, [*values, *call.dynamic]))

    def _apply_rows(
        self, variables: Any, bank: Adapters, ids: jax.Array, args: Any, kwargs: Any
    ) -> Any:
        """Run each row of a batch with its own adapter of a bank."""
        rows = check_ids(ids, bank)
        costly = [site.path for site in self.sites if site.method.forms_kernel]
        if costly:
            warnings.warn(
                f"a bank forms one kernel for each row at {costly[0]} and "
                f"{len(costly) - 1} other sites; a method without it is far cheaper",
                stacklevel=3,
            )
        call = Call.of(self.apply_fn, self.structure, args, kwargs)
        axes = [0 if leaf.shape[:1] == (rows,) else None for leaf in call.dynamic]

        def take(array: jax.Array) -> jax.Array:
            return jnp.take(array, jnp.maximum(ids, 0), axis=0, mode="fill")

        def row(adapters: Adapters, is_base: jax.Array, dynamic: list[Any]) -> Any:
            single = [x if ax is None else x[None] for x, ax in zip(dynamic, axes)]
            args, kwargs = call.arguments(single)
            marked = {path: {**p, BASE: is_base} for path, p in adapters.items()}
            output = self.apply(variables, marked, *args, **kwargs)
            return jax.tree.map(lambda y: y[0], output)

        if not call.dynamic or axes[0] is None:
            raise ValueError(
                f"adapter_ids holds {rows} ids, but the first array has shape "
                f"{tuple(call.dynamic[0].shape) if call.dynamic else 'none'}"
            )
        adapters = jax.tree.map(take, bank)
        return jax.vmap(row, (0, 0, axes))(adapters, ids < 0, call.dynamic)

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
            ValueError: a non-finite adapter; the site is named.
        """
        leaves = self._leaves(variables)
        self._check_adapters(adapters)
        self._check_finite(adapters)
        values = self._replaced(leaves, adapters)
        for site in self.sites:
            if not site.method.replaces:
                self._merge_site(site, values, self._params(site, adapters, gates))
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
        totals = {
            site.path: jnp.zeros((*site.stack, _heads(site) + 1))
            for site in self.sites
            if site.method.gated
        }

        def run(totals: dict[str, jax.Array]) -> jax.Array:
            watched = {
                path: {**p, TOTAL: totals[path]} if path in totals else p
                for path, p in adapters.items()
            }
            outputs = jax.tree.leaves(self.apply(variables, watched, *args, **kwargs))
            floats = [o for o in outputs if jnp.issubdtype(o.dtype, jnp.floating)]
            return sum(jnp.sum(o.astype(jnp.float32)) for o in floats)  # pyright: ignore

        found = jax.grad(run)(totals)
        return {
            path: total[..., :-1] / total[..., -1:] for path, total in found.items()
        }

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
                p = self._params(site, adapters)
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

    @property
    def _methods(self) -> dict[str, Method]:
        return {site.path: site.method for site in self.sites}

    def _leaves(self, variables: Any) -> list[Any]:
        """Return the leaves of variables that have the planned paths and shapes."""
        names, leaves, structure = paths.flatten(variables)
        if structure != self.structure and tuple(names) != self.leaves.paths:
            missing = sorted(set(self.leaves.paths) - set(names), key=str)[:5]
            extra = sorted(set(names) - set(self.leaves.paths), key=str)[:5]
            raise ValueError(
                "variables are not those of the planned model: missing "
                f"{missing or 'nothing'}, unexpected {extra or 'nothing'}"
            )
        for name, leaf, aval in zip(names, leaves, self.leaves.avals):
            if name is not None and tuple(leaf.shape) != aval.shape:
                raise ValueError(
                    f"{name}: expected shape {aval.shape}, found {tuple(leaf.shape)}"
                )
        return leaves

    def _check_adapters(self, adapters: Adapters) -> None:
        wanted = {site.path for site in self.sites}
        wanted |= {"" for site in self.sites if site.method.shared}
        if set(adapters) != wanted:
            missing = sorted(wanted - set(adapters))[:5]
            extra = sorted(set(adapters) - wanted)[:5]
            raise ValueError(
                f"adapters do not fit the plan: missing {missing or 'nothing'}, "
                f"unexpected {extra or 'nothing'}; make them with init or load them "
                "for this model and these rules"
            )

    def _check_finite(self, adapters: Adapters) -> None:
        for path, p in adapters.items():
            for name, value in p.items():
                try:
                    finite = bool(jnp.all(jnp.isfinite(value)))
                except jax.errors.ConcretizationTypeError:
                    return
                if not finite:
                    raise ValueError(
                        f"{path}: adapter array {name!r} holds NaN or infinity; "
                        "refusing to merge. Go back to an earlier checkpoint"
                    )

    def _params(
        self, site: Site, adapters: Adapters, gates: Any = None
    ) -> dict[str, jax.Array]:
        """Return a site's arrays, shared ones and constant gates included."""
        p = dict(adapters[site.path])
        for name in site.method.shared:
            value = adapters[""][name]
            p[name] = jnp.broadcast_to(value, (*site.stack, *value.shape))
        if BASE in p:
            p[BASE] = jnp.broadcast_to(p[BASE], site.stack)
        if site.method.gated and gates is not None:
            heads = _heads(site)
            given = gates[site.path] if isinstance(gates, Mapping) else gates
            if isinstance(given, str):
                if given != "uniform":
                    raise ValueError(
                        f"gates: expected 'uniform' or arrays, found {given!r}"
                    )
                given = jnp.full(heads, 1 / heads)
            p["gates"] = jnp.broadcast_to(jnp.asarray(given), (*site.stack, heads))
        return p

    def _replaced(self, leaves: list[Any], adapters: Adapters) -> list[Any]:
        """Return the leaves with those of `Full` replaced."""
        values = list(leaves)
        for site in self.sites:
            if site.method.replaces:
                value = adapters[site.path]["value"]
                if value.shape != site.shape:
                    raise ValueError(
                        f"{site.path}: expected an adapter value of shape "
                        f"{site.shape}, found {value.shape}"
                    )
                value = value.astype(site.dtype)
                if BASE in adapters[site.path]:
                    is_base = adapters[site.path][BASE]
                    value = jnp.where(is_base, leaves[site.index], value)
                values[site.index] = value
        return values

    def _symbols(
        self,
        values: list[Any],
        adapters: Adapters,
        found: Findings,
        adapter_key: jax.Array | None,
    ) -> list[Any]:
        """Put `Weight`s in the place of adapted leaves; merge what must be merged."""
        values = list(values)
        kernels: list[Site] = []
        for site in self.sites:
            if site.method.replaces or site.index not in found.seen:
                continue
            uses = found.uses.get(site.index, [])
            known = (site.atoms[1:], site.atoms[1:][::-1])
            recognised = site.index not in found.opaque and all(
                (use.d_in, use.d_out) in known and use.stack == site.atoms[0]
                for use in uses
            )
            if site.fast and recognised:
                kernels.append(site)
            else:
                self._merge_site(site, values, self._params(site, adapters))
        for site in kernels:
            bias = self._take_bias(site, values, found)
            key = None
            if adapter_key is not None:
                key = jax.random.fold_in(adapter_key, site.index)
                key = jax.random.split(key, site.stack) if site.stack else key
            values[site.index] = Weight(
                values[site.index],
                self._params(site, adapters),
                bias,
                key,
                site,
                site.stored,
                site.atoms[0],
            )
        return values

    def _take_bias(
        self, site: Site, values: list[Any], found: Findings
    ) -> jax.Array | None:
        """Take the bias out of the model where the formula is to add it."""
        if not site.method.uses_bias or site.bias_index is None:
            return None
        if pair_bias(site, found, self.leaves).bias != site.bias:
            raise ValueError(
                f"{site.path}: this call does not add the bias {site.bias} as the "
                "planned one did; plan it with example arguments of this kind"
            )
        bias = values[site.bias_index]
        values[site.bias_index] = jnp.zeros_like(bias)
        return arrange(bias, whole(bias.shape), site.bias_groups)

    def _merge_site(
        self, site: Site, values: list[Any], p: dict[str, jax.Array]
    ) -> None:
        """Merge one site into `values`."""
        if site.quantised:
            raise NotMergeable(
                f"{site.path}: the weight is stored as {site.dtype} and scaled by the "
                "model; merging needs a floating weight. Dequantise it first, or keep "
                "the adapter separate"
            )
        is_base = p.pop(BASE, None)
        if is_base is not None:
            is_base = is_base.reshape(-1)[0]
        leaf = values[site.index]
        kernel = arrange(leaf, site.stored, site.groups)
        bias: Any = 0.0
        if site.bias_index is not None:
            stored = values[site.bias_index]
            bias = arrange(stored, whole(stored.shape), site.bias_groups)

        def layer(p: Any, kernel: Any, bias: Any = 0.0) -> Any:
            return merge_layer(site.method, p, kernel, bias, site.path)

        arguments = (p, kernel) if isinstance(bias, float) else (p, kernel, bias)
        merged, const = _one_by_one(layer, site.stack, arguments)
        merged = restore(merged, site.stored, site.groups)
        merged = merged.astype(leaf.dtype)
        if is_base is not None:
            merged = jnp.where(is_base, leaf, merged)
        values[site.index] = merged
        if site.bias_index is not None:
            stored = values[site.bias_index]
            const = restore(const, whole(stored.shape), site.bias_groups)
            const = const.astype(stored.dtype)
            if is_base is not None:
                const = jnp.where(is_base, stored, const)
            values[site.bias_index] = const
        elif const is not None:
            raise NotMergeable(
                f"{site.path}: {site.method} adds a constant to the output, but the "
                "layer has no bias of its own to take it. Give the layer a bias, use "
                "a form without constants, or keep the adapter separate"
            )


def _heads(site: Site) -> int:
    return site.method.heads  # pyright: ignore[reportAttributeAccessIssue]


def _init(site: Site, key: jax.Array, kernel: Any) -> dict[str, jax.Array]:
    if site.method.replaces:
        value = jnp.array(
            kernel, jnp.promote_types(kernel.dtype, jnp.float32), copy=True
        )
        return {"value": value}

    def layer(key: jax.Array, kernel: jax.Array | None = None) -> dict[str, jax.Array]:
        return site.method.init(key, site.layer(kernel))

    arguments = [jax.random.split(key, site.stack) if site.stack else key]
    if kernel is not None:
        wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        arguments.append(arrange(wide, site.stored, site.groups))
    p = site.stacked(layer)(*arguments)
    for name in site.method.shared:
        p[name] = p[name][(0,) * len(site.stack)]
    return p


def _one_by_one(
    function: Callable[..., Any], stack: tuple[int, ...], arguments: tuple[Any, ...]
) -> Any:
    """Map a function over stacked layers in turn, so that one is held in float32."""
    if not stack:
        return function(*arguments)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(stack) :]), arguments)
    results = lax.map(lambda args: function(*args), flat)
    return jax.tree.map(lambda a: a.reshape(*stack, *a.shape[1:]), results)
