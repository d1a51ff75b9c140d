"""Rules that combine LoRA modules of one layer into one LoRA.

`cat`, `linear`, `svd`, `ties` and `magnitude_prune` are those of the torch library's
`add_weighted_adapter` (ties is from Yadav et al., arXiv 2306.01708); `lorahub` is that
of Huang et al., arXiv 2307.13269. `peftjax.methods.composition.sites` brings whole
adapter trees to the lists of modules that these functions take. Stacked layers
keep their axes in front, `[*stack, in, r]`, and are combined layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from peftjax.methods.lora import LoRA

Modules = Sequence[tuple[LoRA, Mapping[str, jax.Array]]]
Combined = tuple[LoRA, dict[str, jax.Array]]


def cat(modules: Modules, weights: Sequence[float]) -> Combined:
    """Concatenate along the rank: exactly `Σ w_n s_n A_n B_n`, of rank `Σ r_n`.

    Args:
        modules: `(LoRA, {"a": [in, r], "b": [r, out]})` of one layer.
        weights: one number for each module.

    Returns:
        A LoRA of scale 1 and its parameters.

    Raises:
        ValueError: no modules, or another number of weights.

    >>> p = {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}
    >>> method, _ = cat([(LoRA(1, alpha=3.0), p)] * 2, [0.5, 0.5])
    >>> method.rank, method.scale
    (2, 1.0)
    """
    scaled = _scaled(modules, weights)
    a = [weight * p["a"] for weight, (_, p) in zip(scaled, modules)]
    b = [p["b"] for _, p in modules]
    return _lora(jnp.concatenate(a, axis=-1), jnp.concatenate(b, axis=-2))


def linear(modules: Modules, weights: Sequence[float]) -> Combined:
    """Sum A and B apart, with `√|w_n s_n|` on each and the sign on A.

    The product has cross terms `A_n B_m`: it is not the average of the products, even
    for equal weights.

    Raises:
        ValueError: ranks differ, no modules, or another number of weights.
    """
    return _apart(modules, weights, lambda stack, roots: _weighted(stack, roots).sum(0))


def magnitude_prune(
    modules: Modules, weights: Sequence[float], density: float
) -> Combined:
    """Sum as `linear` does what is left of A and B after pruning.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: of each A and B this fraction of entries is kept, the largest.
    """

    def rule(stack: jax.Array, roots: jax.Array) -> jax.Array:
        return _weighted(_pruned(stack, density), roots).sum(0)

    return _apart(modules, weights, rule)


def ties(modules: Modules, weights: Sequence[float], density: float) -> Combined:
    """Prune, elect the sign of each entry, average the modules that agree with it.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: as for `magnitude_prune`.
    """

    def rule(stack: jax.Array, roots: jax.Array) -> jax.Array:
        kept = _pruned(stack, density)
        elected = jnp.where(kept.sum(0) >= 0, 1.0, -1.0)
        agree = jnp.sign(kept) == elected
        total = (_weighted(kept, roots) * agree).sum(0)
        return total / jnp.maximum(agree.sum(0), 1)

    return _apart(modules, weights, rule)


def lorahub(modules: Modules, weights: Sequence[float]) -> Combined:
    """Return the module `A = Σ w_n A_n`, `B = Σ w_n B_n` at the modules' own scale.

    The product is quadratic in w: at w = 0 it vanishes with its gradient, so weights
    cannot be learned by gradients from there.

    Raises:
        ValueError: ranks or scales differ, no modules, or another number of weights.
    """
    _scaled(modules, weights)
    method = modules[0][0]
    if any((m.rank, m.scale) != (method.rank, method.scale) for m, _ in modules):
        raise ValueError(
            "lorahub needs modules of one rank and scale, found "
            f"{[(m.rank, m.scale) for m, _ in modules]}"
        )
    total = {
        name: _weighted(jnp.stack([p[name] for _, p in modules]), jnp.array(weights))
        for name in ("a", "b")
    }
    total = {name: value.sum(0) for name, value in total.items()}
    return LoRA(method.rank, alpha=method.alpha, rs=method.rs), total


def svd(
    modules: Modules, weights: Sequence[float], rank: int | None = None
) -> Combined:
    """Return the best LoRA of a given rank to `Σ w_n s_n A_n B_n`.

    The product is never formed: the singular values are those of the small matrix
    `R_A R_Bᵀ` of the factors' QR decompositions.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        rank: of the result; by default the largest of the modules.
    """
    _, p = cat(modules, weights)
    if rank is None:
        rank = max(lora.rank for lora, _ in modules)
    limit = min(p["a"].shape[-2], p["b"].shape[-1])
    if not 1 <= rank <= limit:
        raise ValueError(f"svd: expected a rank of 1 … {limit}, found {rank}")
    q_a, r_a = jnp.linalg.qr(p["a"])
    q_b, r_b = jnp.linalg.qr(p["b"].mT)
    u, s, vh = jnp.linalg.svd(r_a @ r_b.mT, full_matrices=False)
    a, b = q_a @ u, s[..., None] * (vh @ q_b.mT)
    # The modules together may have a lower rank.
    short, whole = (0, max(rank - s.shape[-1], 0)), [(0, 0)] * (a.ndim - 2)
    a, b = jnp.pad(a, [*whole, (0, 0), short]), jnp.pad(b, [*whole, short, (0, 0)])
    return _lora(a[..., :rank], b[..., :rank, :])


def _scaled(modules: Modules, weights: Sequence[float]) -> list[float]:
    """Return `w_n s_n`."""
    if not modules or len(modules) != len(weights):
        raise ValueError(
            f"expected modules and as many weights, found {len(modules)} modules and "
            f"{len(weights)} weights"
        )
    return [float(w) * method.scale for w, (method, _) in zip(weights, modules)]


def _lora(a: jax.Array, b: jax.Array) -> Combined:
    rank = a.shape[-1]
    return LoRA(rank, alpha=float(rank)), {"a": a, "b": b}


def _apart(
    modules: Modules,
    weights: Sequence[float],
    rule: Callable[[jax.Array, jax.Array], jax.Array],
) -> Combined:
    """Apply one rule to the A's and to the B's, with root weights, signed on A."""
    scaled = jnp.array(_scaled(modules, weights))
    ranks = [method.rank for method, _ in modules]
    if len(set(ranks)) > 1:
        raise ValueError(f"this rule needs modules of one rank, found {ranks}; use cat")
    roots = jnp.sqrt(jnp.abs(scaled))
    stack = {name: jnp.stack([p[name] for _, p in modules]) for name in ("a", "b")}
    a = rule(stack["a"], jnp.sign(scaled) * roots)
    return _lora(a, rule(stack["b"], roots))


def _weighted(stack: jax.Array, roots: jax.Array) -> jax.Array:
    return stack * roots.reshape(-1, *[1] * (stack.ndim - 1))


def _pruned(stack: jax.Array, density: float) -> jax.Array:
    """Keep the largest entries of each matrix, a fraction `density` of them."""
    if not 0 < density <= 1:
        raise ValueError(f"expected 0 < density <= 1, found {density}")
    flat = stack.reshape(*stack.shape[:-2], -1)
    _, kept = jax.lax.top_k(jnp.abs(flat), int(density * flat.shape[-1]))
    ones = jnp.ones((), flat.dtype)
    zeros = jnp.zeros_like(flat)
    mask = jnp.put_along_axis(zeros, kept, ones, axis=-1, inplace=False)
    return (flat * mask).reshape(stack.shape)
