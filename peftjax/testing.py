"""`check_method`: every invariant of a method, for ours and for a user's own.

One small model holds all kinds of layer: dense with and without bias, 3-D attention
kernels, a convolution, an embedding with a tied output, scanned and rematerialised
blocks. What can be compiled together is compiled once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from peftjax.core.adapt import Adapters, Peft, adapt
from peftjax.core.affine import NotMergeable, merge_layer
from peftjax.core.method import Layer, Method
from peftjax.core.nnx import from_nnx, to_nnx

_WIDTH, _HIDDEN, _VOCAB, _LAYERS = 16, 24, 32, 2


class _Block(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        h = nn.gelu(nn.Dense(_HIDDEN, **types, name="fc1")(x))
        return x + nn.Dense(_WIDTH, **types, name="fc2")(h), None


class Everything(nn.Module):
    """A Linen model with every kind of layer; `ids [B, T]`, `image [B, H, W, 8]`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        embed = nn.Embed(_VOCAB, _WIDTH, **types, name="embed")
        conv = nn.Conv(_WIDTH, (3, 3), strides=2, **types, name="conv")
        x = embed(ids) + conv(image).mean((1, 2))[:, None]
        x = x + nn.MultiHeadDotProductAttention(2, **types, name="attention")(x, x)
        x = x + nn.Dense(_WIDTH, use_bias=False, **types, name="plain")(x)
        x, _ = nn.remat(_Block)(self.dtype, name="remat")(x)
        stack = nn.scan(
            nn.remat(_Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=_LAYERS,
        )
        x, _ = stack(self.dtype, name="scanned")(x, None)
        x = nn.LayerNorm(**types, name="norm")(x)
        tied = embed.attend(x)
        table = nn.Embed(_VOCAB, _WIDTH, **types, name="untied")
        return tied + nn.Dense(_VOCAB, **types, name="head")(x + table(ids))


class NnxEverything(nnx.Module):
    """The NNX counterpart, with layers written one after the other."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(_VOCAB, _WIDTH, rngs=rngs)
        self.conv = nnx.Conv(8, _WIDTH, (3, 3), strides=2, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, _WIDTH, decode=False, rngs=rngs)
        self.plain = nnx.Linear(_WIDTH, _WIDTH, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(_WIDTH, _VOCAB, rngs=rngs)
        self.untied = nnx.Embed(_VOCAB, _WIDTH, rngs=rngs)

    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        x = self.embed(ids) + self.conv(image).mean((1, 2))[:, None]
        x = x + self.attention(x)
        logits = self.head(x + self.plain(x) + self.untied(ids))
        return logits + self.embed.attend(x)


_DENSE = r"(attention/\w+|remat/fc\d|scanned/fc\d|head)/kernel"
_NO_BIAS = {"dense": "plain/kernel", "embedding": "untied/embedding"}
_TIED = "embed/embedding"
_CONV = "conv/kernel"


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
            self._merge_alone(jnp.zeros(_WIDTH))
        except NotMergeable:
            return False
        return True

    @cached_property
    def creates_bias(self) -> bool:
        """Whether the method adds a constant where a layer has no bias."""
        return self._merge_alone(0.0, gated=True)[1] is not None

    def _merge_alone(self, bias: Any, gated: bool = False) -> Any:
        kernel = jax.random.normal(jax.random.key(5), (_WIDTH, _WIDTH))
        p = self.method.init(
            jax.random.key(0), Layer(_WIDTH, _WIDTH, "dense", kernel, "layer")
        )
        if gated and self.method.gated:
            p["gates"] = jnp.ones(self.method.heads)  # pyright: ignore
        return merge_layer(self.method, p, kernel, bias, "layer")

    def patterns(self, mergeable: bool) -> list[str]:
        """Return rules for all layers where the method is defined (and merges)."""
        kinds = self.method.kinds
        chosen = [_DENSE] * ("dense" in kinds) + [_CONV] * ("conv" in kinds)
        if not (mergeable and self.creates_bias):
            chosen += [_NO_BIAS[kind] for kind in _NO_BIAS if kind in kinds]
            chosen += [_TIED] * ("embedding" in kinds and self.affine)
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
            params = {s.path: peft._params(s, adapters, "uniform") for s in peft.sites}
            return adapted(params)

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


def check_method(method: Method) -> list[str]:
    """Check every invariant of a method on a model with every kind of layer.

    Args:
        method: with settings small enough for weights of 16 by 16 (rank at most 16);
            let alpha differ from the rank, lest a scale of 1 hides a mistake.

    Returns:
        The names of the invariants, all of which hold.

    Raises:
        AssertionError: one does not; the message says which, where and by how much.

    >>> from peftjax.methods.lora import LoRA
    >>> check_method(LoRA(rank=4, alpha=7.0))[:3]
    ['refusals', 'fast', 'counts']
    """
    case = linen_case(method)
    checks = (
        refusals,
        fast,
        counts,
        starts,
        merged,
        gradients,
        stacked,
        deterministic,
        saved,
        in_bfloat16,
        on_nnx,
    )
    for check in checks:
        check(case)
    return [check.__name__ for check in checks]


def linen_case(method: Method, dtype: Any = jnp.float32) -> Case:
    """Return a method on the Linen model."""
    model = Everything(dtype)
    inputs = _inputs(dtype)
    variables = model.init(jax.random.key(0), *inputs)
    return Case(method, dtype, model.apply, _with_biases(variables), inputs)


def nnx_case(method: Method) -> Case:
    """Return a method on the NNX model."""
    apply_fn, variables = from_nnx(NnxEverything(nnx.Rngs(0)))
    inputs = _inputs(jnp.float32)
    return Case(method, jnp.float32, apply_fn, _with_biases(variables), inputs)


def perturb(peft: Peft, adapters: Adapters, scale: float = 0.3) -> Adapters:
    """Return adapters with normal noise on every trainable number."""
    trainable, frozen = peft.partition(adapters)
    leaves, structure = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys)
    ]
    return peft.combine(jax.tree.unflatten(structure, moved), frozen)


def _inputs(dtype: Any) -> tuple[jax.Array, jax.Array]:
    ids = jax.random.randint(jax.random.key(3), (2, 5), 0, _VOCAB)
    return ids, jax.random.normal(jax.random.key(4), (2, 6, 6, 8), dtype)


def _with_biases(variables: Any) -> Any:
    """Give biases values, which start at zero and would hide mistakes."""

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if "bias" not in str(path[-1]):
            return leaf
        noise = jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
        return leaf + 0.5 * noise

    return jax.tree_util.tree_map_with_path(fill, variables)


def error(found: Any, expected: Any) -> float:
    """Return `‖found − expected‖ / ‖expected‖`."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))


def _close(what: str, found: Any, expected: Any, bound: float) -> None:
    off = error(found, expected)
    assert off <= bound, (
        f"{what}: relative error {off:.2e}, at most {bound:.2e} expected"
    )


def _raises(what: str, kind: type[Exception], run: Callable[[], Any]) -> None:
    try:
        run()
    except kind:
        return
    raise AssertionError(f"{what}: expected {kind.__name__}")


def refusals(case: Case) -> None:
    """What a method refuses by design is refused with an error, not ignored."""
    places = {"dense": _DENSE, "conv": _CONV, "embedding": _NO_BIAS["embedding"]}
    for kind, pattern in places.items():
        if kind not in case.method.kinds:
            _raises(f"{kind} layers", ValueError, lambda p=pattern: case.adapt(p))
    if not case.affine:
        merge = lambda: case.peft.merge(case.variables, case.fresh)  # noqa: E731
        _raises("merging without gates", NotMergeable, merge)
        if "embedding" in case.method.kinds:
            _raises("a tied output", ValueError, lambda: case.adapt(_TIED))
    if case.creates_bias:
        peft = case.adapt(_NO_BIAS["dense"])
        adapters = jax.jit(lambda key: perturb(peft, peft.init(key)))(jax.random.key(1))
        gates = None if case.affine else "uniform"
        _raises(
            "merging a constant into a layer without a bias",
            NotMergeable,
            lambda: peft.merge(case.variables, adapters, gates),
        )


def fast(case: Case) -> None:
    """No site forms a merged weight, those that cannot be merged included."""
    for peft in (case.peft, case.adapt(*case.patterns(mergeable=False))):
        slow = [f"{site.path}: {site.reason}" for site in peft.sites if not site.fast]
        assert not slow, f"fast: these sites fall back to merging: {slow}"


def counts(case: Case) -> None:
    """Trainable parameters equal the closed form; adapters are float32."""
    trainable, _ = case.peft.partition(case.fresh)
    for site in case.peft.sites:
        size = sum(leaf.size for leaf in trainable.get(site.path, {}).values())
        closed = site.method.count(site.layer())
        assert size == site.trainable, f"counts: {site.path}: {size}, {site.trainable}"
        if closed is not None:
            layers = prod(site.stack)
            assert size == closed * layers, (
                f"counts: {site.path}: {size} trainable parameters, the closed form "
                f"gives {closed * layers}"
            )
    wrong = {x.dtype for x in jax.tree.leaves(trainable)} - {jnp.dtype("float32")}
    assert not wrong, f"counts: adapter parameters should be float32, found {wrong}"


def starts(case: Case) -> None:
    """A fresh adapter leaves the model as `at_init` declares."""
    eps = float(jnp.finfo(case.dtype).eps)
    bounds = {"exact": 8 * eps, "rounding": case.bound}
    if case.method.at_init in bounds:
        bound = bounds[case.method.at_init]
        _close("starts", case.results["fresh"], case.results["base"], bound)


def merged(case: Case) -> None:
    """The merged model computes what the adapted one does, and not the base."""
    results = case.results
    found, _ = results["merged"]
    _close("merged", found, results["gated"][0], case.bound)
    moved = error(found, results["base"])
    assert moved > 10 * case.bound, f"merged: the adapter changes nothing ({moved:.1e})"


def gradients(case: Case) -> None:
    """Gradients agree between the two paths; every trainable leaf receives one."""
    _, through_gates = case.results["gated"]
    _, through_merge = case.results["merged"]
    for path, p in through_merge.items():
        expected = np.concatenate([np.ravel(leaf) for leaf in p.values()])
        leaves = through_gates[path].values()
        found = np.concatenate([np.ravel(leaf) for leaf in leaves])
        _close(f"gradients: {path}", found, expected, 4 * case.bound)
    for path, p in case.results["perturbed"][1].items():
        sizes = {name: float(np.abs(leaf).max()) for name, leaf in p.items()}
        assert np.isfinite(list(sizes.values())).all(), f"gradients: {path}: {sizes}"
        # a frozen leaf may switch others off, as GLoRA's structure does
        reached = any if case.method.frozen else all
        assert reached(sizes.values()), f"gradients: {path}: none for some of {sizes}"


def stacked(case: Case) -> None:
    """Vmap over a stack of adapters equals one run for each."""
    results = case.results
    alone = results["fresh"], results["perturbed"][0]
    for found, expected in zip(results["stacked"], alone):
        _close("stacked", found, expected, case.bound)


def deterministic(case: Case) -> None:
    """Without a key nothing is random; with one, dropout is."""
    arguments = case.variables, case.fresh, case.perturbed
    first, again = case.results["perturbed"][0], case.run(*arguments)["perturbed"][0]
    assert np.array_equal(first, again), "deterministic: two runs without a key differ"
    if getattr(case.method, "dropout", 0.0) > 0:
        run = jax.jit(case.peft.apply)
        key = jax.random.key(7)
        random = run(case.variables, case.perturbed, *case.inputs, adapter_key=key)
        moved = error(random, first)
        assert moved > case.bound, "deterministic: dropout does nothing with a key"


def saved(case: Case) -> None:
    """A file gives back the same adapters, bit for bit."""
    from peftjax.hub.files import load, save

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), case.peft, case.perturbed, case.variables)
        loaded = load(Path(folder), case.peft, case.variables)
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), loaded, case.perturbed
    )
    assert all(jax.tree.leaves(same)), f"saved: not equal after loading: {same}"


def in_bfloat16(case: Case) -> None:
    """With a bfloat16 base the merged model still agrees within bfloat16 rounding."""
    half = linen_case(case.method, jnp.bfloat16)
    _agree("in_bfloat16", half)


def on_nnx(case: Case) -> None:
    """On an NNX module, adapted equals merged, put back into the module."""
    other = nnx_case(case.method)
    _agree("on_nnx", other)
    gates = None if other.affine else "uniform"
    variables = other.peft.merge(other.variables, other.perturbed, gates)
    module = to_nnx(NnxEverything(nnx.Rngs(0)), variables)
    expected = other.apply_fn(variables, *other.inputs)
    _close("on_nnx: module", module(*other.inputs), expected, other.bound)  # pyright: ignore


def _agree(what: str, case: Case) -> None:
    gates = None if case.affine else "uniform"

    def run(variables: Any, adapters: Adapters) -> tuple[jax.Array, jax.Array]:
        params = adapters
        if not case.affine:
            params = {
                site.path: case.peft._params(site, adapters, gates)
                for site in case.peft.sites
            }
        merged = case.peft.merge(variables, adapters, gates)
        return (
            case.peft.apply(variables, params, *case.inputs),
            case.apply_fn(merged, *case.inputs),
        )

    found, expected = jax.jit(run)(case.variables, case.perturbed)
    _close(what, found, expected, case.bound)
