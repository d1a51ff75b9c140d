"""LoRA against the torch library: values, gradients, merged weights, initial states."""

import json
from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.lora import LoRA
from tests.helpers.goldens import (
    KEY,
    check_dense,
    close,
    conv_case,
    conv_rows,
    gradients,
    load,
)

CHECKED = (pj.LoRA(rank=3, alpha=7.0, rs=True, dropout=0.3),)


def lora_of(layer, **options) -> LoRA:
    config = json.loads(str(layer["config_json"]))
    return LoRA(
        config["r"],
        alpha=config["lora_alpha"],
        rs=config.get("use_rslora", False),
        **options,
    )


@pytest.mark.parametrize("name", ["linear", "linear_nobias", "linear_rslora"])
def test_linear(name):
    layer = load(f"lora_peft_{name}")
    method = lora_of(layer)
    assert method.alpha != method.rank and method.rs == ("rslora" in name)
    p = {"a": layer["state.lora_A.weight"].T, "b": layer["state.lora_B.weight"].T}
    check_dense(method, p, layer)
    found = gradients(method, p, layer)
    close(found["a"], layer["grad.lora_A.weight"].T)
    close(found["b"], layer["grad.lora_B.weight"].T)
    assert sum(v.size for v in p.values()) == method.count(Layer(24, 16))


def test_conv():
    layer = load("lora_peft_conv2d_k3")
    method = lora_of(layer)
    rank = method.rank

    def ours(a, b):
        rows = a.reshape(rank, -1).T
        return {"a": conv_rows(rows, layer["weight"]), "b": b.reshape(-1, rank).T}

    p = ours(layer["state.lora_A.weight"], layer["state.lora_B.weight"])
    peft, variables, x = conv_case(method, layer)
    y = layer["y"].transpose(0, 2, 3, 1)
    close(peft.apply(variables, {"kernel": p}, x), y)
    merged = peft.merge(variables, {"kernel": p})
    close(merged["params"]["kernel"].transpose(3, 2, 0, 1), layer["merged_weight"])
    close(merged["params"]["bias"], layer["merged_bias"])

    def loss(p):
        t = layer["cotangent"].transpose(0, 2, 3, 1)
        return jnp.sum(peft.apply(variables, {"kernel": p}, x) * t)

    found = jax.grad(loss)(jax.tree.map(jnp.asarray, p))
    expected = ours(layer["grad.lora_A.weight"], layer["grad.lora_B.weight"])
    jax.tree.map(close, found, expected)


def test_embedding():
    layer = load("lora_peft_embedding")
    method = lora_of(layer)

    def ours(kind):
        name = f"{kind}.lora_embedding_"
        return {"a": layer[name + "A"].T, "b": layer[name + "B"].T}

    p = jax.tree.map(jnp.asarray, ours("state"))
    model = nn.Embed(*layer["weight"].shape)
    variables = {"params": {"embedding": layer["weight"]}}
    x = layer["x"].astype(np.int32)
    peft = pj.adapt(model.apply, variables, x, rules={"embedding": method}, strict=True)
    close(peft.apply(variables, {"embedding": p}, x), layer["y"])
    merged = peft.merge(variables, {"embedding": p})
    close(merged["params"]["embedding"], layer["merged_weight"])

    def loss(p):
        y = peft.apply(variables, {"embedding": p}, x)
        return jnp.sum(y * layer["cotangent"])

    jax.tree.map(close, jax.grad(loss)(p), ours("grad"))
    fresh = peft.init(KEY)["embedding"]
    init = ours("init_state")
    assert not fresh["a"].any() and not init["a"].any()
    assert 0.5 < fresh["b"].std() < 1.5 and 0.5 < init["b"].std() < 1.5


def test_initial_state():
    layer = load("lora_peft_linear")
    fresh = lora_of(layer).init(KEY, Layer(24, 16))
    bound = 1 / sqrt(24)
    for a, b in (
        (fresh["a"], fresh["b"]),
        (layer["init_state.lora_A.weight"], layer["init_state.lora_B.weight"]),
    ):
        assert 0.8 * bound < np.abs(a).max() <= bound and not np.any(b)
    y = lora_of(layer)(fresh, layer["x"], layer["weight"].T, layer["bias"])
    close(y, layer["y_at_init"])
