"""Bottlenecks on what modules return, against torch's modules, and in a model."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax as pj
from peftjax import presets
from peftjax.core.method import Layer
from peftjax.models import Bert, BertConfig
from tests.helpers.goldens import close, load, random_like

SERIAL = pj.Bottleneck(rank=3, activation="gelu")
PARALLEL = pj.Bottleneck(rank=2, scale=0.1, side="input")
CHECKED = (SERIAL, PARALLEL)
X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(jnp.tanh(nn.Dense(4, name="a")(x)))


class Own(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(4, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


def by_hand(method, params, p, x):
    """Return what `Net` computes, its first layer edited as in the papers."""
    y = x @ params["a"]["kernel"] + params["a"]["bias"]
    h = (x if method.side == "input" else y) @ p["down"] + p["down_bias"]
    if method.activation == "gelu":
        h = np.asarray(jax.nn.gelu(h, approximate=False))
    else:
        h = np.maximum(h, 0)
    y = y + method.scale * (h @ p["up"] + p["up_bias"])
    return np.tanh(y) @ params["b"]["kernel"] + params["b"]["bias"]


@pytest.mark.parametrize("name", ["serial", "parallel"])
def test_values_and_gradients_are_torchs(name):
    method = {"serial": SERIAL, "parallel": replace(PARALLEL, rank=3)}[name]
    arrays = {
        key.partition("/")[2]: value
        for key, value in load("bottleneck").items()
        if key.startswith(name)
    }
    given = {key: arrays[key].T for key in ("down", "up")}
    given |= {key: arrays[key] for key in ("down_bias", "up_bias", "x", "y")}

    def run(given):
        p = {key: given[key] for key in ("down", "up", "down_bias", "up_bias")}
        return method.edit(p, given["y"], given["x"])

    found, pull = jax.vjp(run, given)
    close(found, arrays["result"])
    for key, gradient in pull(arrays["cotangent"])[0].items():
        # beside its module, an adapter in series does not read x
        expected = arrays.get(f"d_{key}", np.zeros(gradient.shape))
        close(gradient, expected.T if key in ("down", "up") else expected)


@pytest.mark.parametrize("method", CHECKED, ids=["serial", "parallel"])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_values_are_the_papers(kind, method):
    if kind == "linen":
        apply_fn, variables = Net().apply, Net().init(jax.random.key(0), X)
    else:
        apply_fn, variables = pj.from_nnx(Own())
    peft = pj.adapt(apply_fn, variables, X, rules={"a:output": method})
    p = random_like(peft.init(jax.random.key(1)))
    params = jax.tree.map(np.asarray, variables["params"])
    found = jax.jit(peft.apply)(variables, p, X)
    close(found, by_hand(method, params, jax.tree.map(np.asarray, p["a:output"]), X))
    width = {"input": 6, "output": 4}[method.side]
    assert sum(peft.trainable.values()) == method.count(Layer(6, 4, "output"))
    assert method.count(Layer(6, 4, "output")) == (
        width * method.rank + method.rank + method.rank * 4 + 4
    )


def test_beside_adapters_of_weights():
    variables = Net().init(jax.random.key(0), X)
    rules = {"a:output": SERIAL, ".*/kernel": pj.LoRA(rank=2, alpha=3.0)}
    peft = pj.adapt(Net().apply, variables, X, rules=rules)
    adapters = random_like(peft.init(jax.random.key(1)))
    assert set(adapters) == {"a:output", "a/kernel", "b/kernel"}
    weights = {path: p for path, p in adapters.items() if "output" not in path}
    inner = pj.adapt(Net().apply, variables, X, rules={".*/kernel": rules[".*/kernel"]})
    merged = jax.tree.map(np.asarray, inner.merge(variables, weights)["params"])
    p = jax.tree.map(np.asarray, adapters["a:output"])
    found = jax.jit(peft.apply)(variables, adapters, X)
    close(found, by_hand(SERIAL, merged, p, X))


def test_what_is_refused():
    variables = Net().init(jax.random.key(0), X)

    def adapt(rules):
        return pj.adapt(Net().apply, variables, X, rules=rules)

    with pytest.raises(ValueError, match="matches no output of a module"):
        adapt({"c:output": SERIAL})
    with pytest.raises(ValueError, match="expected the path of a module"):
        adapt({"a/kernel": SERIAL})
    with pytest.raises(ValueError, match="expected the path of weights"):
        adapt({"a:output": pj.LoRA(rank=2, alpha=2.0)})
    with pytest.raises(ValueError, match="expected 1 <= rank <= 6"):
        adapt({"a:output": pj.Bottleneck(rank=7)})
    peft = adapt({"a:output": SERIAL})
    with pytest.raises(pj.NotMergeable, match="no weight can hold"):
        peft.merge(variables, peft.init(jax.random.key(0)))


def test_houlsbys_places_in_a_bert():
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=6,
    )
    ids = jnp.ones((1, 4), jnp.int32)
    model = Bert(config, head=3)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)
    rules = presets.rules("bert", SERIAL, head=False)
    peft = pj.adapt(model.apply, variables, ids, rules=rules)
    assert [site.path for site in peft.sites] == [
        f"layers_{i}/{part}:output"
        for i in range(2)
        for part in ("attention/output", "output")
    ]
    with pytest.raises(ValueError, match="write its rule"):
        presets.rules("bert", PARALLEL)
