"""Position embeddings interpolated as torch does it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bicubic(new: int, old: int) -> np.ndarray:
    """Return the matrix that interpolates `old` samples at `new` places.

    Cubic convolution with a = -0.75, pixels' centres aligned, ends repeated, without
    antialiasing: torch's, where `jax.image.resize` has a = -0.5.

    Returns:
        `[new, old]`, float32; every row sums to 1.

    >>> bicubic(2, 1)
    array([[1.],
           [1.]], dtype=float32)
    """
    a = -0.75
    places = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        sample = np.floor(places).astype(int) + tap
        x = np.abs(places - sample)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        weight = np.where(x <= 1, near, far)
        np.add.at(matrix, (np.arange(new), sample.clip(0, old - 1)), weight)
    return matrix.astype(np.float32)


def interpolate(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Return the positions of another grid of patches; the class token's is kept.

    Args:
        table: `[1, 1 + n², features]`, the class token first.
        grid: patches down and across.

    Returns:
        `[1, 1 + down · across, features]`, float32.
    """
    table = table.astype(jnp.float32)
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    rows, columns = (bicubic(new, side) for new in grid)
    patches = table[0, 1:].reshape(side, side, -1)
    patches = jnp.einsum("hi,wj,ijd->hwd", rows, columns, patches, precision="highest")
    patches = patches.reshape(1, -1, table.shape[-1])
    return jnp.concatenate([table[:, :1], patches], axis=1)
