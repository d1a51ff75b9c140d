"""LoraHub's search: the released settings, and weights that fit the examples."""

import csv
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("nevergrad", reason="needs peftjax[search]")

import peftjax as pj
from experiments import published
from peftjax.convert import combine
from peftjax.search import weigh


def test_settings_are_the_published_ones():
    given = {k: v.default for k, v in inspect.signature(weigh).parameters.items()}
    file = Path(published.__file__).parent / "published/hparams_llm_composition.csv"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    told = {row["key"]: row["value"] for row in rows if row["experiment"] == "LoraHub"}
    search = (
        "nevergrad NGOpt, budget {budget}, start 0, bounds [-{bound},{bound}], "
        "seed {seed}"
    )
    assert told["optimiser"] == search.format(**given)
    assert told["objective"].endswith("+ {penalty}*mean(|w|)".format(**given))


def test_weights_of_modules_that_were_mixed_are_found():
    keys = jax.random.split(jax.random.key(0), 5)
    method, x = pj.LoRA(rank=2, alpha=2.0), jax.random.normal(keys[4], (20, 6))

    def module(a, b):
        return method, {
            "a": jax.random.normal(a, (6, 2)),
            "b": jax.random.normal(b, (2, 3)),
        }

    modules = [module(*keys[:2]), module(*keys[2:4])]

    @jax.jit
    def outputs(weights):
        _, p = combine.lorahub(modules, weights)
        return x @ p["a"] @ p["b"]

    wanted = outputs(jnp.array([1.0, -0.5]))
    called = []

    def loss(weights):
        called.append(weights)
        return float(jnp.square(outputs(jnp.asarray(weights)) - wanted).mean())

    found = weigh(loss, 2, penalty=0.0, budget=100)
    # The product of sums is the same for w and -w.
    signed = found.weights * np.sign(found.weights[0])
    assert np.abs(signed - np.array([1, -0.5])).max() < 0.3
    assert len(called) == len(found.tried) == len(found.objectives) == 100
    assert not found.tried[0].any() and np.abs(found.tried).max() <= 1.5
    again = weigh(loss, 2, penalty=0.0, budget=100)
    np.testing.assert_array_equal(found.tried, again.tried)


def test_what_cannot_be_searched():
    with pytest.raises(ValueError, match="at least one module"):
        weigh(float, 0)
    with pytest.raises(FloatingPointError, match=r"loss of weights \[0.0, 0.0\]: nan"):
        weigh(lambda weights: float("nan"), 2)
