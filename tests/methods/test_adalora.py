"""AdaLoRA against the torch library: what a layer computes, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.affine import merge_layer
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, close, load

pytestmark = pytest.mark.slow

SETTINGS = {"rank": 3, "alpha": 5.0, "target_rank": 1, "total_steps": 20}
CHECKED = (pj.AdaLoRA(**SETTINGS, dropout=0.1),)


def of(golden, when, layer):
    """Return method and arrays of one layer of the reference."""
    config = json.loads(str(golden["settings"]))
    method = pj.AdaLoRA(config["init_r"], config["lora_alpha"], config["target_r"])
    a, b, e = (golden[f"{when}.{layer}.{kind}"] for kind in "abe")
    return method, {"a": a.T, "b": b.T, "e": e[:, 0], "pruned": jnp.zeros(len(e))}


def test_the_merged_layers_are_the_torch_library_s():
    golden = load("adalora_peft")
    for layer in ("first", "second", "last"):
        method, p = of(golden, "end", layer)
        assert (p["e"] == 0).any() and method.alpha != method.rank
        kernel, bias = (golden[f"base.{layer}.{x}"].T for x in ("weight", "bias"))
        merged, _ = merge_layer(method, p, kernel, bias)
        close(merged, golden[f"merged.{layer}"].T)
        x = np.random.default_rng(0).normal(size=(4, len(kernel))).astype(np.float32)
        close(method(p, x, kernel, bias), x @ golden[f"merged.{layer}"].T + bias)


def test_the_start_is_the_torch_library_s():
    golden = load("adalora_peft")
    method, theirs = of(golden, "start", "second")
    ours = method.init(KEY, Layer(16, 16))
    assert not theirs["e"].any() and not ours["e"].any()
    wide = method.init(KEY, Layer(4096, 4096))
    for p in (theirs, wide):
        for name in "ab":
            assert np.std(p[name]) == pytest.approx(0.02, rel=0.2)
    assert wide["mask"].all() and not wide["pruned"].any()
    trained = {name: value for name, value in ours.items() if name in "abe"}
    assert method.count(Layer(16, 16)) == sum(v.size for v in trained.values())


def test_what_was_pruned_has_no_part():
    method = pj.AdaLoRA(**SETTINGS)
    p = method.init(KEY, Layer(4, 5))
    p |= {"e": jnp.array([0.5, -2.0, 1.0]), "pruned": jnp.array([0.0, -2.0, 1.0])}
    x = jnp.ones((2, 4))
    alone = {**p, "a": p["a"].at[:, 1:].set(jnp.nan)[:, :1], "b": p["b"][:1]}
    first = method.scale * 0.5 * (x @ alone["a"]) @ alone["b"]
    close(method(p, x, jnp.zeros((4, 5))), first)
    grown = {**p, "e": p["e"].at[1].add(0.25)}  # from zero on
    more = method(grown, x, jnp.zeros((4, 5))) - first
    close(more, method.scale * 0.25 * (x @ p["a"][:, 1:2]) @ p["b"][1:2])


@pytest.mark.parametrize("norm", ["frobenius", "squared"])
def test_the_penalty_is_zero_for_orthonormal_triplets(norm):
    method = pj.AdaLoRA(**SETTINGS, penalty_weight=0.5, penalty_norm=norm)
    p = {"a": jnp.eye(4, 3), "b": jnp.eye(3, 5)}
    value, slope = jax.value_and_grad(method.penalty)(p)
    assert value < 1e-6 and all(jnp.isfinite(g).all() for g in slope.values())
    twice = {**p, "a": 2 * p["a"]}  # AᵀA - I = 3 I
    expected = 27.0 if norm == "squared" else 27.0**0.5
    assert method.penalty(twice) == pytest.approx(0.5 * expected, rel=1e-5)
    none = pj.AdaLoRA(**SETTINGS, penalty_weight=0.0)
    assert none.penalty(p) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"target_rank": 4}, r"target_rank=4\): expected at most rank=3"),
        ({"beta1": 1.0}, "0 < beta1 < 1"),
        ({"beta2": 0}, "0 < beta2 < 1"),
        ({"every": 0}, "every=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"warmup": 12, "final": 0.4}, r"warmup \+ final, 12 \+ 8"),
        ({"penalty_norm": "l1"}, "one of 'frobenius', 'squared'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        pj.AdaLoRA(**{**SETTINGS, **settings})
