"""Rules that combine LoRA modules of one layer into one LoRA.

All but `lorahub` (Huang et al., arXiv 2307.13269) are those of the torch library's
`add_weighted_adapter`. Those that end in `_svd` form the products `s_n A_n B_n`, merge
these and factorise the result; the others merge A and B apart, `√|w_n s_n|` being the
weights of both and the sign A's. DARE draws what it keeps, so its rules take a key.

The result is a LoRA of scale 1, as it is in the torch library, modules of rsLoRA
excepted: there the result is rsLoRA again, its scale `√r`, so that it is `√r`
times what the rule says. Here there is no such factor.

`peftjax.methods.composition.sites` brings whole adapter trees to the lists of modules
that these functions take. Stacked layers keep their axes in front, `[*stack, in, r]`,
and are combined layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from peftjax.convert import merging
from peftjax.convert.merging import MajoritySign
from peftjax.methods.lora import LoRA

Modules = Sequence[tuple[LoRA, Mapping[str, jax.Array]]]
Combined = tuple[LoRA, dict[str, jax.Array]]
Merge = Callable[[jax.Array, jax.Array], jax.Array]


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
    """Sum A and B apart.

    The product has cross terms `A_n B_m`: it is not the average of the products, even
    for equal weights.

    Raises:
        ValueError: ranks differ, no modules, or another number of weights.
    """
    return _apart(modules, weights, merging.linear, merging.linear)


def magnitude_prune(
    modules: Modules, weights: Sequence[float], density: float
) -> Combined:
    """Sum as `linear` does what is left of A and B after pruning.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: of each A and B this fraction of entries is kept, the largest.
    """
    merge = partial(merging.magnitude_prune, density=density)
    return _apart(modules, weights, merge, merge)


def ties(
    modules: Modules,
    weights: Sequence[float],
    density: float,
    *,
    majority_sign_method: MajoritySign = "total",
) -> Combined:
    """Prune, elect the sign of each entry, average the modules that agree with it.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: as for `magnitude_prune`.
        majority_sign_method: the elected sign is that of the sum (`"total"`) or of most
            modules (`"frequency"`).
    """
    merge = partial(
        merging.ties, density=density, majority_sign_method=majority_sign_method
    )
    return _apart(modules, weights, merge, merge)


def dare_linear(
    modules: Modules, weights: Sequence[float], density: float, key: jax.Array
) -> Combined:
    """Sum as `linear` does random entries of A and B, divided by their share.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: each entry is kept with this probability.
        key: draws them.
    """
    merge = partial(merging.dare_linear, density=density)
    a, b = (partial(merge, key=one) for one in jax.random.split(key))
    return _apart(modules, weights, a, b)


def dare_ties(
    modules: Modules,
    weights: Sequence[float],
    density: float,
    key: jax.Array,
    *,
    majority_sign_method: MajoritySign = "total",
) -> Combined:
    """Do as `ties` with random entries of A and B, drawn as by `dare_linear`."""
    merge = partial(
        merging.dare_ties, density=density, majority_sign_method=majority_sign_method
    )
    a, b = (partial(merge, key=one) for one in jax.random.split(key))
    return _apart(modules, weights, a, b)


def lorahub(modules: Modules, weights: Sequence[float] | jax.Array) -> Combined:
    """Return the module `A = Σ w_n A_n`, `B = Σ w_n B_n` at the modules' own scale.

    The product is quadratic in w: at w = 0 it vanishes with its gradient, so weights
    cannot be learned by gradients from there; `peftjax.search.weigh` searches. The
    weights may be traced, so that candidates share one compiled program.

    Raises:
        ValueError: ranks or scales differ, no modules, or another number of weights.
    """
    _check(modules, weights)
    method = modules[0][0]
    if any((m.rank, m.scale) != (method.rank, method.scale) for m, _ in modules):
        raise ValueError(
            "lorahub needs modules of one rank and scale, found "
            f"{[(m.rank, m.scale) for m, _ in modules]}"
        )
    total = {
        name: merging.linear(
            jnp.stack([p[name] for _, p in modules]), jnp.array(weights)
        )
        for name in ("a", "b")
    }
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
    rank = _rank(modules, rank)
    q_a, r_a = jnp.linalg.qr(p["a"])
    q_b, r_b = jnp.linalg.qr(p["b"].mT)
    u, s, vh = jnp.linalg.svd(r_a @ r_b.mT, full_matrices=False)
    a, b = q_a @ u, s[..., None] * (vh @ q_b.mT)
    # The modules together may have a lower rank.
    short, whole = (0, max(rank - s.shape[-1], 0)), [(0, 0)] * (a.ndim - 2)
    a, b = jnp.pad(a, [*whole, (0, 0), short]), jnp.pad(b, [*whole, short, (0, 0)])
    return _lora(a[..., :rank], b[..., :rank, :])


def magnitude_prune_svd(
    modules: Modules, weights: Sequence[float], density: float, rank: int | None = None
) -> Combined:
    """Return the best LoRA to the sum of the pruned products.

    Args:
        modules: as for `cat`.
        weights: as for `cat`.
        density: as for `magnitude_prune`, of each product.
        rank: as for `svd`.
    """
    merge = partial(merging.magnitude_prune, density=density)
    return _products(modules, weights, rank, merge)


def ties_svd(
    modules: Modules,
    weights: Sequence[float],
    density: float,
    rank: int | None = None,
    *,
    majority_sign_method: MajoritySign = "total",
) -> Combined:
    """Return the best LoRA to what `ties` makes of the products."""
    merge = partial(
        merging.ties, density=density, majority_sign_method=majority_sign_method
    )
    return _products(modules, weights, rank, merge)


def dare_linear_svd(
    modules: Modules,
    weights: Sequence[float],
    density: float,
    key: jax.Array,
    rank: int | None = None,
) -> Combined:
    """Return the best LoRA to what `dare_linear` makes of the products."""
    merge = partial(merging.dare_linear, key=key, density=density)
    return _products(modules, weights, rank, merge)


def dare_ties_svd(
    modules: Modules,
    weights: Sequence[float],
    density: float,
    key: jax.Array,
    rank: int | None = None,
    *,
    majority_sign_method: MajoritySign = "total",
) -> Combined:
    """Return the best LoRA to what `dare_ties` makes of the products."""
    merge = partial(
        merging.dare_ties,
        key=key,
        density=density,
        majority_sign_method=majority_sign_method,
    )
    return _products(modules, weights, rank, merge)


def _check(modules: Modules, weights: Sequence[float] | jax.Array) -> None:
    if not modules or len(modules) != len(weights):
        raise ValueError(
            f"expected modules and as many weights, found {len(modules)} modules and "
            f"{len(weights)} weights"
        )


def _scaled(modules: Modules, weights: Sequence[float]) -> list[float]:
    """Return `w_n s_n`."""
    _check(modules, weights)
    return [float(w) * method.scale for w, (method, _) in zip(weights, modules)]


def _lora(a: jax.Array, b: jax.Array) -> Combined:
    rank = a.shape[-1]
    return LoRA(rank, alpha=float(rank)), {"a": a, "b": b}


def _apart(modules: Modules, weights: Sequence[float], a: Merge, b: Merge) -> Combined:
    """Merge the A's and the B's, with root weights, signed on A."""
    scaled = jnp.array(_scaled(modules, weights))
    ranks = [method.rank for method, _ in modules]
    if len(set(ranks)) > 1:
        raise ValueError(f"this rule needs modules of one rank, found {ranks}; use cat")
    roots = jnp.sqrt(jnp.abs(scaled))
    stack = {name: jnp.stack([p[name] for _, p in modules]) for name in ("a", "b")}
    return _lora(a(stack["a"], jnp.sign(scaled) * roots), b(stack["b"], roots))


def _products(
    modules: Modules, weights: Sequence[float], rank: int | None, merge: Merge
) -> Combined:
    """Apply a rule to the products, and factorise what it gives."""
    _scaled(modules, weights)
    stack = jnp.stack([method.scale * p["a"] @ p["b"] for method, p in modules])
    merged = merge(stack, jnp.asarray(weights, stack.dtype))
    rank = _rank(modules, rank)
    u, s, vh = jnp.linalg.svd(merged, full_matrices=False)
    return _lora(u[..., :rank], s[..., :rank, None] * vh[..., :rank, :])


def _rank(modules: Modules, rank: int | None) -> int:
    _, p = modules[0]
    limit = min(p["a"].shape[-2], p["b"].shape[-1])
    rank = max(lora.rank for lora, _ in modules) if rank is None else rank
    if not 1 <= rank <= limit:
        raise ValueError(f"svd: expected a rank of 1 … {limit}, found {rank}")
    return rank
