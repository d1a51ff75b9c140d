"""Position embeddings resized to another grid, against Pillow's bicubic filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from peftjax.models.vit import resize_pos_embed


@pytest.fixture(scope="module")
def pos_embed():
    return jax.random.normal(jax.random.key(0), (1, 1 + 7 * 7, 6))


def test_resize_to_the_same_grid_is_the_identity(pos_embed):
    assert resize_pos_embed(pos_embed, (7, 7)) is pos_embed


@pytest.mark.parametrize("grid", [(12, 12), (4, 4), (7, 10), (3, 9)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_resize_equals_pillows_bicubic(pos_embed, grid, prefix):
    source = pos_embed[:, 1 - prefix :]
    resized = np.asarray(resize_pos_embed(source, grid))
    assert resized.shape == (1, prefix + grid[0] * grid[1], 6)
    np.testing.assert_array_equal(resized[:, :prefix], source[:, :prefix])
    patches = np.asarray(source[0, prefix:]).reshape(7, 7, 6)
    for channel in range(6):
        plane = Image.fromarray(patches[..., channel])
        expected = np.asarray(plane.resize(grid[::-1], Image.Resampling.BICUBIC))
        actual = resized[0, prefix:, channel].reshape(grid)
        # Two passes of sums over at most 7 weights whose absolute values sum to < 1.3.
        atol = 2 * 7 * 1.3**2 * np.finfo(np.float32).eps * np.abs(patches).max()
        np.testing.assert_allclose(actual, expected, atol=atol)


def test_resize_between_rectangles_keeps_a_constant_and_the_dtype():
    table = jnp.full((1, 1 + 2 * 6, 3), 2.0, jnp.bfloat16)
    resized = resize_pos_embed(table, (4, 3), old_grid=(2, 6))
    assert resized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(resized, jnp.full((1, 13, 3), 2.0, jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "old_grid"),
    [((1, 12, 3), None), ((49, 3), None), ((1, 50, 3), (6, 8)), ((2, 50, 3), None)],
)
def test_resize_refuses_what_is_no_grid(shape, old_grid):
    with pytest.raises(ValueError, match="old_grid"):
        resize_pos_embed(jnp.zeros(shape), (4, 4), old_grid)
