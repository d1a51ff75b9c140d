"""The Diffusion Transformer against the paper's equations in NumPy, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from peftjax.models.dit import DiT
from peftjax.models.layers import stack_layers

FIELDS = {
    "image_size": 4,
    "patch_size": 2,
    "channels": 3,
    "width": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 12,
    "num_classes": 5,
}


@pytest.fixture(scope="module")
def case():
    """A model off its initial weights, and a batch."""
    model = DiT(**FIELDS)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 3), np.float32)
    t, y = np.array([0, 700], np.int32), np.array([3, 5], np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t, y)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, s.dtype), shapes)
    return model, params, (x, t, y), jax.jit(model.apply)(params, x, t, y)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def dense(p, x):
    return x @ np.float64(p["kernel"]) + p["bias"]


def block(p, x, c):
    b1, g1, a1, b2, g2, a2 = np.split(dense(p["adaln"], silu(c))[:, None], 6, -1)
    q, k, v = np.split(dense(p["attn"]["qkv"], norm(x) * (1 + g1) + b1), 3, -1)
    heads = []
    for one in np.split(np.arange(8), 2):
        scores = q[..., one] @ k[..., one].swapaxes(1, 2) / 2
        heads.append(softmax(scores, -1) @ v[..., one])
    x = x + a1 * dense(p["attn"]["proj"], np.concatenate(heads, -1))
    z = dense(p["mlp"]["fc1"], norm(x) * (1 + g2) + b2)
    return x + a2 * dense(p["mlp"]["fc2"], z * (1 + erf(z / np.sqrt(2))) / 2)


def test_the_equations(case):
    _, variables, (x, t, y), found = case
    p = variables["params"]
    patches = x.reshape(2, 2, 2, 2, 2, 3).swapaxes(2, 3).reshape(2, 4, 12)
    embed = p["patch_embed"]["kernel"].reshape(12, 8)
    rows = np.outer([0, 0, 1, 1], [1, 0.01])
    columns = np.outer([0, 1, 0, 1], [1, 0.01])
    parts = [f(a) for a in (columns, rows) for f in (np.sin, np.cos)]
    tokens = patches @ embed + p["patch_embed"]["bias"] + np.concatenate(parts, -1)
    angles = t[:, None] * 10000.0 ** (-np.arange(128) / 128)
    c = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    c = dense(p["t_embed"]["fc2"], silu(dense(p["t_embed"]["fc1"], c)))
    c = c + p["y_embed"]["embedding"][y]
    for name in ("blocks_0", "blocks_1"):
        tokens = block(p[name], tokens, c)
    b, g = np.split(dense(p["norm"]["adaln"], silu(c))[:, None], 2, -1)
    pixels = dense(p["head"], norm(tokens) * (1 + g) + b)
    expected = pixels.reshape(2, 2, 2, 2, 2, 3).swapaxes(2, 3).reshape(2, 4, 4, 3)
    # Angles of up to 700 are float32's in the model.
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=2e-3 * np.abs(expected).max()
    )


def test_scanned_and_recomputed_layers_are_the_same_function(case):
    model, params, batch, expected = case
    stacked = {"params": stack_layers(params["params"])}
    found = model.clone(scan_layers=True, remat=True).apply(stacked, *batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    one_time = model.apply(params, batch[0], jnp.int32(7), batch[2])
    assert one_time.shape == batch[0].shape


@pytest.mark.parametrize(
    ("fields", "shape", "says"),
    [
        ({}, (1, 8, 8, 3), r"images \[batch, 4, 4, 3\]"),
        ({"patch_size": 3}, (1, 4, 4, 3), "patch_size to divide image_size"),
        ({"num_heads": 3}, (1, 4, 4, 3), "num_heads"),
    ],
)
def test_what_does_not_fit_is_refused(fields, shape, says):
    model, one = DiT(**{**FIELDS, **fields}), jnp.zeros(1, int)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), one, one)
