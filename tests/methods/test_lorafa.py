"""LoRA-FA: LoRA's formula and start, with the gradient of B alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, check_dense, close, gradients, load

CHECKED = (pj.LoRAFA(rank=3, alpha=7.0, rs=True, dropout=0.3),)


def test_values_gradient_and_start_are_those_of_lora():
    layer = load("lora_peft_linear_rslora")
    config = json.loads(str(layer["config_json"]))
    settings = {"alpha": config["lora_alpha"], "rs": config["use_rslora"]}
    method = pj.LoRAFA(config["r"], **settings)
    p = {"a": layer["state.lora_A.weight"].T, "b": layer["state.lora_B.weight"].T}
    check_dense(method, p, layer)
    close(gradients(method, p, layer)["b"], layer["grad.lora_B.weight"].T)
    one = Layer(24, 16)
    start, theirs = method.init(KEY, one), pj.LoRA(config["r"], **settings)
    for name, value in theirs.init(KEY, one).items():
        np.testing.assert_array_equal(start[name], value)
    assert method.count(one) == start["b"].size


def test_a_step_moves_b_alone():
    weights = {"k": jnp.ones((6, 4))}
    peft = pj.adapt(
        lambda v, x: x @ v["k"], weights, jnp.ones((2, 6)), rules={"k": CHECKED[0]}
    )
    adapters = peft.init(jax.random.key(0), weights)
    trainable, frozen = peft.partition(adapters)
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == 3 * 4
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) == 6 * 3


def test_an_embedding_is_refused():
    table = {"embedding": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match="LoRAFA"):
        pj.adapt(
            lambda v, ids: v["embedding"][ids],
            table,
            jnp.zeros((2, 3), int),
            rules={"embedding": pj.LoRAFA(rank=2, alpha=2.0)},
        )
