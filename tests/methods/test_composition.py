"""Composition of LoRA modules against the authors' code."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.convert import combine
from peftjax.core.method import Layer
from peftjax.hub import read_module, save
from peftjax.methods.composition import Composition
from peftjax.methods.full import Full
from peftjax.methods.lora import LoRA
from tests.helpers import lora_modules
from tests.helpers.goldens import KEY, arrays, check_dense, close, load
from tests.helpers.lora_modules import PATH, delta, modules_of, trees

pytestmark = pytest.mark.slow

CHECKED = (pj.Composition(modules=3, rank=2, share=True),)


@pytest.fixture
def mixed():
    return lora_modules.mixed()


@pytest.fixture(scope="module")
def torch():
    return lora_modules.torch()


@pytest.mark.parametrize("detach", [False, True])
def test_authors_code(detach):
    golden = load("composition_wlora_learned")
    modules = modules_of(golden, alpha=4 * golden["scaling"])
    composed = Composition.of(trees(modules), detach_denominator=detach)
    (method,) = composed.rules.values()
    p = {**composed.adapters[PATH], "logits": jnp.asarray(golden["v"])}
    close(method.mixture(p), golden["softmax_v"])
    check_dense(method, p, golden)
    kernel, bias = golden["weight"].T, golden["bias"]

    def loss(v):
        y = method({**p, "logits": v}, golden["x"], kernel, bias)
        return jnp.sum(y * golden["cotangent"])

    which = "repository" if detach else "full_softmax"
    close(jax.grad(loss)(p["logits"]), golden[f"grad_v.{which}"])
    start = composed.adapters[PATH]
    close(method(start, golden["x"], kernel, bias), golden["y_uniform"])
    assert (start["logits"] == 1).all()


def test_exact_sum_with_given_weights(torch):
    golden, modules = torch
    weights = [float(weight) for weight in golden["weights"]]
    composed = Composition.of(trees(modules), weights=weights)
    (method,) = composed.rules.values()
    kernel = golden["weight"].T
    y = golden["x"] @ (kernel + golden["exact_sum_delta"].T) + golden["bias"]
    layer = {**golden, "y": y, "merged_bias": golden["bias"]}
    layer["merged_weight"] = golden["weight"] + golden["exact_sum_delta"]
    check_dense(method, composed.adapters[PATH], layer)
    assert set(composed.adapters[PATH]) == {"a", "b", "scale"}


def test_modules_of_the_torch_library(torch):
    golden, modules = torch
    for i, (method, p) in enumerate(modules):
        close(method.scale * p["a"] @ p["b"], golden[f"delta.a{i}"].T)


def test_products_of_mixed_rank_and_alpha(mixed):
    modules, (x, kernel, bias) = mixed
    composed = Composition.of(trees(modules), weights=(0.5, -2.0, 1.0))
    (method,) = composed.rules.values()
    assert method.rank == 3 and composed.adapters[PATH]["scale"].tolist() == [
        3.0,
        3.0,
        pytest.approx(4 / 3),
    ]
    total = sum(
        weight * lora.scale * p["a"] @ p["b"]
        for weight, (lora, p) in zip((0.5, -2.0, 1.0), modules)
    )
    y = method(composed.adapters[PATH], x, kernel, bias)
    close(y, x @ (kernel + total) + bias)
    close(delta(combine.cat(modules, (0.5, -2.0, 1.0))), total)


@pytest.mark.parametrize("share", [False, True])
def test_learned_starts_as_uniform(mixed, share):
    modules, (x, kernel, bias) = mixed
    learned = Composition.of(trees(modules), "learned", share)
    uniform = Composition.of(trees(modules), "uniform")
    variables = {"params": {"kernel": kernel, "bias": bias}}

    def run(composed):
        peft = pj.adapt(nn.Dense(5).apply, variables, x, rules=composed.rules)
        trainable, _ = peft.partition(composed.adapters)
        return peft.apply(variables, composed.adapters, x), trainable

    y, trainable = run(learned)
    expected, nothing = run(uniform)
    close(y, expected)
    where = "" if share else PATH
    assert jax.tree.map(jnp.shape, trainable) == {where: {"logits": (3,)}}
    assert not nothing


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_identical_modules_are_that_module(mixed, weights):
    modules, (x, kernel, bias) = mixed
    method, p = modules[0]
    composed = Composition.of(trees([modules[0]] * 4), weights)
    (four,) = composed.rules.values()
    close(four(composed.adapters[PATH], x, kernel, bias), method(p, x, kernel, bias))


@pytest.mark.parametrize("index", range(3))
def test_one_hot_weights_recover_a_module(torch, index):
    _, modules = torch
    one_hot = [float(i == index) for i in range(3)]
    method, p = modules[index]
    wanted = method.scale * p["a"] @ p["b"]
    modules = [(LoRA(4, alpha=method.alpha), p) for _, p in modules]
    for rule in (combine.cat, combine.linear, combine.svd, combine.lorahub):
        close(delta(rule(modules, one_hot)), wanted)
    composed = Composition.of(trees(modules), one_hot)
    (composition,) = composed.rules.values()
    close(
        composition(composed.adapters[PATH], jnp.eye(24), jnp.zeros((24, 16))), wanted
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(6, name="fc")(x)), None


class Scanned(nn.Module):
    """Two scanned layers and a head."""

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        blocks = nn.scan(Block, length=2, **options)(name="blocks")
        return nn.Dense(3, name="head")(blocks(x, None)[0])


@pytest.mark.parametrize("share", [False, True])
def test_stacked_layers_a_new_head_and_files(share, tmp_path):
    model, path = Scanned(), "blocks/fc/kernel"
    (x,) = arrays((4, 6))
    variables = model.init(KEY, x)
    modules, files = [], []
    for i, rank in enumerate((2, 3)):
        rules = {path: LoRA(rank, alpha=4.0), "head/.*": Full()}
        peft = pj.adapt(model.apply, variables, x, rules=rules)
        adapters = peft.init(jax.random.key(i))
        b = adapters[path]["b"]
        adapters[path]["b"] = b + 0.3 * jax.random.normal(KEY, b.shape)
        modules.append((rules, adapters))
        save(tmp_path / f"module{i}", peft, adapters)
        files.append(read_module(tmp_path / f"module{i}"))
    composed = Composition.of(modules, "learned", share)
    from_files = Composition.of(files, "learned", share)
    assert from_files.rules == composed.rules
    jax.tree.map(np.testing.assert_array_equal, from_files.adapters, composed.adapters)
    rules = {**composed.rules, "head/.*": Full()}
    peft = pj.adapt(model.apply, variables, x, rules=rules, strict=True)
    adapters = {**peft.init(KEY), **composed.adapters}
    trainable, frozen = peft.partition(adapters)
    logits = trainable["" if share else path]["logits"]
    assert logits.shape == ((2,) if share else (2, 2))
    assert adapters[path]["a"].shape == (2, 2, 6, 3)
    assert set(trainable["head/kernel"]) == {"value"}

    def loss(trainable):
        both = peft.combine(trainable, frozen)
        return jnp.sum(peft.apply(variables, both, x) ** 2)

    grads = jax.grad(loss)(trainable)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    merged = peft.merge(variables, adapters)
    close(model.apply(merged, x), peft.apply(variables, adapters, x))
    exact = sum(
        0.5 * 4.0 / rank * a[path]["a"] @ a[path]["b"]
        for rank, (_, a) in zip((2, 3), modules)
    )
    was, now = (v["params"]["blocks"]["fc"]["kernel"] for v in (variables, merged))
    close(now - was, exact)


def test_fresh_composition():
    method = Composition(modules=3, rank=2)
    site = Layer(6, 5)
    p = method.init(KEY, site)
    assert method.count(site) == 3 and method.frozen == ("a", "b", "scale")
    assert {name: v.shape for name, v in p.items()} == {
        "a": (3, 6, 2),
        "b": (3, 2, 5),
        "scale": (3,),
        "logits": (3,),
    }
    for settings in ({"weights": "uniform"}, {"weights": (1.0, 2.0, 3.0)}):
        other = Composition(modules=3, rank=2, **settings)
        assert "logits" not in other.init(KEY, site) and other.count(site) == 0


def test_modules_that_do_not_fit(mixed):
    modules, _ = mixed
    method, p = modules[0]
    one = (method, {PATH: p})
    with pytest.raises(ValueError, match="no modules"):
        Composition.of([])
    with pytest.raises(ValueError, match="module 1 lacks the site 'kernel'"):
        Composition.of([one, (method, {"other": p})])
    with pytest.raises(ValueError, match="module 1 alone has the site 'other'"):
        Composition.of([one, (method, {PATH: p, "other": p})])
    wide = {"a": jnp.ones((7, 2)), "b": p["b"]}
    with pytest.raises(ValueError, match=r"kernel: module 1 .*\(7, 5\).*\(6, 5\)"):
        Composition.of([one, (method, {PATH: wide})])
    with pytest.raises(ValueError, match="kernel: module 0 has rank 3"):
        Composition.of([(LoRA(3, alpha=1.0), {PATH: p})])
    with pytest.raises(ValueError, match="only LoRA"):
        Composition.of([(pj.Full(), {PATH: p})])
    with pytest.raises(ValueError, match="adapts no layer"):
        Composition.of([(method, {"head/kernel": {"value": jnp.ones(3)}})])
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        Composition.of([one, one], weights=[1.0])
    with pytest.raises(ValueError, match="'learned', 'uniform'"):
        Composition.of([one], weights="softmax")
    with pytest.raises(ValueError, match="modules=0"):
        Composition(modules=0, rank=1)


def test_modules_keep_their_dropout():
    """Means over draws are the outputs without; a module without any is never cut."""
    a, b, c, d, x, kernel = arrays((6, 2), (2, 5), (6, 2), (2, 5), (4, 6), (6, 5))
    modules = [(LoRA(2, alpha=2.0, dropout=0.5), {"a": a, "b": b})]
    modules += [(LoRA(2, alpha=2.0), {"a": c, "b": d})]
    composed = Composition.of(trees(modules), "uniform")
    method, p = composed.rules[PATH], composed.adapters[PATH]
    assert method.dropout == (0.5, 0.0)
    keys = jax.random.split(KEY, 4000)
    drawn = jax.vmap(lambda key: method.formula(p, x, kernel, 0.0, key=key))(keys)
    plain = method(p, x, kernel)
    assert drawn.std(0).max() > 0.1
    spread = drawn.std(0) / len(keys) ** 0.5
    assert (jnp.abs(drawn.mean(0) - plain) < 5 * spread + 1e-5).all()
    first_off = {**p, "b": p["b"].at[0].set(0)}
    one = method.formula(first_off, x, kernel, 0.0, key=KEY)
    close(one, method(first_off, x, kernel))
    assert Composition.of(trees([modules[1]])).rules[PATH].dropout == ()
    with pytest.raises(ValueError, match="expected 2 numbers"):
        Composition(modules=2, rank=1, dropout=(0.5,))


def test_a_file_whose_arrays_were_exchanged_is_refused(tmp_path):
    (x,) = arrays((4, 6))
    model = nn.Dense(5)
    variables = model.init(KEY, x)
    for name, alpha in (("one", 2.0), ("two", 40.0)):
        peft = pj.adapt(model.apply, variables, x, rules={PATH: LoRA(2, alpha=alpha)})
        save(tmp_path / name, peft, peft.init(jax.random.key(int(alpha))))
    (tmp_path / "two.safetensors").replace(tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="SHA-256"):
        read_module(tmp_path / "one")
    with pytest.raises(ValueError, match="module 0: .*two.*read_module"):
        Composition.of([tmp_path / "two"])
