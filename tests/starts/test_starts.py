"""Starts from data, gradients and codes, beside those of the torch library."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.starts import corda, eva, loftq, lora_ga

LAYERS = ("fc1", "fc2", "fc3")
RANK, ALPHA = 2, 6.0
LORA = pj.LoRA(rank=RANK, alpha=ALPHA)
PISSA = pj.PiSSA(rank=RANK, alpha=ALPHA)


class Net(nn.Module):
    sizes: tuple[int, ...] = (8, 8, 5)

    @nn.compact
    def __call__(self, x):
        for name, size in zip(LAYERS, self.sizes):
            x = nn.Dense(size, name=name)(x if name == "fc1" else jnp.tanh(x))
        return x


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(x.shape[-1], name="fc")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes, rngs = {"params": 0}, {"params": True}
        layers = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=3)
        return layers(name="layers")(x, None)[0]


@pytest.fixture(scope="module")
def theirs():
    """Return arrays of the torch library; `tests/references` makes them."""
    with np.load(Path(__file__).parents[1] / "files" / "starts.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def variables(theirs):
    leaves = ("kernel", "bias")
    return {"params": {n: {k: theirs[f"{n}/{k}"] for k in leaves} for n in LAYERS}}


def planned(variables, method, x):
    return pj.adapt(Net().apply, variables, x, rules={"fc./kernel": method})


def same_but_for_signs(ours, theirs, rtol):
    """Compare columns that are told apart by their length and line, not by a sign."""
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva(theirs, variables, rho):
    x = theirs["x"][0]
    found = eva(planned(variables, LORA, x), variables, [(x,)], rho=rho)
    ranks = {n: theirs[f"eva{rho:g}/{n}"].shape[1] for n in LAYERS}
    assert (len(set(ranks.values())) > 1) == (rho > 1)
    for name, rank in ranks.items():
        p, rule = found.adapters[f"{name}/kernel"], found.rules[f"{name}/kernel"]
        assert rule == pj.LoRA(rank, alpha=ALPHA * rank / RANK)
        same_but_for_signs(np.asarray(p["a"]), theirs[f"eva{rho:g}/{name}"], 2e-3)
        assert not p["b"].any()


def test_eva_takes_all_batches_as_one(theirs, variables):
    x = theirs["x"]
    peft = planned(variables, LORA, x[0])
    apart = eva(peft, variables, [(x[0],), {"x": x[1]}]).adapters
    joined = eva(peft, variables, [(x.reshape(-1, x.shape[-1]),)]).adapters
    for path, p in joined.items():
        same_but_for_signs(np.asarray(apart[path]["a"]), np.asarray(p["a"]), 1e-3)


def test_the_model_of_eva_is_the_base(theirs, variables):
    x = theirs["x"][0]
    rules, adapters = eva(planned(variables, LORA, x), variables, [(x,)], rho=2.0)
    peft = pj.adapt(Net().apply, variables, x, rules=rules)
    got = peft.apply(variables, adapters, x)
    np.testing.assert_allclose(got, Net().apply(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "name"), [("instruction", "corda_ipm"), ("knowledge", "corda_kpm")]
)
def test_corda(theirs, variables, mode, name):
    x = theirs["x"]
    peft = planned(variables, PISSA, x[0])
    found = corda(peft, variables, [(x[0],), (x[1],)], mode=mode)
    for layer in LAYERS:
        p = found[f"{layer}/kernel"]
        for one in ("a", "b"):
            axis = 0 if one == "a" else 1
            ours, wanted = (
                np.moveaxis(np.asarray(q), axis, 0)
                for q in (p[one], theirs[f"{name}/{layer}/{one}"])
            )
            same_but_for_signs(ours, wanted, 2e-3)
        base = variables["params"][layer]["kernel"] - 3.0 * p["a0"] @ p["b0"]
        np.testing.assert_allclose(base, theirs[f"{name}/{layer}/base"], atol=2e-3)
    got = peft.apply(variables, found, x[0])
    np.testing.assert_allclose(got, Net().apply(variables, x[0]), rtol=1e-4, atol=1e-5)


def squares(apply, batch, key):
    x, y = batch
    return ((apply(x) - y) ** 2).mean(-1)


def test_lora_ga_takes_the_lines_of_the_gradient(theirs, variables):
    """The torch library scales them otherwise; the paper's scale is ours."""
    x, y = theirs["x"], theirs["y"]
    peft = planned(variables, PISSA, x[0])
    found = lora_ga(peft, variables, squares, list(zip(x, y)), gamma=16.0)
    for layer, out in zip(LAYERS, Net.sizes):
        p = found[f"{layer}/kernel"]
        a, b = np.asarray(p["a"]), np.asarray(p["b"]).T
        for ours, one in ((a, "a"), (b, "b")):
            wanted = theirs[f"lora_ga/{layer}/{one}"]
            wanted = wanted if one == "a" else wanted.T
            length = np.linalg.norm(ours, axis=0)
            np.testing.assert_allclose(length, out**0.25 / 4, rtol=1e-4)
            unit = wanted / np.linalg.norm(wanted, axis=0)
            same_but_for_signs(ours / length, unit, 5e-3)
    got = peft.apply(variables, found, x[0])
    np.testing.assert_allclose(got, Net().apply(variables, x[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [corda, lora_ga])
def test_stacked_layers_are_those_written_out(start):
    x = jax.random.normal(jax.random.key(1), (32, 8)) * jnp.arange(1.0, 9.0)
    model = Scanned()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    stack = variables["params"]["layers"]["fc"]

    def unrolled(variables, x):
        for layer in range(3):
            own = variables[f"fc{layer}"]
            x = jnp.tanh(x @ own["kernel"] + own["bias"])
        return x

    apart = {
        f"fc{i}": {name: leaf[i] for name, leaf in stack.items()} for i in range(3)
    }
    found = []
    for apply, base in ((model.apply, variables), (unrolled, apart)):
        peft = pj.adapt(apply, base, x, rules={".*kernel": PISSA})
        given = [(x,)] if start is corda else [x]
        loss = () if start is corda else (lambda f, x, key: (f(x) ** 2).mean(-1),)
        found.append(start(peft, base, *loss, given))
    together, written = found
    for i in range(3):
        p, q = together["layers/fc/kernel"], written[f"fc{i}/kernel"]
        product = p["a"][i] @ p["b"][i]
        # Vectors of unlike layers keep their own signs; for LoRA-GA A and B apart.
        for one in ("a", "b"):
            np.testing.assert_allclose(
                abs(p[one][i]), abs(q[one]), rtol=2e-2, atol=2e-3
            )
        assert np.isfinite(product).all()


@pytest.mark.parametrize("first", ["codes", "factors"])
def test_loftq_is_its_algorithm(first):
    x = jnp.ones((1, 64))
    model = Net((32, 64, 32))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    method = pj.LoRA(rank=4, alpha=8.0)
    peft = pj.adapt(model.apply, variables, x, rules={"fc./kernel": method})
    formats = {"fc[13]/kernel": pj.NF4(group=32)}
    coded, adapters = loftq(peft, variables, formats, steps=2, first=first)
    assert set(adapters) == {"fc1/kernel", "fc3/kernel"}
    for layer in ("fc1", "fc3"):
        kernel = np.asarray(variables["params"][layer]["kernel"], np.float64)

        def best(matrix):
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            return (u[:, :4] * s[:4]) @ vt[:4]

        def codes(matrix):
            one = pj.quantise(
                {"k": jnp.asarray(matrix, jnp.float32)}, {"k": pj.NF4(group=32)}
            )
            return np.asarray(one["k"].decode(), np.float64)

        delta = np.zeros_like(kernel) if first == "codes" else best(kernel)
        for _ in range(2):
            base = codes(kernel - delta)
            delta = best(kernel - base)
        found = coded["params"][layer]["kernel"].decode()
        p = adapters[f"{layer}/kernel"]
        np.testing.assert_allclose(found, base, atol=1e-6)
        np.testing.assert_allclose(2.0 * p["a"] @ p["b"], delta, atol=1e-5)
        lost = np.linalg.norm(kernel - codes(kernel))
        assert np.linalg.norm(kernel - base - delta) < 0.95 * lost
    over = pj.adapt(model.apply, coded, x, rules={"fc./kernel": method})
    whole = {**over.init(jax.random.key(1)), **adapters}
    plain = pj.quantise(variables, formats)
    exact = model.apply(variables, x)

    def away(found):
        return float(jnp.linalg.norm(found - exact))

    near = away(over.apply(coded, whole, x))
    assert near < away(model.apply(pj.dequantise(plain), x))


def test_refusals(theirs, variables):
    x = theirs["x"][0]
    lora, pissa = (planned(variables, method, x) for method in (LORA, PISSA))
    with pytest.raises(ValueError, match="batches: expected at least one"):
        eva(lora, variables, [])
    with pytest.raises(ValueError, match="batches: expected at least one"):
        lora_ga(pissa, variables, squares, [])
    with pytest.raises(
        ValueError, match="eva: expected dense layers of LoRA; found none"
    ):
        eva(pissa, variables, [(x,)])
    with pytest.raises(ValueError, match="rho=0.5: expected at least 1"):
        eva(lora, variables, [(x,)], rho=0.5)
    with pytest.raises(ValueError, match=r"fc1/kernel: the batches span 1 directions"):
        eva(lora, variables, [(x[:2],)])
    with pytest.raises(ValueError, match="mode='ipm': expected 'instruction'"):
        corda(pissa, variables, [(x,)], mode="ipm")
    with pytest.raises(ValueError, match=r"fc3/kernel: lora_ga takes 2 r = 6"):
        wide = planned(variables, pj.PiSSA(rank=3, alpha=3.0), x)
        lora_ga(wide, variables, squares, [(x, theirs["y"][0])])
    with pytest.raises(ValueError, match=r"fc1/kernel: its gradient is zero"):
        lora_ga(pissa, variables, lambda f, b, k: f(b).sum(-1) * 0, [x])
    with pytest.raises(ValueError, match="steps=0: expected 'codes' and at least 1"):
        loftq(lora, variables, {"fc1/kernel": pj.Int8(group=2)}, steps=0)
    with pytest.raises(ValueError, match="no weight that LoRA adapts is in codes"):
        rules = {"fc1/kernel": LORA}
        one = pj.adapt(Net().apply, variables, x, rules=rules)
        loftq(one, variables, {"fc2/kernel": pj.Int8(group=2)})


def test_stacked_layers_keep_one_rank():
    x = jnp.ones((4, 8))
    model = Scanned()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    peft = pj.adapt(model.apply, variables, x, rules={".*kernel": LORA})
    with pytest.raises(ValueError, match="stacked layers share one rank"):
        eva(peft, variables, [(x,)], rho=2.0)
