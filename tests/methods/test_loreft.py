"""LoReFT against the authors' equation in torch, and at first and last tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax import presets
from peftjax.core.method import Layer
from peftjax.methods.loreft import orthonormal
from tests.helpers.goldens import close, load

CHECKED = (pj.LoReFT(rank=3, last=2, dropout=0.2),)
METHOD = pj.LoReFT(rank=3)


def test_values_and_gradients_are_torchs():
    arrays = load("loreft")
    given = {name: arrays[name] for name in ("y", "v", "b")} | {"w": arrays["w"].T}

    def run(given):
        return METHOD.edit(given, given["y"], None)

    found, pull = jax.vjp(run, given)
    close(found, arrays["result"])
    for name, gradient in pull(arrays["cotangent"])[0].items():
        expected = arrays[f"d_{name}"]
        close(gradient, expected.T if name == "w" else expected)
    # where the authors' own rotation went, taken as it is
    close(run({**given, "v": arrays["moved"]}), arrays["result_moved"])


def test_first_and_last_tokens_of_a_layers_output():
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    model = nn.Dense(4)
    variables = model.init(jax.random.key(0), x)
    outputs = {}
    for first, last in ((None, None), (1, None), (None, 2), (4, 3)):
        method = pj.LoReFT(rank=2, first=first, last=last)
        peft = pj.adapt(model.apply, variables, x, rules={":output": method})
        adapters = peft.init(jax.random.key(1))
        outputs[first, last] = peft.apply(variables, adapters, x)
    base, whole = model.apply(variables, x), outputs[None, None]
    assert np.abs(whole - base).min() > 1e-4
    one, two = outputs[1, None], outputs[None, 2]
    np.testing.assert_array_equal(one, np.concatenate([whole[:, :1], base[:, 1:]], 1))
    np.testing.assert_array_equal(two, np.concatenate([base[:, :3], whole[:, 3:]], 1))
    np.testing.assert_array_equal(outputs[4, 3], whole)


def test_the_whole_state_is_dropped():
    y = jnp.ones((50, 40))
    p = METHOD.init(jax.random.key(0), Layer(40, 40, "output"))
    dropped = pj.LoReFT(rank=3, dropout=0.25).edit(p, y, None, key=jax.random.key(1))
    zeros = np.mean(np.asarray(dropped) == 0)
    assert abs(zeros - 0.25) < 0.05
    kept = METHOD.edit(p, y, None)
    close(dropped, np.where(dropped == 0, 0, kept / 0.75))


def test_the_start():
    p = METHOD.init(jax.random.key(0), Layer(7, 900, "output"))
    close(p["v"].T @ p["v"], np.eye(3))
    close(orthonormal(p["v"]), p["v"])
    assert 0.95 / 30 < np.abs(p["w"]).max() <= 1 / 30 and np.abs(p["b"]).max() <= 1 / 30
    np.testing.assert_allclose(p["w"].std(), 1 / 30 / 3**0.5, rtol=0.05)
    assert sum(a.size for a in p.values()) == METHOD.count(Layer(7, 900, "output"))


def test_what_is_refused():
    with pytest.raises(ValueError, match="first=0.: expected an integer >= 1"):
        pj.LoReFT(rank=2, first=0)
    with pytest.raises(ValueError, match="expected 1 <= rank <= 2"):
        METHOD.check(Layer(9, 2, "output", path="a:output"))
    rules = presets.rules("llama", METHOD)
    assert list(rules) == [r"layers(_\d+)?:output"]
