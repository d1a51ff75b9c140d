"""One method on one model, and the programs that run it.

Every number is made by NumPy or inside one of a few compiled programs: what takes the
time of a check is compiling. The model and its pullback are compiled once for all
methods, a method's formula once for each way it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.arrays import with_gates
from peftjax.core.jaxpr import Call
from peftjax.core.method import Layer, Method, OutputMethod
from peftjax.core.peft import Peft, adapt
from peftjax.core.site import Adapters
from peftjax.testing.model import WIDTH, linen_model, nnx_model

DENSE = r"(attention/(query|out)|remat/fc1|scanned/fc2|head)/kernel"
NO_BIAS = {"dense": "plain/kernel", "embedding": "untied/embedding"}
TIED = "embed/embedding"
CONV = "conv/kernel"
PREFIX = "prompts:output"
OUTPUT = r"(attention|plain|remat|scanned|scanned/fc2):output"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function; on a CPU without optimisation, in a third of the time."""
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    return jax.jit(function, compiler_options=options)


@cache
def model_alone(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the frozen model as a program of `(variables, *inputs)`."""
    return compiled(apply_fn)


@cache
def model_backwards(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the program of the model's output and of its variables' cotangent."""

    def run(variables: Any, cotangent: Any, *inputs: Any) -> tuple[Any, Any]:
        y, pull = jax.vjp(lambda variables: apply_fn(variables, *inputs), variables)
        return y, pull(cotangent)[0]

    return compiled(run)


@dataclass(frozen=True)
class Case:
    """One method on one model.

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
            self._merge_alone(biased=True, gated=False)
        except NotMergeable:
            return False
        return True

    @cached_property
    def creates_bias(self) -> bool:
        """Whether the method adds a constant where a layer has no bias."""
        return self._merge_alone(biased=False, gated=True)[1] is not None

    def _merge_alone(self, biased: bool, gated: bool) -> Any:
        """Return the shapes of one merged layer; nothing is computed."""

        def merge() -> Any:
            kernel, bias = jnp.zeros((WIDTH, WIDTH)), jnp.zeros(WIDTH)
            layer = Layer(WIDTH, WIDTH, "dense", kernel, "layer")
            p, gates = self.method.init(jax.random.key(0), layer), None
            if gated and self.method.gated:
                gates = jnp.ones(self.method.heads)  # pyright: ignore
            return merge_layer(self.method, p, kernel, bias if biased else None, gates)

        return jax.eval_shape(merge)

    def patterns(self, mergeable: bool) -> list[str]:
        """Return rules for all layers where the method is defined (and merges)."""
        if isinstance(self.method, OutputMethod):
            return [OUTPUT if "output" in self.method.kinds else PREFIX]
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
        # Of all kinds of key this one compiles fastest.
        return compiled(self.peft.init)(jax.random.key(1, impl="unsafe_rbg"))

    @cached_property
    def perturbed(self) -> Adapters:
        """Adapters with every trainable number moved off its start."""
        return jax.device_put(perturb(self.peft, jax.device_get(self.fresh)))

    @cached_property
    def cotangent(self) -> np.ndarray:
        y = jax.eval_shape(self.apply_fn, self.variables, *self.inputs)
        return np.random.default_rng(6).normal(size=y.shape).astype(y.dtype)

    @property
    def gates(self) -> str | None:
        """The constant gates without which the method does not merge."""
        return None if self.affine else "uniform"

    def frozen(self, variables: Any) -> jax.Array:
        """Return the model's own output."""
        return model_alone(self.apply_fn)(variables, *self.inputs)

    def adapted(self, adapters: Adapters) -> tuple[jax.Array, Adapters]:
        """Return the adapted output, and the gradient of its product with `cotangent`.

        The gradient is that of the trainable arrays.
        """
        parts = self.peft.partition(adapters)
        return self._adapted(self.variables, *parts, self.cotangent)

    def gated(self, adapters: Adapters) -> tuple[jax.Array, Adapters]:
        """Return the same with the gates that `merge` is given."""
        parts = self.peft.partition(adapters)
        return self._gated(self.variables, *parts, self.cotangent)

    def merged(self, adapters: Adapters) -> tuple[jax.Array, Adapters]:
        """Return the same through merged weights."""
        parts = self.peft.partition(adapters)
        nothing = jax.tree.map(np.zeros_like, jax.device_get(self.variables))
        merged, _ = self._merged(self.variables, *parts, nothing)
        run = model_backwards(self.apply_fn)
        y, cotangent = run(merged, self.cotangent, *self.inputs)
        return y, self._merged(self.variables, *parts, cotangent)[1]

    def stacked(self, *adapters: Adapters) -> jax.Array:
        """Return the outputs `[N, ...]` of a stack of adapters."""
        stack = jax.tree.map(lambda *leaves: np.stack(leaves), *adapters)
        run = compiled(jax.vmap(self.output, in_axes=(None, 0)))
        return run(self.variables, stack)

    def in_layouts(self, variables: Any, adapters: Adapters) -> list[jax.Array]:
        """Return the adapted convolution with its kernel stored in two orders."""
        kernel, (_, image) = variables["params"]["conv"]["kernel"], self.inputs
        own = {"k": adapters[CONV]}
        own |= {"": adapters[""]} if self.method.shared else {}
        outputs: list[jax.Array] = []
        for layout in ("HWIO", "OIHW"):
            dims = ("NHWC", layout, "NHWC")
            convolve = partial(_convolve, dims)
            v = {"k": jnp.transpose(kernel, ["HWIO".index(axis) for axis in layout])}
            peft = adapt(convolve, v, image, rules={"k": self.method})
            call = Call.of(convolve, peft.structure, (image,), {})
            outputs.append(peft.call(v, own, call, with_gates(peft.sites, self.gates)))
        return outputs

    def output(self, variables: Any, adapters: Adapters, gates: Any = None) -> Any:
        """Run the adapted model, with constant gates where they are given.

        The model stops the gradient of its own weights: adapters train all the same.
        """
        call = Call.of(_stopped(self.apply_fn), self.peft.structure, self.inputs, {})
        given = with_gates(self.peft.sites, gates)
        return self.peft.call(variables, adapters, call, given)

    @cached_property
    def _adapted(self) -> Callable[..., Any]:
        return self._backwards(None)

    @cached_property
    def _gated(self) -> Callable[..., Any]:
        return self._adapted if self.affine else self._backwards(self.gates)

    def _backwards(self, gates: str | None) -> Callable[..., Any]:
        def run(variables: Any, trainable: Any, frozen: Any, cotangent: Any) -> Any:
            def output(trainable: Any) -> jax.Array:
                adapters = self.peft.combine(trainable, frozen)
                return self.output(variables, adapters, gates)

            y, pull = jax.vjp(output, trainable)
            return y, pull(cotangent)[0]

        return compiled(run)

    @cached_property
    def _merged(self) -> Callable[..., Any]:
        def run(variables: Any, trainable: Any, frozen: Any, cotangent: Any) -> Any:
            def merge(trainable: Any) -> Any:
                adapters = self.peft.combine(trainable, frozen)
                return self.peft.merge(variables, adapters, self.gates)

            merged, pull = jax.vjp(merge, trainable)
            return merged, pull(cotangent)[0]

        return compiled(run)

    @property
    def bound(self) -> float:
        """The relative error that rounding can explain.

        Each of the layers in a row rounds its output once (eps of the dtype), and sums
        as many float32 products as its longest reduction: errors add like random steps.
        """
        depth = sum(prod(site.stack) for site in self.peft.sites)
        longest = max(site.d_in or site.d_out for site in self.peft.sites)
        eps, eps32 = float(jnp.finfo(self.dtype).eps), float(jnp.finfo("float32").eps)
        return 4 * (eps * sqrt(depth) + eps32 * sqrt(depth * longest))


@cache
def _stopped(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda variables, *rest: apply_fn(jax.lax.stop_gradient(variables), *rest)


def _convolve(dims: Any, v: Any, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, v["k"], (1, 1), "SAME", dimension_numbers=dims
    )


def linen_case(method: Method) -> Case:
    """Return a method on the Linen model."""
    return Case(method, jnp.float32, *linen_model())


def nnx_case(method: Method, dtype: Any = jnp.float32) -> Case:
    """Return a method on the NNX model."""
    return Case(method, dtype, *nnx_model(jnp.dtype(dtype))[1:])


def shapes(peft: Peft) -> Adapters:
    """Return the shapes of a plan's adapters; nothing is computed."""
    return jax.eval_shape(lambda: peft.init(jax.random.key(0)))


def perturb(
    peft: Peft, adapters: Adapters, scale: float = 0.3, seed: int = 2
) -> Adapters:
    """Return adapters with normal noise on every trainable number."""
    trainable, frozen = peft.partition(adapters)
    rng = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:
        return leaf + (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return peft.combine(jax.tree.map(moved, trainable), frozen)
