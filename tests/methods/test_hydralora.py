"""HydraLoRA against the released code, and the facts of its specification."""

import json
from itertools import permutations
from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.hydralora import HydraLoRA, choose_heads
from tests.helpers.goldens import (
    KEY,
    arrays,
    check_dense,
    close,
    gradients,
    load,
    random_like,
)

pytestmark = pytest.mark.slow

CHECKED = (pj.HydraLoRA(rank=2, heads=3, alpha=5.0),)


def read(name: str):
    layer = load(name)
    meta = json.loads(str(layer["meta_json"]))
    heads, alpha = meta["N"], meta["lora_alpha"]
    return layer, HydraLoRA(rank=meta["r"], alpha=alpha, heads=heads)


def ours(layer, kind: str, heads: int):
    return {
        "a": layer[f"{kind}.lora_A.weight"].T,
        "b": np.stack([layer[f"{kind}.lora_B{i}.weight"].T for i in range(heads)]),
        "router": layer[f"{kind}.lora_route.weight"].T,
    }


@pytest.fixture
def case():
    method = HydraLoRA(rank=2, alpha=6.0, heads=3)
    p = random_like(method.init(KEY, Layer(6, 5)))
    return method, p, arrays((4, 6), (6, 5), (5,))


@pytest.mark.parametrize("name", ["N3_r4", "init_grads"])
def test_released_layer(name):
    layer, method = read(f"hydralora_official_{name}")
    assert method.alpha != method.rank
    p = ours(layer, "state", method.heads)
    check_dense(method, p, layer, merge=False)
    expected = ours(layer, "grad", method.heads)
    jax.tree.map(close, gradients(method, p, layer), expected)
    if "route_weights" in layer:
        close(method.gates(p, layer["x"]), layer["route_weights"])


def test_initial_state():
    layer, method = read("hydralora_official_N3_r4")
    theirs = ours(layer, "init", method.heads)
    fresh = method.init(KEY, Layer(24, 16))
    bound = 1 / sqrt(24)
    for p in (theirs, fresh):
        assert not np.any(p["b"])
        for name in ("a", "router"):
            assert 0.8 * bound < np.abs(p[name]).max() <= bound
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, theirs)
    x, kernel, bias = layer["x"], layer["weight"].T, layer["bias"]
    assert (method(fresh, x, kernel, bias) == x @ kernel + bias).all()
    grads = gradients(method, fresh, layer)
    assert not grads["a"].any() and not grads["router"].any() and grads["b"].any()


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:])
def test_heads_permuted_with_router_columns(case, order):
    method, p, (x, kernel, bias) = case
    order = np.array(order)
    moved = {**p, "b": p["b"][order], "router": p["router"][:, order]}
    close(method(moved, x, kernel, bias), method(p, x, kernel, bias))
    unmoved = {**p, "b": p["b"][order]}
    gap = method(unmoved, x, kernel, bias) - method(p, x, kernel, bias)
    assert jnp.abs(gap).max() > 1e-2


def test_is_the_sum_over_heads(case):
    method, p, (x, kernel, bias) = case
    g = method.gates(p, x)
    np.testing.assert_allclose(g.sum(-1), 1, rtol=1e-6)
    y = x @ kernel + bias
    for i in range(3):
        y = y + 3.0 * g[:, i : i + 1] * (x @ p["a"] @ p["b"][i])
    close(method(p, x, kernel, bias), y)
    close(method(p, x[:, None], kernel, bias)[:, 0], y)
    close(method(p, x[0], kernel, bias), y[0])


def test_low_rank_router(case):
    _, p, (x, kernel, bias) = case
    method = HydraLoRA(rank=2, alpha=6.0, router_input="lowrank")
    assert method.init(KEY, Layer(6, 5))["router"].shape == (2, 3)
    q = {**p, "router": p["router"][:2]}
    close(method.gates(q, x), jax.nn.softmax(x @ p["a"] @ q["router"]))
    full = {**q, "router": p["a"] @ q["router"]}
    wanted = HydraLoRA(rank=2, alpha=6.0)(full, x, kernel, bias)
    close(method(q, x, kernel, bias), wanted)
    assert method.count(Layer(6, 5)) == 2 * 6 + 3 * 2 * 5 + 2 * 3


def test_one_head_is_lora():
    method = HydraLoRA(rank=2, alpha=6.0, heads=1)
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    p = random_like(method.init(KEY, Layer(6, 5)))
    lora = pj.LoRA(2, alpha=6.0)({"a": p["a"], "b": p["b"][0]}, x, kernel, bias)
    close(method(p, x, kernel, bias), lora)
    layer = {"x": x, "weight": np.asarray(kernel.T), "bias": bias, "y": lora}
    check_dense(method, p, layer)
    assert method.count(Layer(6, 5)) == pj.LoRA(2, alpha=6.0).count(Layer(6, 5))
    assert method.frozen == ("router",) and HydraLoRA(2, alpha=6.0).frozen == ()


def test_gates_for_a_plan_without_gated_sites_are_refused():
    v, x = {"kernel": jnp.ones((3, 4))}, jnp.ones((2, 3))
    rules = {"kernel": pj.LoRA(2, 3.0)}
    peft = pj.adapt(lambda v, x: x @ v["kernel"], v, x, rules=rules)
    adapters = peft.init(jax.random.key(0))
    peft.merge(v, adapters, gates=peft.mean_gates(v, adapters, x))  # of no site
    for gates in ("uniform", jnp.ones(3), {"kernel": jnp.ones(3)}):
        with pytest.raises(ValueError, match=r"gates: .*(no site|unexpected)"):
            peft.merge(v, adapters, gates=gates)


@pytest.mark.parametrize("gates", ["uniform", [0.2, 0.5, 0.3]])
def test_merge_with_constant_gates(case, gates):
    method, p, (x, kernel, bias) = case
    model = nn.Dense(5)
    variables = {"params": {"kernel": kernel, "bias": bias}}
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": method})
    with pytest.raises(pj.NotMergeable, match="kernel: HydraLoRA .*gates"):
        peft.merge(variables, {"kernel": p})
    g = jnp.full(3, 1 / 3) if gates == "uniform" else jnp.array(gates)
    mean_b = jnp.einsum("n,nrd->rd", g, p["b"])
    merged = peft.merge(variables, {"kernel": p}, gates=gates)
    close(merged["params"]["kernel"], kernel + 3.0 * p["a"] @ mean_b)
    close(merged["params"]["bias"], bias)
    close(model.apply(merged, x), method(p, x, kernel, bias, gates=g))


def test_mean_gate_over_data(case):
    method, p, (x, kernel, bias) = case
    variables = {"params": {"kernel": kernel, "bias": bias}}
    peft = pj.adapt(nn.Dense(5).apply, variables, x, rules={"kernel": method})
    gates = {"kernel": method.gates(p, x).mean(0)}
    merged = peft.merge(variables, {"kernel": p}, gates=gates)
    mean_b = jnp.einsum("n,nrd->rd", gates["kernel"], p["b"])
    close(merged["params"]["kernel"], kernel + 3.0 * p["a"] @ mean_b)


@pytest.mark.parametrize("per_head", [False, True])
def test_dropout(per_head):
    method = HydraLoRA(2, 2, alpha=6.0, dropout=0.5, dropout_per_head=per_head)
    x = jnp.ones((300, 1))
    p = {"a": jnp.ones((1, 2)), "b": jnp.zeros((2, 2, 2)), "router": jnp.zeros((1, 2))}
    p["b"] = p["b"].at[0, 0, 0].set(1.0).at[1, 0, 1].set(1.0)  # head i writes output i
    y = method(p, x, jnp.zeros((1, 2)), key=KEY)
    assert set(np.unique(y)) == {0.0, 3.0}  # s · gate · x / (1 - rate)
    assert bool((y[:, 0] == y[:, 1]).all()) != per_head
    assert (method(p, x, jnp.zeros((1, 2))) == 1.5).all()
    # the router reads the input without dropout
    p["router"] = jnp.array([[5.0, 0.0]])
    y = method(p, x, jnp.zeros((1, 2)), key=KEY)
    assert len(np.unique(np.round(y[:, 0], 4))) == 2


@pytest.mark.parametrize(
    ("heads", "rank", "ab", "router"),
    [(3, 8, 8_388_608, 786_432), (10, 8, 23_068_672, 2_621_440)],
)
def test_published_counts_on_query_and_value(heads, rank, ab, router):
    method, site = HydraLoRA(rank, alpha=32.0, heads=heads), Layer(4096, 4096)
    assert 64 * method.count(site, router=False) == ab
    assert 64 * (method.count(site) - method.count(site, router=False)) == router


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"heads": 0}, "heads=0"),
        ({"router_input": "output"}, "'input', 'lowrank'"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HydraLoRA(**{"rank": 2, "alpha": 4.0, **settings})
    with pytest.raises(ValueError, match="fc/kernel: HydraLoRA.rank=6."):
        HydraLoRA(6, alpha=4.0).check(Layer(8, 5, path="fc/kernel"))


@pytest.mark.parametrize("tasks", [2, 4])
def test_choose_heads_finds_distinct_vocabularies(tasks):
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [["".join(rng.choice(letters, 6)) for _ in range(12)] for _ in range(tasks)]
    texts = [" ".join(rng.choice(words[i % tasks], 8)) for i in range(30 * tasks)]
    heads, curve = choose_heads(texts, max_heads=8)
    assert heads == tasks and curve.shape == (8,)
    assert (choose_heads(texts, max_heads=8).curve == curve).all()
    assert (np.diff(curve) < 0).all()


def test_choose_heads_refuses_too_few_texts():
    with pytest.raises(ValueError, match="of 5 texts"):
        choose_heads(["a", "b", "c", "d", "e"])


@pytest.mark.realdata
@pytest.mark.parametrize(
    "tasks",
    [("cola", "sst2", "mrpc"), ("sst2", "mrpc", "qnli"), ("cola", "sst2", "stsb")],
)
def test_choose_heads_on_three_glue_tasks(shared_data, tasks):
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = []
    for task in tasks:
        (file,) = (shared_data / "glue" / task).glob("validation*.parquet")
        columns = parquet.read_table(file).to_pydict()
        fields = [v for name, v in columns.items() if name not in ("label", "idx")]
        texts += [" ".join(row) for row in zip(*fields)][:400]
    assert abs(choose_heads(texts).heads - 3) <= 1


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (0.5, r"kernel: expected gates of shape \[3\].*found \[\]"),
        ([0.5, 0.5], r"kernel: expected gates of shape \[3\].*found \[2\]"),
        ([jnp.nan] * 3, "kernel: expected finite gates"),
        ("mean", "'uniform' or arrays, found 'mean'"),
        ({}, r"missing \['kernel'\]"),
        ({"kernel": [1, 0, 0], "zzz": [1, 0, 0]}, r"unexpected \['zzz'\]"),
    ],
)
def test_gates_that_do_not_fit(case, gates, message):
    method, p, (x, kernel, bias) = case
    variables = {"params": {"kernel": kernel, "bias": bias}}
    peft = pj.adapt(nn.Dense(5).apply, variables, x, rules={"kernel": method})
    with pytest.raises(ValueError, match=message):
        peft.merge(variables, {"kernel": p}, gates=gates)
