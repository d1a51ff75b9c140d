"""LoKr against the torch library: values, gradients, merged weights, initial states."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.lokr import divisors
from tests.helpers.goldens import KEY, arrays, check_dense, close, gradients, load

CHECKED = (pj.LoKr(rank=1, alpha=3.0), pj.LoKr(1, alpha=3.0, decompose_both=True))
LAYER = Layer(24, 16)


def lokr_of(layer) -> pj.LoKr:
    config = json.loads(str(layer["config_json"]))
    return pj.LoKr(
        config["r"],
        alpha=config["alpha"],
        factor=config.get("decompose_factor", -1),
        decompose_both=config.get("decompose_both", False),
    )


def ours(layer, prefix):
    """Return the arrays by our names: transposed, and so the factors exchanged."""
    there = {"w1": "w1", "w1_a": "w1_b", "w1_b": "w1_a"}
    there |= {name.replace("1", "2"): v.replace("1", "2") for name, v in there.items()}
    keys = {name: f"{prefix}.lokr_{key}" for name, key in there.items()}
    return {name: layer[key].T for name, key in keys.items() if key in layer}


@pytest.mark.parametrize("case", ["full", "low", "both"])
def test_torch_library(case):
    layer = load(f"lokr_peft_{case}")
    method, p = lokr_of(layer), ours(layer, "state")
    assert method.alpha != method.rank
    assert {name: value.shape for name, value in p.items()} == method.shapes(LAYER)
    check_dense(method, p, layer)
    found, expected = gradients(method, p, layer), ours(layer, "grad")
    for name in p:
        close(found[name], expected[name])
    assert method.count(LAYER) == sum(value.size for value in p.values())


@pytest.mark.parametrize("case", ["full", "low", "both"])
def test_initial_distribution(case):
    layer = load(f"lokr_peft_{case}")
    fresh, theirs = lokr_of(layer).init(KEY, LAYER), ours(layer, "init_state")
    for name, value in theirs.items():
        assert (value == 0).all() == bool((fresh[name] == 0).all())
    wide = pj.LoKr(4, alpha=1.0).init(KEY, Layer(4096, 4096))
    for name, rows in (("w2_a", 64), ("w2_b", 4)):
        assert 0.9 / rows**0.5 < np.abs(wide[name]).max() <= 1 / rows**0.5


def test_the_delta_is_the_product():
    x, kernel, w1, w2 = arrays((5, 12), (12, 20), (3, 4), (4, 5))
    method = pj.LoKr(9, alpha=4.5)
    delta = method({"w1": w1, "w2": w2}, x, kernel) - x @ kernel
    close(delta, 0.5 * x @ jnp.kron(w1, w2))


def test_divisors_are_those_of_the_torch_library():
    found = [divisors(768), divisors(24), divisors(24, 6), divisors(24, 7)]
    assert found == [(24, 32), (4, 6), (6, 4), (4, 6)]
    assert divisors(127) == (1, 127) and divisors(128, 4) == (4, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, "rank=0"),
        ({"rank": 2, "alpha": 0.0}, "other than 0"),
        ({"rank": 2, "alpha": 1.0, "factor": 0}, "factor=0"),
        ({"rank": 2, "alpha": 1.0, "decompose_both": 1}, "True or False"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        pj.LoKr(**settings)
