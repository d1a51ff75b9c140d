"""GLoRA: the forms that other methods are, and what it refuses."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.glora import GLoRA
from tests.helpers.goldens import KEY, arrays, check_dense, close, random_like

CHECKED = (pj.GLoRA(rank=2),)


def test_a_created_bias_does_not_merge():
    method = GLoRA(rank=2, a="none", b="none", c="none", d="vector", e="vector")
    x, kernel = arrays((3, 6), (6, 5))
    model = nn.Dense(5, use_bias=False)
    variables = {"params": {"kernel": kernel}}
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": method})
    adapters = random_like(peft.init(KEY))
    close(peft.apply(variables, adapters, x), x @ kernel + adapters["kernel"]["e"])
    with pytest.raises(pj.NotMergeable, match="kernel: GLoRA.*no bias"):
        peft.merge(variables, adapters)
    unused = GLoRA(rank=2, a="none", b="none", c="none", d="vector", e="none")
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": unused})
    merged = peft.merge(variables, random_like(peft.init(KEY)))
    close(merged["params"]["kernel"], kernel)


def test_special_cases():
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    off = dict.fromkeys("acde", "none")
    a, b, v, c = arrays((6, 2), (2, 5), (5,), (6,))
    lora = GLoRA(2, **off)({"b_in": a, "b_out": b}, x, kernel, bias)
    close(lora, x @ kernel + x @ a @ b + bias)
    ssf = GLoRA(2, a="vector", b="none", c="none")
    y = ssf({"a": v, "d": v, "e": b[0]}, x, kernel, bias)
    close(y, (1 + v) * (x @ kernel + bias) + b[0])
    prompt = GLoRA(2, a="none", b="none", c="vector", d="none", e="none")
    close(prompt({"c": c}, x, kernel, bias), (x + c) @ kernel + bias)


def test_one_output():
    x, kernel, bias = arrays((4, 5), (5, 1), (1,))
    method = GLoRA(rank=1)
    p = random_like(method.init(KEY, Layer(5, 1)))
    k = kernel * (1 + p["a_in"] @ p["a_out"]) + p["b_in"] @ p["b_out"]
    b = bias * (1 + p["d"]) + p["e"] + (p["c_in"] @ p["c_out"]) @ kernel
    y = method(p, x, kernel, bias)
    assert y.shape == (4, 1)
    close(y, x @ k + b)


def test_matrix_semantics():
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    off = dict.fromkeys("cde", "none")
    method = GLoRA(2, **off, semantics="matrix")
    fresh = method.init(KEY, Layer(6, 5))
    assert fresh["a_out"].shape == (2, 6) and method.count(Layer(6, 5)) == 24 + 22
    p = random_like(fresh)
    close(method(fresh, x, kernel, bias), x @ kernel + bias)
    moved = x + x @ p["a_in"] @ p["a_out"]
    y = moved @ kernel + x @ p["b_in"] @ p["b_out"] + bias
    layer = {"x": x, "weight": np.asarray(kernel.T), "bias": bias, "y": y}
    check_dense(method, p, layer)


@pytest.mark.parametrize("a", ["vector", "constant", "none"])
def test_no_kernel_sized_matrix_without_factors_of_a(a):
    """The gradient of a product with K itself is not taken: K is never rebuilt."""
    method = GLoRA(rank=2, a=a)
    p = method.init(KEY, Layer(64, 48))
    x, kernel, bias = arrays((7, 64), (64, 48), (48,))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: method(p, x, kernel, bias).sum()))(p)
    shapes = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    assert (64, 48) not in shapes and (7, 48) in shapes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": (2, 2)}, "one integer >= 1, or three"),
        ({"rank": 2.0}, "one integer >= 1, or three"),
        ({"rank": (2, 1.5, 2)}, "one integer >= 1, or three"),
        ({"a": "matrix"}, r"a='matrix'.*'lora', 'vector', 'constant', 'none'"),
        ({"c": "constant"}, r"c='constant'.*'lora', 'vector', 'none'"),
        ({"d": "lora"}, r"d='lora'.*'vector', 'constant', 'none'"),
        ({"semantics": "matrix", "a": "vector"}, "element-wise"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GLoRA(**{"rank": 2, **settings})


def test_ranks_from_an_array():
    counted = GLoRA(np.int64(2)), GLoRA(np.array(2)), GLoRA([1, np.int64(2), 3])
    assert counted == (GLoRA(2), GLoRA(2), GLoRA((1, 2, 3)))
    assert len({*counted, pj.LoRA(np.int64(2), alpha=1.0)}) == 3
