"""Read the mean gates of a model: what depends on x, averaged over given data.

A gate is known only inside a layer, perhaps inside a scan. It is carried out as the
gradient of an array of zeros, the one way out of every transform: `observe` passes its
first argument through and gives that array the gate's sum as its cotangent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# The name under which the array of zeros lies beside a site's own arrays.
TOTAL = "gate total"


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


def mean_gates(
    run: Callable[[dict[str, jax.Array]], Any], zeros: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return the mean gates of each site, `[*stack, heads]` float32.

    Args:
        run: a forward pass, given the arrays of zeros by site.
        zeros: `{path: [*stack, heads + 1]}`.
    """

    def total(zeros: dict[str, jax.Array]) -> jax.Array:
        outputs = jax.tree.leaves(run(zeros))
        floats = [o for o in outputs if jnp.issubdtype(o.dtype, jnp.floating)]
        return jnp.sum(jnp.stack([jnp.sum(o.astype(jnp.float32)) for o in floats]))

    found = jax.grad(total)(zeros)
    return {path: sums[..., :-1] / sums[..., -1:] for path, sums in found.items()}
