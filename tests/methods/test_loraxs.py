"""LoRA-XS against the authors' code."""

import jax.numpy as jnp
import numpy as np

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, check_dense, close, gradients, load

CHECKED = (pj.LoRAXS(rank=4, alpha=6.0),)
METHOD = pj.LoRAXS(rank=3, alpha=5.0)


def test_authors_code():
    layer = load("loraxs_official")
    p = {name: layer[name] for name in ("a", "r", "b")}
    check_dense(METHOD, p, layer)
    close(gradients(METHOD, p, layer)["r"], layer["grad.r"])
    assert METHOD.count(Layer(12, 10)) == layer["grad.r"].size


def test_the_factors_are_the_authors_up_to_signs():
    layer = load("loraxs_official")
    kernel = jnp.asarray(layer["weight"].T)
    p = METHOD.init(KEY, Layer(12, 10, kernel=kernel))
    signs = np.sign(np.sum(np.asarray(p["a"]) * layer["a"], axis=0))
    close(p["a"] * signs, layer["a"])
    close(p["b"] * signs[:, None], layer["b"])
    wide = pj.LoRAXS(64, alpha=1.0).init(KEY, Layer(80, 70, kernel=jnp.ones((80, 70))))
    assert abs(np.std(wide["r"]) / 1e-5 - 1) < 0.05
    assert 0.5e-5 < np.std(layer["start"]) < 2e-5
