"""Position embeddings for another image size."""

from __future__ import annotations

from math import isqrt

import jax
import jax.numpy as jnp


def resize_pos_embed(
    pos_embed: jax.Array,
    grid: tuple[int, int],
    old_grid: tuple[int, int] | None = None,
) -> jax.Array:
    """Resize position embeddings to another grid of patches; the class token's is kept.

    Bicubic (Keys, a = -0.5) with antialiasing through `jax.image.resize`, which is what
    timm computes; the authors' code and big_vision interpolate linearly instead.

    Args:
        pos_embed: `[1, tokens, width]`, with or without the class token first.
        grid: patches down and across at the new image size.
        old_grid: the same of the checkpoint; a square if not given.

    Returns:
        `[1, new tokens, width]`, dtype kept; `pos_embed` itself on an equal grid.

    Raises:
        ValueError: the number of tokens does not fit the old grid.

    >>> resize_pos_embed(jnp.ones((1, 1 + 14 * 14, 64)), (24, 24)).shape
    (1, 577, 64)
    """
    shape = tuple(pos_embed.shape)
    tokens, width = shape[-2:]
    # n² and m² + 1 never meet for two tokens or more: the class token shows.
    rows, columns = old_grid or (isqrt(tokens), isqrt(tokens))
    prefix = tokens - rows * columns
    if len(shape) != 3 or shape[0] != 1 or prefix not in (0, 1):
        raise ValueError(
            f"pos_embed: expected [1, {rows} x {columns} patches and at most one class "
            f"token, width], found {shape}; if the old grid is no square, give old_grid"
        )
    if tuple(grid) == (rows, columns):
        return pos_embed
    patches = pos_embed[0, prefix:].reshape(rows, columns, width).astype(jnp.float32)
    patches = jax.image.resize(patches, (*grid, width), "bicubic", antialias=True)
    patches = patches.astype(pos_embed.dtype).reshape(1, -1, width)
    return jnp.concatenate([pos_embed[:, :prefix], patches], axis=1)
