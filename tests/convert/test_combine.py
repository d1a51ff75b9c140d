"""Rules that combine LoRA modules against the torch library's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.convert import combine
from peftjax.methods.composition import sites
from peftjax.methods.lora import LoRA
from tests.helpers import lora_modules
from tests.helpers.goldens import arrays, close, load
from tests.helpers.lora_modules import PATH, delta, trees


@pytest.fixture
def mixed():
    return lora_modules.mixed()


@pytest.fixture(scope="module")
def torch():
    return lora_modules.torch()


RULES = {
    "cat": combine.cat,
    "linear": combine.linear,
    "svd": combine.svd,
    "ties": combine.ties,
    "magnitude_prune": combine.magnitude_prune,
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_the_torch_library(torch, rule):
    golden, modules = torch
    density = json.loads(str(golden["meta_json"]))["density"]
    options = {"density": float(density)} if rule in ("ties", "magnitude_prune") else {}
    method, p = RULES[rule](modules, golden["weights"].tolist(), **options)
    close(delta((method, p)), golden[f"{rule}.delta"].T)
    x, kernel, bias = golden["x"], golden["weight"].T, golden["bias"]
    close(method(p, x, kernel, bias), golden[f"{rule}.y"])
    assert method.rank == golden[f"{rule}.r"]
    assert method.alpha == golden[f"{rule}.lora_alpha"]
    assert method.scale == golden[f"{rule}.scaling"]
    if rule != "svd":  # whose factors are known up to signs
        close(p["a"], golden[f"{rule}.lora_A.weight"].T)
        close(p["b"], golden[f"{rule}.lora_B.weight"].T)


MORE = [
    "svd",
    "ties_frequency",
    "ties_svd",
    "ties_svd_frequency",
    "magnitude_prune_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_frequency",
    "dare_ties_svd",
]


@pytest.fixture(scope="module")
def second():
    golden = load("combine_peft")
    return golden, lora_modules.modules_of(golden)


@pytest.mark.parametrize("name", MORE)
def test_every_rule_gives_the_torch_librarys_product(second, monkeypatch, name):
    golden, modules = second
    rule, options = name.removesuffix("_frequency"), {}
    if name != rule:
        options["majority_sign_method"] = "frequency"
    if rule != "svd":
        options["density"] = float(golden["density"])
    if "dare" in rule:
        options["key"] = jax.random.key(0)
        drawn = [golden[f"{name}.masks.{i}"].T for i in range(6 - 3 * ("svd" in rule))]
        stacks = [np.stack(drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
        draws = iter(stacks)
        monkeypatch.setattr(jax.random, "bernoulli", lambda *_: next(draws))
    found = getattr(combine, rule)(modules, golden["weights"].tolist(), **options)
    close(delta(found), golden[f"{name}.delta"].T)
    assert found[0] == LoRA(3, alpha=3.0)


def test_the_torch_librarys_rslora_is_larger_by_the_root_of_the_rank(second):
    golden, modules = second
    modules = [(LoRA(m.rank, alpha=m.alpha, rs=True), p) for m, p in modules]
    found = delta(combine.linear(modules, golden["weights"].tolist()))
    close(np.sqrt(3) * found, golden["rslora.linear.delta"].T)


def test_dare_draws_from_its_key_and_keeps_the_mean(second):
    _, modules = second
    weights, keys = [1.0, 0.5, -0.5], jax.random.split(jax.random.key(3), 4000)

    def product(key):
        _, p = combine.dare_linear_svd(modules, weights, 0.5, key, rank=5)
        return p["a"] @ p["b"]

    draws = jax.jit(jax.vmap(product))(keys)
    exact = delta(combine.cat(modules, weights))
    error = draws.std(0) / np.sqrt(len(keys))
    assert (jnp.abs(draws.mean(0) - exact) < 5 * error).all()
    again = delta(combine.dare_linear_svd(modules, weights, 0.5, keys[0], rank=5))
    close(again, draws[0])
    a, b = (combine.dare_linear(modules, weights, 0.5, key)[1] for key in keys[:2])
    assert (a["a"] != b["a"]).any() and (a["b"] != b["b"]).any()


def test_linear_is_not_the_average_of_the_products(torch):
    _, modules = torch
    weights = [1 / 3] * 3
    gap = delta(combine.linear(modules, weights)) - delta(combine.cat(modules, weights))
    assert jnp.abs(gap).max() > 0.1


def test_svd_is_the_best_approximation(mixed):
    modules, _ = mixed
    weights = [0.5, -2.0, 1.0]
    exact = np.float64(delta(combine.cat(modules, weights)))
    u, s, vh = np.linalg.svd(exact)
    for rank in range(1, 6):
        method, p = combine.svd(modules, weights, rank=rank)
        assert p["a"].shape == (6, rank) and p["b"].shape == (rank, 5)
        close(delta((method, p)), (u[:, :rank] * s[:rank]) @ vh[:rank])
    small = [(LoRA(1, alpha=2.0), {"a": jnp.ones((6, 1)), "b": jnp.ones((1, 5))})]
    close(delta(combine.svd(small, [1.0], rank=3)), jnp.full((6, 5), 2.0))


def test_lorahub_is_quadratic_in_its_weights(torch):
    _, modules = torch
    modules = [(LoRA(4, alpha=6.0), p) for _, p in modules]

    def total(w):
        a = sum(v * p["a"] for v, (_, p) in zip(w, modules))
        return 1.5 * a @ sum(v * p["b"] for v, (_, p) in zip(w, modules))

    weights = [0.3, -1.2, 0.8]
    close(delta(combine.lorahub(modules, weights)), total(weights))
    assert not delta(combine.lorahub(modules, [0.0] * 3)).any()
    grads = jax.jacobian(total)(jnp.zeros(3))
    assert not grads.any()


def test_rules_that_do_not_fit(mixed):
    modules, _ = mixed
    with pytest.raises(ValueError, match=r"one rank, found \[2, 1, 3\]"):
        combine.linear(modules, [1.0] * 3)
    with pytest.raises(ValueError, match="one rank and scale"):
        combine.lorahub(modules, [1.0] * 3)
    with pytest.raises(ValueError, match="3 modules and 2 weights"):
        combine.cat(modules, [1.0] * 2)
    with pytest.raises(ValueError, match="rank of 1 … 5"):
        combine.svd(modules, [1.0] * 3, rank=6)
    with pytest.raises(ValueError, match="majority_sign_method"):
        combine.ties(modules[:1], [1.0], 0.5, majority_sign_method="median")
    with pytest.raises(ValueError, match="density"):
        combine.dare_linear_svd(modules, [1.0] * 3, 1.5, jax.random.key(0))
    with pytest.raises(ValueError, match="rank of 1 … 5"):
        combine.ties_svd(modules, [1.0] * 3, 0.5, rank=6)
    with pytest.raises(ValueError, match="density"):
        combine.ties(modules[:1], [1.0], density=0.0)


def test_sites_feed_the_rules(mixed):
    modules, _ = mixed
    members = sites(trees(modules))
    assert list(members) == [PATH]
    close(
        delta(combine.cat(members[PATH], [1.0] * 3)),
        delta(combine.cat(modules, [1.0] * 3)),
    )


@pytest.mark.parametrize("rule", [*RULES, "lorahub"])
def test_stacked_layers_are_combined_one_by_one(rule):
    run = RULES.get(rule, combine.lorahub)
    options = {"density": 0.5} if rule in ("ties", "magnitude_prune") else {}
    ps = []
    for i in range(2):
        a, b = arrays((3, 6, 2), (3, 2, 5), seed=i)
        ps.append({"a": a, "b": b})
    method, weights = LoRA(2, alpha=6.0), (0.3, -0.8)
    whole = run([(method, p) for p in ps], weights, **options)
    for layer in range(3):
        one = [(method, {n: v[layer] for n, v in p.items()}) for p in ps]
        alone = run(one, weights, **options)
        assert alone[0] == whole[0]
        close(delta(whole)[layer], delta(alone))
