"""PiSSA and OLoRA against the torch library: starts, values, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, close
from tests.helpers.torch_layer import TorchLayer, check_torch_layer

CHECKED = (pj.PiSSA(rank=4, alpha=6.0),)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("pissa", pj.PiSSA(rank=3, alpha=5.0)),
        ("olora", pj.OLoRA(rank=3, alpha=5.0, rs=True)),
    ],
)
def test_torch_library(name, method):
    case = check_torch_layer(name, start=False)
    assert case.method == method
    start, theirs = method.init(KEY, case.layer), case.arrays("init_state")
    # A singular vector may be turned over, in A and in B.
    signs = np.sign(np.sum(np.asarray(start["a"]) * theirs["a"], axis=0))
    close(start["a"] * signs, theirs["a"])
    close(start["b"] * signs[:, None], theirs["b"])


@pytest.mark.parametrize("method", [pj.PiSSA(2, alpha=3.0), pj.OLoRA(2, alpha=3.0)])
def test_a_lora_of_twice_the_rank_is_the_same(method):
    case = TorchLayer("pissa")
    x, kernel, bias = case.found["x"], case.found["weight"].T, case.found["bias"]
    p = method.init(KEY, Layer(*kernel.shape, "dense", jnp.asarray(kernel)))
    p = {**p, "a": p["a"] + 0.5, "b": 0.7 * p["b"]}
    twice = {"a": jnp.concatenate([p["a"], p["a0"]], 1)}
    twice["b"] = jnp.concatenate([p["b"], -p["b0"]])
    lora = pj.LoRA(rank=4, alpha=2 * method.alpha)
    close(method(p, x, kernel, bias), lora(twice, x, kernel, bias))


def test_a_start_that_needs_the_weight_says_so():
    with pytest.raises(ValueError, match="starts from the weight"):
        pj.PiSSA(2, alpha=1.0).init(jax.random.key(0), Layer(4, 4))
    with pytest.raises(ValueError, match="alpha=-1"):
        pj.PiSSA(2, alpha=-1.0)
