"""What a method on the output of modules keeps beside what every method does."""

from __future__ import annotations

from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.affine import NotMergeable
from peftjax.core.jaxpr import JIT, REMAT, called, walk
from peftjax.testing.case import DENSE, Case, nnx_case, perturb, shapes
from peftjax.testing.invariants import error

_DRAWS = 4


def never_merges(case: Case) -> None:
    """It refuses to merge, and to be put on a weight."""
    fresh = shapes(case.peft)
    for kind, run in (
        (NotMergeable, lambda: jax.eval_shape(case.peft.merge, case.variables, fresh)),
        (ValueError, lambda: case.adapt(DENSE)),
    ):
        try:
            run()
        except kind:
            continue
        raise AssertionError(f"never_merges: expected {kind.__name__}")


def edits(case: Case) -> None:
    """An adapter that is not fresh changes what the model returns, in each layer.

    Each leaf of each layer has a gradient at one of some adapters: at a single one, an
    activation may be dead.
    """
    y, _ = case.adapted(case.perturbed)
    moved = error(y, case.frozen(case.variables))
    assert moved > 10 * case.bound, f"edits: the adapter changes nothing ({moved:.1e})"
    stacks = {site.path: len(site.stack) for site in case.peft.sites}
    fresh = jax.device_get(case.fresh)
    draws = [perturb(case.peft, fresh, seed=seed) for seed in range(_DRAWS)]
    found = [case.adapted(adapters)[1] for adapters in draws]
    for path, axes in stacks.items():
        for name in found[0][path]:
            leaves = np.stack([np.abs(one[path][name]) for one in found])
            inner = tuple(range(1 + axes, leaves.ndim))
            sizes = leaves.max(axis=(0, *inner))
            assert np.all(sizes > 0), f"edits: {path}: gradients of {name}: {sizes}"


def half_precision(case: Case) -> None:
    """On an NNX module in bfloat16 it computes what it does in float32."""
    half, whole = nnx_case(case.method, jnp.bfloat16), nnx_case(case.method)
    adapters = {path: case.perturbed[path] for path in shapes(half.peft)}
    found, expected = half.adapted(adapters)[0], whole.adapted(adapters)[0]
    off = error(found.astype(jnp.float32), expected)
    assert found.dtype == jnp.bfloat16, f"half_precision: found {found.dtype}"
    # each operation rounds its result by half an eps; errors add like random steps
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    bound = eps * sqrt(_roundings(half))
    assert off <= bound, f"half_precision: relative error {off:.2e}, bound {bound:.2e}"


def _roundings(case: Case) -> int:
    """Count the operations of the adapted model that round to its dtype."""
    adapters, total = shapes(case.peft), 0

    def count(eqn: Any, _: list[Any]) -> list[Any]:
        nonlocal total
        if eqn.primitive.name in (*JIT, *REMAT):
            return walk(called(eqn), [None] * len(eqn.invars), {}, count, count)
        total += any(var.aval.dtype == case.dtype for var in eqn.outvars)
        return [None] * len(eqn.outvars)

    jaxpr = jax.make_jaxpr(case.output)(case.variables, adapters)
    walk(jaxpr, [None] * len(jaxpr.in_avals), {}, count, count)
    return total
