"""Rotary position embeddings (arXiv 2104.09864), also stretched to long contexts."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Rope:
    """The wavelengths of rotary embeddings.

    Feature pair i of a head turns by `position · theta^(-2i/d)`. Kinds: `"default"`;
    `"linear"` divides every frequency by `factor` (arXiv 2306.15595); `"llama3"`
    divides those whose wavelength exceeds `original / low_freq_factor`, keeps those
    below `original / high_freq_factor` and blends between (Llama 3.1, arXiv
    2407.21783).

    >>> Rope(theta=100.0).frequencies(4)
    array([1. , 0.1], dtype=float32)
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return radians per position of each pair, float32 `[head_dim // 2]`."""
        base = self.theta ** (-np.arange(0, head_dim, 2) / head_dim)
        if self.kind == "linear":
            base = base / self.factor
        elif self.kind == "llama3":
            periods = self.original_max_position_embeddings * base / (2 * pi)
            low, high = self.low_freq_factor, self.high_freq_factor
            blend = np.clip((periods - low) / (high - low), 0.0, 1.0)
            base = (1 - blend) * base / self.factor + blend * base
        elif self.kind != "default":
            raise ValueError(
                f"Rope: expected kind default, linear or llama3, found {self.kind!r}"
            )
        return base.astype(np.float32)


DEFAULT_ROPE = Rope()


def rotation(
    positions: jax.Array, frequencies: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine of every angle, float32 `[..., 1, head_dim // 2]`.

    Args:
        positions: `[tokens]`, or `[batch, tokens]` where rows differ.
        frequencies: of `Rope.frequencies`.
    """
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the pairs (i, i + d/2) of each head by the given angles.

    Args:
        x: `[batch, tokens, heads, d]`.
        cos: `[tokens, 1, d/2]` or `[batch, tokens, 1, d/2]`, float32.
        sin: the same shape.

    Returns:
        The shape and dtype of x; computed in float32.

    >>> x = jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, *rotation(jnp.array([0]), Rope().frequencies(2))).ravel()
    Array([3., 4.], dtype=float32)
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
