"""The numbers that codes stand for: ascending, in [-1, 1], float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# QLoRA (arXiv 2305.14314), appendix E: quantiles of a normal distribution, zero exact.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
INT4 = np.arange(-7, 8, dtype=np.float32) / 7
INT8 = np.arange(-127, 128, dtype=np.float32) / 127


def dynamic() -> np.ndarray:
    """Return the 256 numbers of the dynamic 8-bit type, for scales.

    Seven decades, each with twice as many steps as the one below, and zero and one
    (arXiv 2110.02861, section 1.3).
    """
    positive = []
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2**exponent + 1)
        positive += list(10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2)
    negative = [-number for number in positive]
    return np.sort(np.array([0, 1, *positive, *negative], np.float32))


def dynamic_of(codes: jax.Array) -> jax.Array:
    """Return `dynamic()[codes]`, computed: to look it up would be a slow pass more.

    >>> codes = np.arange(256, dtype=np.uint8)
    >>> bool(np.abs(dynamic_of(codes) - dynamic()).max() < 1e-7)
    True
    """
    place = codes.astype(jnp.int32) - 127
    rank = jnp.abs(place)  # from 1 on, by magnitude
    decade = 31 - jax.lax.clz(jnp.maximum(rank, 1))
    steps = (1 << decade).astype(jnp.float32)
    fraction = 0.1 + 0.9 * (rank - steps + 0.5) / steps
    scale = jnp.float32(1)
    for exponent in range(6):
        scale = jnp.where(decade == exponent, 10.0 ** (exponent - 6), scale)
    value = jnp.sign(place) * scale * fraction
    return jnp.where(rank == 128, 1.0, value).astype(jnp.float32)
