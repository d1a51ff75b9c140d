"""One small model with every kind of layer, in Linen and in NNX, and its numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from peftjax.nnx import from_nnx

WIDTH, HIDDEN, VOCAB, LAYERS = 16, 24, 32, 2


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        h = nn.gelu(nn.Dense(HIDDEN, name="fc1")(x))
        return x + nn.Dense(WIDTH, name="fc2")(h), None


class _Place(nn.Module):
    """The place of a prefix, `[0, WIDTH]`."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return jnp.zeros((0, WIDTH))


class _NnxPlace(nnx.Module):
    """The same in NNX."""

    def __init__(self, dtype: Any):
        self.dtype = dtype

    def __call__(self) -> jax.Array:
        return jnp.zeros((0, WIDTH), self.dtype)


def _lengthened(x: jax.Array, rows: jax.Array) -> jax.Array:
    rows = jnp.broadcast_to(rows, (len(x), *rows.shape))
    return jnp.concatenate([x, rows], axis=1) if rows.size else x


class Everything(nn.Module):
    """A Linen model with every kind of layer; `ids [B, T]`, `image [B, H, W, 8]`."""

    @nn.compact
    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCAB, WIDTH, name="embed")
        conv = nn.Conv(WIDTH, (3, 3), strides=2, name="conv")
        x = embed(ids) + conv(image).mean((1, 2))[:, None]
        seen = _lengthened(x, _Place(name="prompts")())
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, seen)
        x = x + nn.Dense(WIDTH, use_bias=False, name="plain")(x)
        x, _ = nn.remat(_Block)(name="remat")(x)
        stack = nn.scan(
            nn.remat(_Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = stack(name="scanned")(x, None)
        x = nn.LayerNorm(name="norm")(x)
        tied = embed.attend(x)
        table = nn.Embed(VOCAB, WIDTH, name="untied")
        return tied + nn.Dense(VOCAB, name="head")(x + table(ids))


class NnxEverything(nnx.Module):
    """The NNX counterpart, with layers written one after the other."""

    def __init__(self, dtype: Any, rngs: nnx.Rngs):
        types = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.embed = nnx.Embed(VOCAB, WIDTH, **types)
        self.conv = nnx.Conv(8, WIDTH, (3, 3), strides=2, **types)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, **types)
        self.plain = nnx.Linear(WIDTH, WIDTH, use_bias=False, **types)
        self.head = nnx.Linear(WIDTH, VOCAB, **types)
        self.untied = nnx.Embed(VOCAB, WIDTH, **types)
        self.prompts = _NnxPlace(dtype)

    def __call__(self, ids: jax.Array, image: jax.Array) -> jax.Array:
        x = self.embed(ids) + self.conv(image).mean((1, 2))[:, None]
        x = x + self.attention(x, _lengthened(x, self.prompts()))
        logits = self.head(x + self.plain(x) + self.untied(ids))
        return logits + self.embed.attend(x)


@cache
def linen_model() -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """Return the Linen model's function, its variables and its arguments."""
    model, inputs = Everything(), _inputs(jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    return model.apply, _filled(shapes), inputs


@cache
def nnx_model(
    dtype: Any,
) -> tuple[nnx.Module, Callable[..., Any], Any, tuple[Any, ...]]:
    """Return the NNX module, its function, its variables and its arguments."""
    module = nnx.eval_shape(lambda: NnxEverything(dtype, nnx.Rngs(0)))
    apply_fn, variables = from_nnx(module)
    return module, apply_fn, _filled(variables), _inputs(dtype)


def _inputs(dtype: Any) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(3)
    ids, images = rng.integers(0, VOCAB, (2, 5)), rng.normal(size=(2, 6, 6, 8))
    return jax.device_put((ids.astype(np.int32), images.astype(dtype)))


def _filled(shapes: Any) -> Any:
    """Return arrays of the given shapes; no bias is zero, which would hide mistakes."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        values, name = rng.normal(size=leaf.shape), str(path[-1])
        if "bias" in name:
            values = 0.5 * values
        elif "scale" in name:
            values = 1 + 0.1 * values
        else:
            values = values / prod(leaf.shape[:-1]) ** 0.5
        return values.astype(leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))
