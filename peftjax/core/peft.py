"""`adapt`: a model and rules to a plan; and what a plan can do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from peftjax.core import arrays, cost, paths
from peftjax.core.affine import NotMergeable
from peftjax.core.bank import apply_rows
from peftjax.core.coded import Coded
from peftjax.core.formula import check_fused, flattens
from peftjax.core.fresh import fresh
from peftjax.core.gates import mean_gates
from peftjax.core.gather import Gatherer, Layout
from peftjax.core.jaxpr import Call, live_inputs
from peftjax.core.merge import merge_leaves
from peftjax.core.method import Method
from peftjax.core.outputs import (
    divided,
    edited,
    plan_outputs,
    trained,
    with_costs,
)
from peftjax.core.plan import plan
from peftjax.core.routes import routed
from peftjax.core.run import rehearse, run
from peftjax.core.site import Adapters, Given, Leaves, Site, by_form


def adapt(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_args: Any,
    rules: Mapping[str, Method] | Sequence[tuple[str, Method]],
    strict: bool = False,
    flatten: bool | None = None,
    fused: bool = False,
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
            method; the first match wins. A list of pairs does as well. Of an
            `OutputMethod`, against the path of a module and `:output`.
        strict: a site that would fall back to merging is an error.
        flatten: flatten activations to `[tokens, in]`; by default where that is faster,
            on all platforms but TPUs (see `Peft.compiled_for`). False where a
            second leading axis is sharded over an Auto mesh.
        fused: on one TPU, run dense layers of methods that are a low-rank product
            (LoRA, DoRA, HRA, Hydra, GLoRA without A) as one kernel, which passes over
            activations less often. Interpreted, and slow, on a CPU. Layers that the
            kernel does not fit, and dropout, keep to the formula.
        **example_kwargs: keyword arguments of the example call.

    Returns:
        The plan: static facts and pure functions.

    Raises:
        TypeError: rules or variables of another type.
        ValueError: a rule decides no parameter, or one on which no output depends; a
            method does not fit its leaf; (strict) a use of a weight is not recognised;
            or (fused) the platform has no such kernel.

    >>> import flax.linen as nn, jax.numpy as jnp
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
    if fused:
        check_fused(jax.default_backend())
    read = paths.read(rules)
    names, leaves, structure = paths.flatten(variables)
    own, on_outputs = divided(read)
    chosen = paths.match([name for name in names if name is not None], own)
    avals = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    known = Leaves(tuple(names), avals)
    call = plain = Call.of(apply_fn, structure, example_args, example_kwargs)
    examples, outputs, without = call.examples, (), None
    if on_outputs:
        outputs, without = plan_outputs(call, known, on_outputs)

        def places(key: jax.Array) -> dict[str, Given]:
            return arrays.of_sites(outputs, fresh(outputs, avals, key))

        call = edited(call, outputs, jax.eval_shape(places, jax.random.key(0)), None)
    jaxpr, _ = call.trace(avals)
    if outputs:
        outputs = with_costs(outputs, without, jaxpr, examples)
    paths.refuse_dead(names, live_inputs(jaxpr), chosen)
    methods = {path: method for path, (_, method) in chosen.items()}
    sites = plan(jaxpr, known, methods, examples, flatten)
    arrays.shared_shapes((*sites, *outputs))
    slow = [f"{site.path}: {site.reason}" for site in sites if not site.fast]
    if strict and slow:
        raise ValueError(
            "strict=True, but these sites would form a merged weight at every step:\n  "
            + "\n  ".join(slow)
        )
    peft = Peft(apply_fn, read, sites, known, structure, variables)

    def route(leaves: Any, adapters: Adapters) -> Mapping[str, Given]:
        return routed(sites, plain, leaves, adapters, {})

    if rounded := rehearse(jaxpr, sites, avals, call.dynamic, route):
        (path, why), *others = rounded.items()
        warnings.warn(
            f"{path} ({why}) and {len(others)} other sites form a merged weight in a "
            "type narrower than float32, which loses small updates; store these "
            "weights in float32",
            stacklevel=2,
        )
        sites = tuple(_noted(site, rounded.get(site.path)) for site in sites)
    sites = tuple(replace(site, fused=fused) for site in sites)
    return replace(peft, sites=(*sites, *outputs))


def _noted(site: Site, why: str | None) -> Site:
    if why is None:
        return site
    note = f"small updates are lost where the merged weight is rounded ({why})"
    return replace(site, notes=(*site.notes, note))


@dataclass(frozen=True, repr=False)
class Peft:
    """A planned model: static facts, and pure functions of `(variables, adapters)`.

    Attributes:
        apply_fn: the model.
        rules: the rules, in order.
        sites: the adapted leaves, in the order of the model's.
        leaves: all parameters of the model, with shapes and dtypes.
        structure: the tree structure of `variables`.
        base: the variables given to `adapt`, from which `Full` and DoRA start.
        batch: where examples lie, a sharding of the first axis of a batch. Set it
            (`dataclasses.replace(peft, batch=...)`; `make_step` does) where the base is
            split over a mesh: `apply` then gathers each leaf where it is consumed and
            leaves the examples where they are. None where the compiler decides, or your
            own partitioning.
    """

    apply_fn: Callable[..., Any]
    rules: tuple[tuple[str, Method], ...]
    sites: tuple[Site, ...]
    leaves: Leaves
    structure: Any
    base: Any = field(compare=False, repr=False)
    batch: NamedSharding | None = None

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
        return fresh(self.sites, leaves, key)

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
        call = Call.of(self.apply_fn, self.structure, args, kwargs)
        if adapter_ids is None:
            return self.call(variables, adapters, call, adapter_key=adapter_key)
        run = partial(self.call, variables, adapter_key=adapter_key)
        return apply_rows(run, self.sites, call, adapters, jnp.asarray(adapter_ids))

    def call(
        self,
        variables: Any,
        adapters: Adapters,
        call: Call,
        given: Mapping[str, Given] | None = None,
        adapter_key: jax.Array | None = None,
    ) -> Any:
        """Run one call, with what is given to some sites beside their arrays."""
        given = given or {}
        leaves = self._planned(variables)
        arrays.check_adapters(self.sites, adapters, given)
        examples, outputs = call.examples, self._on("output")
        runner = None
        if self.batch is not None or any(isinstance(leaf, Coded) for leaf in leaves):
            layout = Layout(self.batch, examples)
            runner = partial(Gatherer, layout=layout)
        given = routed(self.sites, call, leaves, adapters, given, runner)
        if outputs:
            places = arrays.of_sites(outputs, adapters, given)
            call = edited(call, outputs, places, adapter_key)
        jaxpr, structure = call.trace(leaves)
        dynamic = trained(call) if outputs else call.dynamic
        inputs = leaves, dynamic, adapters, given, adapter_key
        found = run(jaxpr, self._on("weight"), *inputs, runner=runner)
        return jax.tree.unflatten(structure, found)

    def _on(self, what: str) -> list[Site]:
        """Return the sites on outputs of modules, or those on weights."""
        wanted = what == "output"
        return [site for site in self.sites if site.on_output == wanted]

    def compiled_for(self, platform: str) -> Peft:
        """Return the plan with the forms that are best on a platform, `"tpu"` for one.

        `make_step` does so with the platform of its mesh. Without it the forms are
        those of `jax.default_backend()`, wherever a program is compiled for.

        Raises:
            ValueError: the plan is `fused`, and the platform has no such kernel.
        """
        if any(site.fused for site in self.sites):
            check_fused(platform)
        flatten = flattens(platform)
        sites = tuple(
            replace(site, flatten=flatten) if site.flatten is None else site
            for site in self.sites
        )
        return replace(self, sites=sites)

    def merge(self, variables: Any, adapters: Adapters, gates: Any = None) -> Any:
        """Return variables with the adapters merged in; the same tree, nothing mutated.

        Every site is merged in float32 and cast once, one stacked layer at a time. Of a
        base in codes, the merged leaves are in floats and the others stay in codes.

        Args:
            variables: the frozen model.
            adapters: `{path: {name: array}}`.
            gates: constant gates for methods whose gates depend on the token
                (HydraLoRA): `"uniform"`, `[heads]` for all sites, or `{path: gates}`,
                where gates may carry the stacked axes in front.

        Raises:
            NotMergeable: a formula is not affine in x, a layer has no bias to take a
                constant, a weight is stored in integers, or an adapter is on what a
                module returns.
            ValueError: a non-finite adapter or result, or gates of wrong paths, shapes
                or values; the site is named.
        """
        for site in self._on("output"):
            raise NotMergeable(
                f"{site.path}: {type(site.method).__name__} edits what a module "
                "returns, which no weight can hold; run the model through apply"
            )
        leaves = self._planned(variables)
        arrays.check_adapters(self.sites, adapters, {})
        given = arrays.with_gates(self.sites, gates)
        values = arrays.replaced(self.sites, leaves, adapters, given)
        finite = _finite(
            {
                site.path: (adapters[site.path], [leaves[at]], [values[at]])
                for site in self.sites
                if site.method.replaces
                for at in [site.index]
            }
        )
        formulas = [site for site in self.sites if not site.method.replaces]
        values = merge_leaves(formulas, values, adapters, given, finite=finite)
        arrays.check_finite(finite)
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
        shapes = {s.path: arrays.heads(s) for s in arrays.gated(self.sites)}
        zeros = {path: jnp.zeros((*n[:-1], n[-1] + 1)) for path, n in shapes.items()}
        call = Call.of(self.apply_fn, self.structure, args, kwargs)

        def run(zeros: dict[str, jax.Array]) -> Any:
            given = {path: Given(total=total) for path, total in zeros.items()}
            return self.call(variables, adapters, call, given)

        return mean_gates(run, zeros)

    def penalty(self, adapters: Adapters) -> jax.Array:
        """Return the sum of the methods' own terms of the loss, a float32 scalar."""
        return jnp.asarray(
            sum(
                _penalty(site, arrays.of_site(site, adapters).params)
                for site in self.sites
                if type(site.method).penalty is not Method.penalty
            ),
            jnp.float32,
        )

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

    @property
    def trainable(self) -> dict[str, int]:
        """Trainable parameters by path; those that all sites share under `""`."""
        return cost.trainable(self.sites)

    def summary(self) -> str:
        """Return a table of the sites: shapes, parameters, FLOPs, fast or merged.

        Sites that differ only in a number stand in one row, with their sums.
        """
        return cost.summary(self.sites, self._parameters)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return cost.html(self.sites, self._parameters)

    @property
    def _parameters(self) -> int:
        known = zip(self.leaves.paths, self.leaves.avals)
        return sum(prod(aval.shape) for path, aval in known if path is not None)

    def _planned(self, variables: Any) -> list[Any]:
        return arrays.planned_leaves(self.leaves, self.structure, variables)


_finite = jax.jit(arrays.finite)


@by_form
def _penalty(site: Site, p: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum(site.stacked(site.method.penalty)(p))
