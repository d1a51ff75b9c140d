"""Compacter against its paper's sum of Kronecker products, written in torch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import close, load, random_like

CHECKED = (pj.Compacter(width=8, rank=2, dropout=0.2),)
METHOD = pj.Compacter(width=4, rank=2, terms=2)


def test_values_and_gradients_are_torchs():
    arrays = load("compacter")
    names = [name.removeprefix("d_") for name in arrays if name.startswith("d_")]
    given = {name: arrays[name] for name in names if name in arrays}
    found, pull = jax.vjp(lambda p: METHOD.edit(p, p["y"], None), given)
    close(found, arrays["result"])
    gradients = pull(arrays["cotangent"])[0]
    assert len(gradients) == 8
    for name, gradient in gradients.items():
        close(gradient, arrays[f"d_{name}"])


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="second")(nn.Dense(8, name="first")(x))


def test_layers_of_two_widths_share_one_rule():
    x = jnp.ones((2, 5))
    variables = Two().init(jax.random.key(0), x)
    peft = pj.adapt(Two().apply, variables, x, rules={r"\w+:output": METHOD})
    assert peft.trainable == {
        "first:output": (4 + 8) * 5,
        "second:output": (4 + 6) * 5,
        "": 8,
    }
    adapters = random_like(peft.init(jax.random.key(1)))
    params, shared = variables["params"], adapters[""]
    y = x
    for name in ("first", "second"):
        own = {**adapters[f"{name}:output"], **shared}
        y = METHOD.edit(own, y @ params[name]["kernel"] + params[name]["bias"], None)
    close(peft.apply(variables, adapters, x), y)


def test_the_start():
    method, layer = pj.Compacter(width=400, rank=1), Layer(9, 800, "output")
    p = method.init(jax.random.key(0), layer)
    assert sum(p[name].size for name in p if name != "a") == method.count(layer)
    deviations = {
        "a": 1e-4,
        "down_s": (2 / 201) ** 0.5,
        "down_t": (2 / 101) ** 0.5,
        "up_s": (2 / 101) ** 0.5,
        "up_t": (2 / 201) ** 0.5,
    }
    for name, expected in deviations.items():
        rtol = 4 / (2 * p[name].size) ** 0.5
        np.testing.assert_allclose(p[name].std(), expected, rtol=rtol)
    assert not p["down_bias"].any() and not p["up_bias"].any()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"expected\s+terms that divide both widths"):
        METHOD.check(Layer(3, 7, "output", path="a:output"))
    with pytest.raises(ValueError, match="rank of at most"):
        METHOD.check(Layer(3, 2, "output", path="a:output"))
