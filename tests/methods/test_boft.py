"""BOFT against the torch library: one, two and three butterfly factors."""

import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from tests.helpers.goldens import close
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.BOFT(block=4, factors=2),)


@pytest.mark.parametrize(
    ("name", "block", "factors"), [("boft", 4, 1), ("boft_2", 4, 2), ("boft_3", 2, 3)]
)
def test_torch_library(name, block, factors):
    case = check_torch_layer(name)
    assert case.method == pj.BOFT(block, factors)


def test_two_factors_reach_beyond_a_block_and_stay_orthogonal():
    rng, method = np.random.default_rng(0), pj.BOFT(block=4, factors=2)
    p = {"r": jnp.asarray(rng.normal(size=(2, 2, 4, 4)), jnp.float32)}
    rotation = method({**p, "scale": jnp.ones(8)}, jnp.eye(8), jnp.eye(8))
    close(rotation @ rotation.T, jnp.eye(8))
    assert (np.abs(rotation) > 1e-3).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [((1,), "at least 2"), ((3, 2), "an even one"), ((0,), "block=0")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        pj.BOFT(*settings)


def test_stretches_must_divide_the_input():
    with pytest.raises(ValueError, match="stretches of 16"):
        pj.BOFT(block=4, factors=3).check(pj.Layer(24, 8))
