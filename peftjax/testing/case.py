"""One method on one model, with everything that is compiled together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.arrays import with_gates
from peftjax.core.jaxpr import Call
from peftjax.core.method import Layer, Method
from peftjax.core.peft import Peft, adapt
from peftjax.core.site import Adapters
from peftjax.nnx import from_nnx
from peftjax.testing.model import VOCAB, WIDTH, Everything, NnxEverything

DENSE = r"(attention/\w+|remat/fc\d|scanned/fc\d|head)/kernel"
NO_BIAS = {"dense": "plain/kernel", "embedding": "untied/embedding"}
TIED = "embed/embedding"
CONV = "conv/kernel"


@dataclass(frozen=True)
class Case:
    """One method on one model, with everything that is compiled together.

    Attributes:
        method: what is checked.
        dtype: of the base.
        apply_fn: the model.
        variables: its variables.
        inputs: its arguments.
    """

    method: Method
    dtype: Any
    apply_fn: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]

    def adapt(self, *patterns: str) -> Peft:
        rules = dict.fromkeys(patterns, self.method)
        return adapt(self.apply_fn, self.variables, *self.inputs, rules=rules)

    @cached_property
    def affine(self) -> bool:
        """Whether the method merges without being given gates."""
        try:
            self._merge_alone(jnp.zeros(WIDTH))
        except NotMergeable:
            return False
        return True

    @cached_property
    def creates_bias(self) -> bool:
        """Whether the method adds a constant where a layer has no bias."""
        return self._merge_alone(None, gated=True)[1] is not None

    def _merge_alone(self, bias: Any, gated: bool = False) -> Any:
        kernel = jax.random.normal(jax.random.key(5), (WIDTH, WIDTH))
        p = self.method.init(
            jax.random.key(0), Layer(WIDTH, WIDTH, "dense", kernel, "layer")
        )
        gates = None
        if gated and self.method.gated:
            gates = jnp.ones(self.method.heads)  # pyright: ignore
        return merge_layer(self.method, p, kernel, bias, gates)

    def patterns(self, mergeable: bool) -> list[str]:
        """Return rules for all layers where the method is defined (and merges)."""
        kinds = self.method.kinds
        chosen = [DENSE] * ("dense" in kinds) + [CONV] * ("conv" in kinds)
        if not (mergeable and self.creates_bias):
            chosen += [NO_BIAS[kind] for kind in NO_BIAS if kind in kinds]
            chosen += [TIED] * ("embedding" in kinds and self.affine)
        return chosen

    @cached_property
    def peft(self) -> Peft:
        return self.adapt(*self.patterns(mergeable=True))

    @cached_property
    def fresh(self) -> Adapters:
        return jax.jit(self.peft.init)(jax.random.key(1))

    @cached_property
    def perturbed(self) -> Adapters:
        """Adapters with every trainable number moved off its start."""
        return jax.jit(lambda adapters: perturb(self.peft, adapters))(self.fresh)

    @cached_property
    def results(self) -> dict[str, Any]:
        """Outputs and gradients of every path, from one compilation."""
        return self.run(self.variables, self.fresh, self.perturbed)

    @cached_property
    def run(self) -> Callable[..., dict[str, Any]]:
        return jax.jit(self._run)

    def _run(self, variables: Any, fresh: Adapters, perturbed: Adapters) -> Any:
        peft, inputs = self.peft, self.inputs
        base = self.apply_fn(variables, *inputs)
        cotangent = jax.random.normal(jax.random.key(6), base.shape)
        trainable, frozen = peft.partition(perturbed)

        def adapted(adapters: Adapters) -> jax.Array:
            return peft.apply(variables, adapters, *inputs)

        def merged(adapters: Adapters) -> jax.Array:
            gates = None if self.affine else "uniform"
            return self.apply_fn(peft.merge(variables, adapters, gates), *inputs)

        def gated(adapters: Adapters) -> jax.Array:
            return self.with_gates(variables, adapters, "uniform")

        def both(run: Callable[..., jax.Array]) -> tuple[jax.Array, Adapters]:
            """Return the output, and the gradient of its product with a cotangent."""

            def loss(trainable: Adapters) -> tuple[jax.Array, jax.Array]:
                y = run(peft.combine(trainable, frozen))
                return jnp.sum(y * cotangent), y

            (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
            return y, gradient

        pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), fresh, perturbed)
        own = both(adapted)
        return {
            "base": base,
            "fresh": adapted(fresh),
            "perturbed": own,
            "gated": own if self.affine else both(gated),
            "merged": both(merged),
            "stacked": jax.vmap(adapted)(pair),
        }

    def with_gates(self, variables: Any, adapters: Adapters, gates: Any) -> jax.Array:
        """Run the adapted model with constant gates, as `merge` takes them."""
        call = Call.of(self.apply_fn, self.peft.structure, self.inputs, {})
        given = with_gates(self.peft.sites, gates)
        return self.peft.call(variables, adapters, call, given)

    @property
    def bound(self) -> float:
        """The relative error that rounding can explain.

        Each of the layers in a row rounds its output once (eps of the dtype), and sums
        as many float32 products as its longest reduction: errors add like random steps.
        """
        depth = sum(prod(site.stack) for site in self.peft.sites)
        longest = max(site.d_in for site in self.peft.sites)
        eps, eps32 = float(jnp.finfo(self.dtype).eps), float(jnp.finfo("float32").eps)
        return 4 * (eps * sqrt(depth) + eps32 * sqrt(depth * longest))


def linen_case(method: Method, dtype: Any = jnp.float32) -> Case:
    """Return a method on the Linen model."""
    return Case(method, dtype, *_linen(jnp.dtype(dtype)))


@cache
def _linen(dtype: Any) -> tuple[Callable[..., Any], Any, tuple[jax.Array, jax.Array]]:
    """Return the model's function, its variables and its arguments."""
    model, inputs = Everything(dtype), _inputs(dtype)
    variables = jax.jit(model.init)(jax.random.key(0), *inputs)
    return model.apply, _with_biases(variables), inputs


def nnx_case(method: Method) -> Case:
    """Return a method on the NNX model."""
    apply_fn, variables = from_nnx(nnx_model())
    inputs = _inputs(jnp.float32)
    return Case(method, jnp.float32, apply_fn, _with_biases(variables), inputs)


@nnx.jit
def nnx_model() -> NnxEverything:
    """Return the NNX model; compiled, for its layers would be made one by one."""
    return NnxEverything(nnx.Rngs(0))


def perturb(peft: Peft, adapters: Adapters, scale: float = 0.3) -> Adapters:
    """Return adapters with normal noise on every trainable number."""
    trainable, frozen = peft.partition(adapters)
    leaves, structure = jax.tree.flatten(trainable)
    # NumPy, for many small random functions take seconds to compile
    rng = np.random.default_rng(2)
    moved = [
        leaf + scale * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        for leaf in leaves
    ]
    return peft.combine(jax.tree.unflatten(structure, moved), frozen)


def _inputs(dtype: Any) -> tuple[jax.Array, jax.Array]:
    ids = jax.random.randint(jax.random.key(3), (2, 5), 0, VOCAB)
    return ids, jax.random.normal(jax.random.key(4), (2, 6, 6, 8), dtype)


def _with_biases(variables: Any) -> Any:
    """Give biases values, which start at zero and would hide mistakes."""

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if "bias" not in str(path[-1]):
            return leaf
        noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
        return leaf + jnp.asarray(0.5 * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, variables)
