"""CorDA: low-rank factors of the weight, weighed by what its layer reads.

Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models
for Task-Aware Parameter-Efficient Fine-tuning", arXiv 2406.05223.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from peftjax.core.arrays import planned_leaves
from peftjax.core.axes import arrange
from peftjax.core.coded import decoded
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters
from peftjax.methods.offset import OffsetLoRA
from peftjax.starts.moments import HIGHEST, Batch, dense_sites, moments

DAMPING, WRONG = 0.01, 0.05  # of the inverse: what is added, and its largest error
DOUBLINGS = 20


def corda(
    peft: Peft,
    variables: Any,
    batches: Iterable[Batch],
    *,
    mode: Literal["instruction", "knowledge"] = "instruction",
) -> Adapters:
    """Return adapters whose factors are those of `Kᵀ C`, C the covariance of the input.

    `Kᵀ C = U S Vᵀ`; `A_0 = C⁻¹ V_r (S_r / s)^½` and `B_0 = (S_r / s)^½ U_rᵀ`, so that
    `s A_0 B_0` is a part of K (Eqs. 3 to 6 of the paper). With `"instruction"` the
    r largest singular values, for what the batches are of; with `"knowledge"` the r
    smallest, so that what they are of is kept. K stays as it is: the sites are of
    `PiSSA` or `OLoRA`, which subtract the frozen factors, and have other ones here.

    As in the released code inputs are divided by their largest entry, C is the mean
    over the batches, and a hundredth of its mean diagonal is added to it, twice as much
    until its inverse is one.

    Args:
        peft: a plan with `PiSSA` or `OLoRA` on dense layers.
        variables: the model's.
        batches: arguments of the model after its variables, tuples or mappings.
        mode: which part is adapted.

    Returns:
        `{path: {name: array}}` of these sites; the others' come from `peft.init`.

    Raises:
        ValueError: no batches, no such layers, another mode, or a covariance that
            cannot be inverted.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> from peftjax.methods.pissa import PiSSA
    >>> x = jax.random.normal(jax.random.key(1), (8, 3))
    >>> model = nn.Dense(3)
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": PiSSA(3, alpha=3.0)})
    >>> p = corda(peft, variables, [(x,)])["kernel"]
    >>> bool(jnp.allclose(p["a0"] @ p["b0"], variables["params"]["kernel"], atol=1e-5))
    True
    """
    if mode not in ("instruction", "knowledge"):
        raise ValueError(f"corda: mode={mode!r}: expected 'instruction' or 'knowledge'")
    sites = dense_sites(peft, OffsetLoRA, "corda")
    totals, count = moments(peft, sites, variables, batches, by_largest=True)
    leaves = planned_leaves(peft.leaves, peft.structure, variables)
    adapters: Adapters = {}
    for site, method in sites:
        kernel = arrange(
            decoded(leaves[site.index]).astype(jnp.float32), site.stored, site.groups
        )
        covariance = totals[site.path][..., :-1, :-1] / count
        fixed = site.stacked(_invertible)(covariance)
        if not bool(jnp.all(fixed[1])):
            raise ValueError(
                f"{site.path}: the covariance of its input has no inverse; give more "
                "data"
            )
        rank, scale = method.rank, method.scale
        split = partial(_factors, rank=rank, scale=scale, smallest=mode == "knowledge")
        a, b = site.stacked(split)(kernel, fixed[0])
        adapters[site.path] = {"a": a, "b": b, "a0": a, "b0": b}
    return adapters


@jax.jit
def _invertible(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the covariance with enough on its diagonal, and whether it is enough."""
    one = jnp.eye(len(covariance))

    def damped(damping: Any) -> jax.Array:
        return covariance + damping * jnp.mean(jnp.diag(covariance)) * one

    def wrong(damping: Any) -> jax.Array:
        found = damped(damping)
        product = jnp.matmul(found, jnp.linalg.inv(found), precision=HIGHEST)
        return ~(jnp.linalg.norm(product - one) < WRONG)

    def again(state: Any) -> Any:
        return wrong(state[0]) & (state[1] < DOUBLINGS)

    def double(state: Any) -> Any:
        return 2 * state[0], state[1] + 1

    damping, _ = jax.lax.while_loop(again, double, (jnp.float32(DAMPING), 0))
    return damped(damping), ~wrong(damping)


@partial(jax.jit, static_argnames=("rank", "scale", "smallest"))
def _factors(
    kernel: jax.Array, covariance: jax.Array, rank: int, scale: float, smallest: bool
) -> tuple[jax.Array, jax.Array]:
    u, s, vt = jnp.linalg.svd(
        jnp.matmul(kernel.T, covariance, precision=HIGHEST), full_matrices=False
    )
    v = jnp.linalg.solve(covariance, vt.T)  # C is symmetric
    part = slice(-rank, None) if smallest else slice(rank)
    root = jnp.sqrt(s[part] / scale)
    return v[:, part] * root, root[:, None] * u[:, part].T
