"""Activation functions under the names that configuration files use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return `x sigmoid(1.702 x)`, CLIP's approximation of GELU.

    >>> quick_gelu(jnp.zeros(2))
    Array([0., 0.], dtype=float32)
    """
    return x * jax.nn.sigmoid(1.702 * x)


_tanh_gelu = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function of that name.

    Raises:
        ValueError: the name is not known.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(f"activation: expected one of {known}; found {name!r}")
    return ACTIVATIONS[name]
