"""DoRA against the torch library."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.dora import DoRA
from tests.helpers.goldens import KEY, arrays, check_dense, close, gradients, load

CHECKED = (pj.DoRA(rank=4, alpha=7.0),)


def test_torch_library():
    layer = load("dora_peft_linear")
    config = json.loads(str(layer["config_json"]))
    method = DoRA(config["r"], alpha=config["lora_alpha"])
    assert method.alpha != method.rank

    def ours(kind):
        names = {"a": "lora_A.weight", "b": "lora_B.weight"}
        p = {name: layer[f"{kind}.{torch}"].T for name, torch in names.items()}
        magnitude = layer.get(f"{kind}.lora_magnitude_vector")
        if magnitude is None:
            magnitude = layer[f"{kind}.lora_magnitude_vector.weight"]
        return {**p, "magnitude": magnitude}

    p = ours("state")
    check_dense(method, p, layer)
    found, expected = gradients(method, p, layer), ours("grad")
    assert set(found) == set(expected)
    for name in found:
        close(found[name], expected[name])
    site = Layer(24, 16, kernel=jnp.asarray(layer["weight"].T))
    fresh = method.init(KEY, site)
    close(fresh["magnitude"], ours("init_state")["magnitude"])
    assert not fresh["b"].any()
    x, kernel, bias = layer["x"], layer["weight"].T, layer["bias"]
    close(method(fresh, x, kernel, bias), layer["y_at_init"])
    assert method.count(site) == sum(value.size for value in p.values())


def test_column_norm_from_low_rank_terms():
    method = DoRA(2, alpha=6.0)
    a, b, kernel = arrays((9, 2), (2, 7), (9, 7))
    exact = np.linalg.norm(
        np.float64(kernel) + 3 * np.float64(a) @ np.float64(b), axis=0
    )
    close(method._norm({"a": a, "b": b}, kernel), exact)
    p = {"a": a, "b": b, "magnitude": jnp.arange(1.0, 8.0)}
    merged = method(p, jnp.eye(9), kernel)
    close(jnp.linalg.norm(merged, axis=0), p["magnitude"])


def test_the_norm_is_a_constant_in_the_gradient():
    method = DoRA(2, alpha=6.0)
    x, a, b, kernel = arrays((5, 9), (9, 2), (2, 7), (9, 7))
    p = {"a": a, "b": b, "magnitude": jnp.ones(7)}
    norm = method._norm(p, kernel)

    def fixed(p):
        return jnp.sum(x @ (kernel + 3.0 * p["a"] @ p["b"]) * p["magnitude"] / norm)

    found = jax.grad(lambda p: method(p, x, kernel).sum())(p)
    expected = jax.grad(fixed)(p)
    for name in p:
        close(found[name], expected[name])


def test_a_dead_unit_stays_dead():
    method = DoRA(2, alpha=6.0)
    kernel = arrays((9, 7))[0].at[:, 3].set(0)
    p = method.init(KEY, Layer(9, 7, kernel=kernel))
    close(method(p, jnp.eye(9), kernel), kernel)


def test_no_matrix_of_the_kernels_size_squared_or_rebuilt():
    method = DoRA(2, alpha=6.0)
    x, kernel = arrays((7, 64), (64, 48))
    p = method.init(KEY, Layer(64, 48, kernel=kernel))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: method(p, x, kernel).sum()))(p)
    products = [
        e.outvars[0].aval.shape for e in jaxpr.eqns if "dot" in str(e.primitive)
    ]
    assert (64, 48) not in products and (64, 64) not in products and (7, 2) in products


def test_bad_settings():
    with pytest.raises(ValueError, match="rank=0"):
        DoRA(0, alpha=1.0)
    with pytest.raises(ValueError, match="fc/kernel: DoRA.rank=6."):
        DoRA(6, alpha=1.0).check(Layer(8, 5, path="fc/kernel"))
