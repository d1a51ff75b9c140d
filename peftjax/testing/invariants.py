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
from peftjax.core.gates import foreign_gates
from peftjax.core.jaxpr import JIT, REMAT, called, walk
from peftjax.core.method import Layer, Method
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters
from peftjax.nnx import to_nnx
from peftjax.testing.case import (
    CONV,
    DENSE,
    NO_BIAS,
    TIED,
    Case,
    compiled,
    nnx_case,
    shapes,
)
from peftjax.testing.model import HIDDEN, LAYERS, WIDTH, nnx_model


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


def _abstractly(run: Callable[..., Any], case: Case, peft: Peft, *rest: Any) -> Any:
    """Trace a function of variables and adapters; nothing is computed."""
    arguments = case.variables, shapes(peft)
    return jax.eval_shape(lambda v, a: run(v, a, *rest), *arguments)


def refusals(case: Case) -> None:
    """What a method refuses by design is refused with an error, not ignored."""
    places = {"dense": DENSE, "conv": CONV, "embedding": NO_BIAS["embedding"]}
    for kind, pattern in places.items():
        if kind not in case.method.kinds:
            _raises(f"{kind} layers", ValueError, lambda p=pattern: case.adapt(p))
    if not case.affine:
        merge = lambda: _abstractly(case.peft.merge, case, case.peft)  # noqa: E731
        _raises("merging without gates", NotMergeable, merge)
        if "embedding" in case.method.kinds:
            _raises("a tied output", ValueError, lambda: case.adapt(TIED))
    if case.creates_bias:
        peft = case.adapt(NO_BIAS["dense"])
        _raises(
            "merging a constant into a layer without a bias",
            NotMergeable,
            lambda: _abstractly(peft.merge, case, peft, case.gates),
        )


def names(case: Case) -> None:
    """What a method says of its arrays by name are arrays that `init` makes."""
    layer = Layer(WIDTH, HIDDEN, "dense", jnp.zeros((WIDTH, HIDDEN)), "layer")
    made = set(jax.eval_shape(lambda: case.method.init(jax.random.key(0), layer)))
    for kind in ("frozen", "float32", "shared"):
        unknown = sorted(set(getattr(case.method, kind)) - made)
        assert not unknown, f"names: {kind} names {unknown}, init makes {sorted(made)}"


def fast(case: Case) -> None:
    """No site forms a merged weight, those that cannot be merged included.

    Nor does the formula, which would round small updates away in a narrow type, but
    for a method that says so (`forms_kernel`).
    """
    plans, every = [case.peft], case.patterns(mergeable=False)
    if every != case.patterns(mergeable=True):
        plans.append(case.adapt(*every))
    for peft in plans:
        slow = [f"{site.path}: {site.reason}" for site in peft.sites if not site.fast]
        assert not slow, f"fast: these sites fall back to merging: {slow}"
    if not case.method.forms_kernel:
        formed = _formed(case.method)
        assert not formed, (
            f"fast: `{formed}` of the formula forms an array of the kernel's size from "
            "adapters; multiply x by it in parts, or let `forms_kernel` be True"
        )


def _formed(method: Method) -> str | None:
    """Return the primitive that makes a kernel of adapters in a formula, if any."""
    shape = WIDTH, HIDDEN
    kernel = jax.ShapeDtypeStruct(shape, jnp.float32)
    layer = lambda kernel: Layer(*shape, "dense", kernel, "layer")  # noqa: E731
    init = lambda kernel: method.init(jax.random.key(0), layer(kernel))  # noqa: E731
    p = jax.eval_shape(init, kernel)
    x = jax.ShapeDtypeStruct((LAYERS, WIDTH), jnp.float32)
    gates = foreign_gates(method)
    formula = lambda p, x, kernel: method.formula(p, x, kernel, 0.0, **gates)  # noqa: E731
    jaxpr = jax.make_jaxpr(formula)(p, x, kernel)
    found: list[str] = []

    def mark(eqn: Any, own: list[Any]) -> list[bool]:
        made = any(value is True for value in own)
        if eqn.primitive.name in (*JIT, *REMAT):
            return walk(called(eqn), own, {}, mark, mark)
        if made and any(var.aval.shape == shape for var in eqn.outvars):
            found.append(eqn.primitive.name)
        return [made] * len(eqn.outvars)

    walk(jaxpr, [*[True] * len(p), False, False], {}, mark, mark)
    return found[0] if found else None


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
        fresh, base = case.adapted(case.fresh)[0], case.frozen(case.variables)
        _close("starts", fresh, base, bound)


def merged(case: Case) -> None:
    """The merged model computes what the adapted one does, and not the base."""
    found, _ = case.merged(case.perturbed)
    _close("merged", found, case.gated(case.perturbed)[0], case.bound)
    moved = error(found, case.frozen(case.variables))
    assert moved > 10 * case.bound, f"merged: the adapter changes nothing ({moved:.1e})"


def gradients(case: Case) -> None:
    """Gradients agree between the two paths; every trainable leaf receives one."""
    _, through_gates = case.gated(case.perturbed)
    _, through_merge = case.merged(case.perturbed)
    for path, p in through_merge.items():
        expected = np.concatenate([np.ravel(leaf) for leaf in p.values()])
        leaves = through_gates[path].values()
        found = np.concatenate([np.ravel(leaf) for leaf in leaves])
        # a scalar's gradient is a sum over the whole weight, most of which cancels
        _close(f"gradients: {path}", found, expected, 16 * case.bound)
    reached(case)


def reached(case: Case) -> None:
    """Every trainable leaf receives a finite gradient."""
    for path, p in case.adapted(case.perturbed)[1].items():
        sizes = {name: float(np.abs(leaf).max()) for name, leaf in p.items()}
        assert np.isfinite(list(sizes.values())).all(), f"gradients: {path}: {sizes}"
        # a frozen leaf may switch others off, as GLoRA's structure does
        some = any if case.method.frozen else all
        assert some(sizes.values()), f"gradients: {path}: none for some of {sizes}"


def stacked(case: Case) -> None:
    """Vmap over a stack of adapters equals one run for each."""
    both = case.fresh, case.perturbed
    for found, adapters in zip(case.stacked(*both), both):
        _close("stacked", found, case.adapted(adapters)[0], case.bound)


def deterministic(case: Case) -> None:
    """Without a key nothing is random; with one, dropout is."""
    first, again = (case.adapted(case.perturbed)[0] for _ in range(2))
    assert np.array_equal(first, again), "deterministic: two runs without a key differ"
    if np.any(np.greater(getattr(case.method, "dropout", 0.0), 0.0)):
        run = compiled(case.peft.apply)
        key = jax.random.key(7)
        random = run(case.variables, case.perturbed, *case.inputs, adapter_key=key)
        moved = error(random, first)
        assert moved > case.bound, "deterministic: dropout does nothing with a key"
        key = jax.random.key(8)
        other = run(case.variables, case.perturbed, *case.inputs, adapter_key=key)
        moved = error(random, other)
        assert moved > case.bound, "deterministic: dropout does not follow its key"


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
    """On an NNX module in bfloat16, adapted equals merged, put back into the module.

    A convolution means the same in another layout of its kernel.
    """
    half = nnx_case(case.method, jnp.bfloat16)
    # the layers of the Linen model, as far as they are here
    adapters = {path: case.perturbed[path] for path in shapes(half.peft)}
    laid = not case.method.replaces and "conv" in case.method.kinds
    also = half.in_layouts if laid else None
    merged, expected, layouts = _agree("in_bfloat16", half, adapters, also)
    if layouts:
        one, other = layouts
        _close("in_bfloat16: another layout of a kernel", other, one, half.bound)
    module = to_nnx(nnx_model(jnp.dtype(half.dtype))[0], merged)
    _close("in_bfloat16: module", _call(module, *half.inputs), expected, half.bound)


@nnx.jit
def _call(module: Any, *inputs: Any) -> jax.Array:
    return module(*inputs)


def _agree(
    what: str, case: Case, adapters: Adapters, also: Callable[..., Any] | None = None
) -> tuple[Any, jax.Array, Any]:
    """Compare the two paths; return the merged variables and their output.

    What `also` makes of variables and adapters is made by the same program.
    """

    def run(variables: Any, adapters: Adapters) -> tuple[Any, jax.Array, Any]:
        merged = case.peft.merge(variables, adapters, case.gates)
        output = case.output(variables, adapters, case.gates)
        return merged, output, also and also(variables, adapters)

    merged, found, rest = compiled(run)(case.variables, adapters)
    expected = case.frozen(merged)
    _close(what, found, expected, case.bound)
    return merged, expected, rest
