"""Rules that merge the arrays of several modules, `[modules, *stack, rows, columns]`.

TIES is from Yadav et al., arXiv 2306.01708, DARE from Yu et al., arXiv 2311.03099.
Every rule raises ValueError unless 0 < density <= 1.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

MajoritySign = Literal["total", "frequency"]


def linear(stack: jax.Array, weights: jax.Array) -> jax.Array:
    """Return `Σ w_n x_n`."""
    return _weighted(stack, weights).sum(0)


def magnitude_prune(
    stack: jax.Array, weights: jax.Array, *, density: float
) -> jax.Array:
    """Return the sum of what is left after pruning."""
    return linear(_prune(stack, density), weights)


def ties(
    stack: jax.Array,
    weights: jax.Array,
    *,
    density: float,
    majority_sign_method: MajoritySign,
) -> jax.Array:
    """Prune, elect the sign of each entry, average the modules that have it."""
    return _agreeing(_prune(stack, density), weights, majority_sign_method)


def dare_linear(
    stack: jax.Array, weights: jax.Array, key: jax.Array, *, density: float
) -> jax.Array:
    """Return the sum of what is left after dropping at random."""
    return linear(_drop(stack, density, key), weights)


def dare_ties(
    stack: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    *,
    density: float,
    majority_sign_method: MajoritySign,
) -> jax.Array:
    """Drop at random, then elect and average as `ties`."""
    return _agreeing(_drop(stack, density, key), weights, majority_sign_method)


def _prune(stack: jax.Array, density: float) -> jax.Array:
    """Keep the largest entries of each matrix."""
    _check_density(density)
    flat = stack.reshape(*stack.shape[:-2], -1)
    _, kept = jax.lax.top_k(jnp.abs(flat), int(density * flat.shape[-1]))
    ones = jnp.ones((), flat.dtype)
    zeros = jnp.zeros_like(flat)
    mask = jnp.put_along_axis(zeros, kept, ones, axis=-1, inplace=False)
    return (flat * mask).reshape(stack.shape)


def _drop(stack: jax.Array, density: float, key: jax.Array) -> jax.Array:
    """Keep each entry with probability `density`, and divide it by that."""
    _check_density(density)
    return stack * jax.random.bernoulli(key, density, stack.shape) / density


def _agreeing(
    stack: jax.Array, weights: jax.Array, majority_sign_method: MajoritySign
) -> jax.Array:
    """Return the mean over the modules that have the elected sign.

    The sign is that of the sum (`"total"`) or of most modules (`"frequency"`); weights
    have no part in the election.
    """
    if majority_sign_method not in ("total", "frequency"):
        raise ValueError(
            "majority_sign_method: expected total or frequency, found "
            f"{majority_sign_method!r}"
        )
    signs = jnp.sign(stack)
    votes = stack if majority_sign_method == "total" else signs
    agree = signs == jnp.where(votes.sum(0) >= 0, 1.0, -1.0)
    total = (_weighted(stack, weights) * agree).sum(0)
    return total / jnp.maximum(agree.sum(0), 1)


def _weighted(stack: jax.Array, weights: jax.Array) -> jax.Array:
    return stack * weights.reshape(-1, *[1] * (stack.ndim - 1))


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"expected 0 < density <= 1, found {density}")
