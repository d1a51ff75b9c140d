"""Read the mean gates of a model: what depends on x, averaged over given data.

A gate is known only inside a layer, perhaps inside a scan. It is carried out as the
gradient of an array of zeros, the one way out of every transform: `observe` passes its
first argument through and gives that array the gate's sum as its cotangent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def observe(y: jax.Array, total: jax.Array, gates: jax.Array) -> jax.Array:
    """Return y; the cotangent of `total [heads + 1]` is the gates' sum and their count.

    Args:
        y: any array.
        total: `[heads + 1]`, zeros.
        gates: `[..., heads]`.
    """
    return y


def _forward(y: jax.Array, total: jax.Array, gates: jax.Array) -> tuple:
    flat = gates.reshape(-1, gates.shape[-1])
    count = jnp.full((1,), flat.shape[0], flat.dtype)
    return y, (jnp.concatenate([flat.sum(0), count]), gates)


def _backward(residual: tuple, cotangent: jax.Array) -> tuple:
    total, gates = residual
    return cotangent, total, jnp.zeros_like(gates)


observe.defvjp(_forward, _backward)
