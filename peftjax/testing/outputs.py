"""What a method on the output of modules keeps beside what every method does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.affine import NotMergeable
from peftjax.testing.case import DENSE, Case, nnx_case, shapes
from peftjax.testing.invariants import error


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
    """An adapter that is not fresh changes what the model returns, in each layer."""
    y, gradients = case.adapted(case.perturbed)
    moved = error(y, case.frozen(case.variables))
    assert moved > 10 * case.bound, f"edits: the adapter changes nothing ({moved:.1e})"
    for path in (path for path in gradients if path.startswith("scanned")):
        leaves = gradients[path].values()
        sizes = [np.abs(leaf).reshape(len(leaf), -1).max(1) for leaf in leaves]
        assert np.all(np.max(sizes, 0) > 0), f"edits: {path}: gradients {sizes}"


def half_precision(case: Case) -> None:
    """On an NNX module in bfloat16 it computes what it does in float32."""
    half, whole = nnx_case(case.method, jnp.bfloat16), nnx_case(case.method)
    adapters = {path: case.perturbed[path] for path in shapes(half.peft)}
    found, expected = half.adapted(adapters)[0], whole.adapted(adapters)[0]
    off = error(found.astype(jnp.float32), expected)
    assert found.dtype == jnp.bfloat16, f"half_precision: found {found.dtype}"
    # the whole model is rounded, not the adapted layers alone
    assert off <= 4 * half.bound, f"half_precision: relative error {off:.2e}"
