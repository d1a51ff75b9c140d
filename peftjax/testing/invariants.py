"""The invariants that a method keeps; each raises AssertionError where it does not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from peftjax.core.affine import NotMergeable
from peftjax.core.site import Adapters
from peftjax.nnx import to_nnx
from peftjax.testing.case import (
    CONV,
    DENSE,
    NO_BIAS,
    TIED,
    Case,
    linen_case,
    nnx_case,
    nnx_model,
    perturb,
)


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
    places = {"dense": DENSE, "conv": CONV, "embedding": NO_BIAS["embedding"]}
    for kind, pattern in places.items():
        if kind not in case.method.kinds:
            _raises(f"{kind} layers", ValueError, lambda p=pattern: case.adapt(p))
    if not case.affine:
        merge = lambda: case.peft.merge(case.variables, case.fresh)  # noqa: E731
        _raises("merging without gates", NotMergeable, merge)
        if "embedding" in case.method.kinds:
            _raises("a tied output", ValueError, lambda: case.adapt(TIED))
    if case.creates_bias:
        peft = case.adapt(NO_BIAS["dense"])
        adapters = jax.jit(lambda key: perturb(peft, peft.init(key)))(jax.random.key(1))
        gates = None if case.affine else "uniform"
        _raises(
            "merging a constant into a layer without a bias",
            NotMergeable,
            lambda: peft.merge(case.variables, adapters, gates),
        )


def fast(case: Case) -> None:
    """No site forms a merged weight, those that cannot be merged included."""
    plans, every = [case.peft], case.patterns(mergeable=False)
    if every != case.patterns(mergeable=True):
        plans.append(case.adapt(*every))
    for peft in plans:
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
        # a scalar's gradient is a sum over the whole weight, most of which cancels
        _close(f"gradients: {path}", found, expected, 16 * case.bound)
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
    if np.any(np.greater(getattr(case.method, "dropout", 0.0), 0.0)):
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
    _agree("in_bfloat16", half, case.perturbed)


def on_nnx(case: Case) -> None:
    """On an NNX module, adapted equals merged, put back into the module."""
    other = nnx_case(case.method)
    merged, expected = _agree("on_nnx", other, other.perturbed)
    module = to_nnx(nnx_model(), merged)
    run = nnx.jit(lambda module, *inputs: module(*inputs))
    _close("on_nnx: module", run(module, *other.inputs), expected, other.bound)


def _agree(what: str, case: Case, adapters: Adapters) -> tuple[Any, jax.Array]:
    """Compare the two paths; return the merged variables and their output."""
    gates = None if case.affine else "uniform"

    def run(variables: Any, adapters: Adapters) -> tuple[jax.Array, Any, jax.Array]:
        merged = case.peft.merge(variables, adapters, gates)
        adapted = case.with_gates(variables, adapters, gates)
        return adapted, merged, case.apply_fn(merged, *case.inputs)

    found, merged, expected = jax.jit(run)(case.variables, adapters)
    _close(what, found, expected, case.bound)
    return merged, expected
