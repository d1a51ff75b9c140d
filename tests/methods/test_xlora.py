"""X-LoRA against the torch library, in two passes; LoRA-MoE against its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from tests.core.test_outputs import Loop, X
from tests.helpers.goldens import close, load, random_like

CHECKED = (
    pj.XLoRA(modules=2, rank=3, hidden=16, reads="embed"),
    pj.XLoRA(modules=2, rank=3, share=False, train=True),
)
FOUND = load("xlora")
IDS = FOUND["ids"].astype(np.int32)
SITES = ("first", "second")


class Net(nn.Module):
    """The model of the references."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(11, 6, name="embed")(ids)
        h = nn.Dense(6, name="second")(jnp.tanh(nn.Dense(6, name="first")(x)))
        return nn.Dense(4, name="head")(jnp.tanh(h))


def dense(name):
    return {
        "kernel": FOUND[f"base/{name}.weight"].T,
        "bias": FOUND[f"base/{name}.bias"],
    }


PARAMS = {name: dense(name) for name in (*SITES, "head")}
VARIABLES = {"params": {**PARAMS, "embed": {"embedding": FOUND["base/embed.weight"]}}}


def module(rank):
    adapters = {
        f"{site}/kernel": {
            part: jnp.asarray(FOUND[f"{rank}/{site}.lora_{part.upper()}.weight"].T)
            for part in ("a", "b")
        }
        for site in SITES
    }
    return pj.LoRA(rank, alpha=5.0), adapters


def planned(**settings):
    mixed = pj.XLoRA.of([module(2), module(3)], hidden=6, reads="second", **settings)
    peft = pj.adapt(Net().apply, VARIABLES, IDS, rules=mixed.rules, strict=True)
    return peft, peft.combine(peft.init(jax.random.key(0)), mixed.adapters)


def router(name, prefix=""):
    """Return the library's router, or its gradient, as it lies in our adapters."""
    weight, bias = (FOUND[f"{name}/{prefix}{part}"] for part in ("weight", "bias"))
    if name == "share":
        return {"": {"router": weight.T, "router_bias": bias}}
    rows = zip(SITES, weight.reshape(2, 2, 6), bias.reshape(2, 2))
    return {f"{s}/kernel": {"router": w.T, "router_bias": b} for s, w, b in rows}


@pytest.mark.parametrize("name", ["share", "each", "linear"])
def test_torch_library(name):
    peft, adapters = planned(share=name == "share", softmax=name != "linear")
    adapters = peft.combine(adapters, router(name))
    trainable, frozen = peft.partition(adapters)
    sizes = {p: sum(a.size for a in own.values()) for p, own in trainable.items()}
    assert sizes == {path: n for path, n in peft.trainable.items() if n}

    @jax.jit
    def run(trainable):
        logits = peft.apply(VARIABLES, peft.combine(trainable, frozen), IDS)
        return (logits**2).sum(), logits

    gradient, logits = jax.grad(run, has_aux=True)(trainable)
    close(logits, FOUND[f"{name}/logits"])
    jax.tree.map(close, gradient, router(name, "d_"))


def test_mean_gates_merge():
    peft, adapters = planned()
    adapters = peft.combine(adapters, router("share"))
    gates = peft.mean_gates(VARIABLES, adapters, IDS)
    params, own = VARIABLES["params"], adapters[""]
    x = params["embed"]["embedding"][IDS]
    for name in SITES:
        x = x if name == "first" else np.tanh(x)
        x = x @ params[name]["kernel"] + params[name]["bias"]
    expected = jax.nn.softmax(x @ own["router"] + own["router_bias"])
    for path in gates:
        close(gates[path], expected.mean((0, 1)))
    with pytest.raises(pj.NotMergeable, match="mixes by what 'second' returns"):
        peft.merge(VARIABLES, adapters)
    merged = peft.merge(VARIABLES, adapters, gates)
    p, w = adapters["first/kernel"], gates["first/kernel"]
    delta = sum(w[n] * p["scale"][n] * p["a"][n] @ p["b"][n] for n in range(2))
    close(merged["params"]["first"]["kernel"], params["first"]["kernel"] + delta)


def test_a_bank_of_routers():
    peft, first = planned()
    second = peft.combine(first, router("share"))
    found = peft.apply(
        VARIABLES, pj.bank([first, second]), IDS, adapter_ids=jnp.array([1, -1])
    )
    close(found[0], FOUND["share/logits"][0])
    close(found[1], Net().apply(VARIABLES, IDS)[1])


def test_lora_moe_reads_the_layers_own_input():
    method = pj.XLoRA(modules=2, rank=1, share=False, train=True)
    model, x = nn.Dense(4), np.ones((2, 3, 6), np.float32)
    variables = model.init(jax.random.key(0), x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": method}, strict=True)
    adapters = peft.init(jax.random.key(1))
    np.testing.assert_array_equal(
        peft.apply(variables, adapters, x), model.apply(variables, x)
    )
    assert peft.trainable["kernel"] == 2 * (6 + 1) + 2 * (6 + 4)
    p = random_like(adapters["kernel"])
    g = jax.nn.softmax(x @ p["router"] + p["router_bias"])
    y = model.apply(variables, x)
    for n in range(2):
        y += g[..., n : n + 1] * p["scale"][n] * (x @ p["a"][n] @ p["b"][n])
    close(peft.apply(variables, {"kernel": p}, x), y)


def test_what_is_refused():
    method = pj.XLoRA(modules=2, rank=1, hidden=6, reads="secnd")
    with pytest.raises(ValueError, match="'secnd' returns, .* nearest: second"):
        pj.adapt(Net().apply, VARIABLES, IDS, rules={"first/kernel": method})
    looped = Loop("scan")
    method = pj.XLoRA(modules=2, rank=1, hidden=16, reads="blocks/fc")
    variables = looped.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="outside of loops and recomputation"):
        pj.adapt(looped.apply, variables, X, rules={"blocks/fc/kernel": method})
    with pytest.raises(ValueError, match="hidden=None.: expected an integer"):
        pj.XLoRA(modules=2, rank=1, reads="norm")
    method = pj.XLoRA(modules=2, rank=1, hidden=5)
    with pytest.raises(ValueError, match="of width 6; expected that as hidden"):
        pj.adapt(Net().apply, VARIABLES, IDS, rules={"first/kernel": method})
