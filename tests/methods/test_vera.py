"""VeRA against the torch library, and its one pair for layers of several sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.VeRA(rank=4, d_in=72, d_out=32),)


def test_torch_library():
    case = check_torch_layer("vera")
    assert case.method == pj.VeRA(rank=4, d_in=24, d_out=16, d_initial=0.3)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(nn.Dense(8, name="first")(x))


def test_layers_share_one_pair():
    x = jnp.ones((1, 5))
    variables = jax.eval_shape(Two().init, jax.random.key(0), x)
    rules = {".*/kernel": pj.VeRA(rank=2, d_in=8, d_out=8)}
    peft = pj.adapt(Two().apply, variables, x, rules=rules)
    adapters = jax.eval_shape(peft.init, jax.random.key(0))
    assert {name: a.shape for name, a in adapters[""].items()} == {
        "a": (8, 2),
        "b": (2, 8),
    }
    assert adapters["first/kernel"].keys() == {"d", "l"}
    assert sum(site.trainable for site in peft.sites) == (2 + 8) + (2 + 3)
    with pytest.raises(ValueError, match="second/kernel: shares 'a' with first"):
        pj.adapt(Two().apply, variables, x, rules={".*/kernel": pj.VeRA(rank=2)})
    with pytest.raises(ValueError, match="too few for a .5, 8. weight"):
        pj.adapt(Two().apply, variables, x, rules={".*/kernel": pj.VeRA(2, d_in=4)})
