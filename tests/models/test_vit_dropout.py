"""Dropout and drop-path of the Vision Transformer: when, how often, how independent."""

from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from peftjax.models.layers import stack_layers
from peftjax.models.vit import ViT

ONE_PATCH = {
    "image_size": 4,
    "patch_size": 4,
    "width": 8,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 12,
    "num_classes": 0,
}


def branch_biases():
    """A model whose residual branch b writes 1 into feature b of every token."""
    image = jnp.zeros((1, 4, 4, 1))
    shapes = jax.eval_shape(ViT(**ONE_PATCH).init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params["norm"]["scale"] += 1
    for i in range(ONE_PATCH["depth"]):
        params[f"blocks_{i}"]["attn"]["proj"]["bias"][2 * i] = 1
        params[f"blocks_{i}"]["mlp"]["fc2"]["bias"][2 * i + 1] = 1
    return params


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_rises_linearly_and_is_independent(scan):
    depth, examples, rate = ONE_PATCH["depth"], 4000, 0.6
    params = stack_layers(branch_biases()) if scan else branch_biases()
    model = ViT(**ONE_PATCH, drop_path=rate, scan_layers=scan)
    features = jax.jit(model.apply, static_argnames="train")(
        {"params": params},
        jnp.zeros((examples, 4, 4, 1)),
        train=True,
        rngs={"dropout": jax.random.key(5)},
    )
    # The last feature is never written: whatever equals it after `norm` was dropped.
    gap = np.asarray(features[:, : 2 * depth] - features[:, -1:])
    kept = gap > 0.1
    rates = np.repeat(np.linspace(0, rate, depth), 2)
    sigma = np.sqrt(rates * (1 - rates) / examples)
    np.testing.assert_array_less(np.abs(1 - kept.mean(0) - rates), 4 * sigma + 1e-9)
    centred = kept - kept.mean(0)
    covariance = centred.T @ centred / examples
    np.fill_diagonal(covariance, 0)
    assert np.abs(covariance).max() < 4 * 0.25 / sqrt(examples)
    # A kept branch is divided by 1 - rate, the first block's by 1.
    every = kept.all(axis=1)
    ratio = gap[every, 2 * depth - 1] / gap[every, 0]
    np.testing.assert_allclose(ratio, 1 / (1 - rate), rtol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_acts_only_in_training(scan):
    images = np.random.default_rng(1).uniform(size=(4, 4, 4, 1)).astype(np.float32)
    plain = ViT(**ONE_PATCH, scan_layers=scan)
    params = branch_biases()
    variables = {"params": stack_layers(params) if scan else params}
    model = ViT(**ONE_PATCH, dropout=0.3, drop_path=0.3, scan_layers=scan)
    expected = jax.jit(plain.apply)(variables, images)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images), expected)

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max(axis=1).min() > 0
    with pytest.raises(InvalidRngError):
        jax.eval_shape(lambda v: model.apply(v, images, train=True), variables)
    without = jax.jit(lambda v: plain.apply(v, images, train=True))(variables)
    np.testing.assert_array_equal(without, expected)
