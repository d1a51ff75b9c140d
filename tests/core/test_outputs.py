"""Edits of what modules return: where they are found, in loops, meshes and codes."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import peftjax as pj
from peftjax.parallel import mesh as meshes
from tests.helpers.goldens import close, random_like

METHOD = pj.Bottleneck(rank=3, activation="tanh")
X = np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(16, name="fc")(jnp.tanh(x)), None


class Loop(nn.Module):
    """Three blocks: written out, scanned, or scanned and recomputed."""

    kind: str = "unrolled"

    @nn.compact
    def __call__(self, x):
        if self.kind == "unrolled":
            for i in range(3):
                x, _ = Block(name=f"blocks_{i}")(x)
            return x
        block = nn.remat(Block) if self.kind == "remat" else Block
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(block, **axes, length=3)(name="blocks")(x, None)
        return x


def planned(model, rule, method=METHOD, x=X):
    variables = model.init(jax.random.key(0), x)
    return pj.adapt(model.apply, variables, x, rules={rule: method}), variables


def loss_of(peft):
    def loss(adapters, variables, x):
        return (peft.apply(variables, adapters, x) ** 2).mean()

    return loss


def test_scanned_and_recomputed_loops_equal_blocks_written_out():
    plain, variables = planned(Loop(), r"blocks_\d+/fc:output")
    adapters = random_like(plain.init(jax.random.key(1)))
    run = jax.jit(jax.value_and_grad(loss_of(plain)))
    expected, gradients = run(adapters, variables, X)
    stacked = {"params": pj.models.layers.stack_layers(variables["params"])}
    for kind in ("scan", "remat"):
        model = Loop(kind)
        peft = pj.adapt(model.apply, stacked, X, rules={"blocks/fc:output": METHOD})
        own = pj.models.layers.stack_layers(adapters)
        assert sum(s.flops for s in peft.sites) == sum(s.flops for s in plain.sites)
        assert sum(s.flops for s in peft.sites) == 3 * 5 * 2 * (2 * 16 * 3)
        found, other = jax.jit(jax.value_and_grad(loss_of(peft)))(own, stacked, X)
        close(found, expected)
        close(
            other["blocks/fc:output"]["down"],
            np.stack([p["down"] for p in gradients.values()]),
        )


class Twice(nn.Module):
    """One module called twice."""

    @nn.compact
    def __call__(self, x):
        fc = nn.Dense(16, name="fc")
        return fc(x), fc(x)


def test_a_module_called_twice_costs_twice_and_drops_apart():
    method = pj.Bottleneck(rank=3, dropout=0.5)
    peft, variables = planned(Twice(), "fc:output", method)
    assert peft.sites[0].flops == 2 * 5 * 2 * (2 * 16 * 3)
    adapters = random_like(peft.init(jax.random.key(1)))
    first, second = peft.apply(variables, adapters, X)
    np.testing.assert_array_equal(first, second)
    key = jax.random.key(2)
    first, second = peft.apply(variables, adapters, X, adapter_key=key)
    assert np.abs(first - second).max() > 1e-2


def test_a_module_that_lies_deeper_is_told_by_its_path():
    outer, inner = Loop(), Block()
    variables = outer.init(jax.random.key(0), X)

    def part(variables, x):
        return inner.apply({"params": variables["params"]["blocks_1"]}, x)[0]

    with pytest.raises(ValueError, match="'fc/bias', found none there; nearest: blo"):
        pj.adapt(part, variables, X, rules={"fc:output": METHOD})


class Own(nnx.Module):
    """An NNX module whose block is recomputed, or one layer of a loop."""

    def __init__(self, scanned):
        self.scanned = scanned
        if scanned:
            make = nnx.vmap(lambda key: nnx.Linear(16, 16, rngs=nnx.Rngs(key)))
            self.fc = make(jax.random.split(jax.random.key(0), 3))
        else:
            self.fc = nnx.Linear(16, 16, rngs=nnx.Rngs(0))

    def __call__(self, x):
        if not self.scanned:
            return nnx.remat(lambda fc, x: fc(x))(self.fc, x)
        return nnx.scan(
            lambda x, fc: fc(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )(x, self.fc)


def test_nnx_recomputes_edits_and_refuses_them_in_a_loop():
    apply_fn, variables = pj.from_nnx(Own(scanned=False))
    peft = pj.adapt(apply_fn, variables, X, rules={"fc:output": METHOD})
    adapters = random_like(peft.init(jax.random.key(1)))
    p, fc = adapters["fc:output"], variables["params"]["fc"]

    def by_hand(p):
        y = X @ fc["kernel"] + fc["bias"]
        h = jnp.tanh(y @ p["down"] + p["down_bias"])
        return ((y + h @ p["up"] + p["up_bias"]) ** 2).mean()

    run = jax.jit(jax.value_and_grad(loss_of(peft)))
    found, gradients = run(adapters, variables, X)
    expected, wanted = jax.value_and_grad(by_hand)(p)
    close(found, expected)
    jax.tree.map(close, gradients["fc:output"], wanted)
    apply_fn, variables = pj.from_nnx(Own(scanned=True))
    with pytest.raises(ValueError, match="outside of loops"):
        pj.adapt(apply_fn, variables, X, rules={"fc:output": METHOD})


@pytest.mark.parametrize("kind", ["unrolled", "scan"])
def test_over_a_mesh_that_splits_the_base(kind):
    """Eight devices, the batch over all, the base over four."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    peft, variables = planned(Loop(kind), r"blocks.*/fc:output")
    adapters = random_like(peft.init(jax.random.key(1)))
    gradient = jax.jit(jax.value_and_grad(loss_of(peft)))
    expected, wanted = gradient(adapters, variables, X)
    mesh = meshes.make_mesh(data=2, fsdp=4)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def split(leaf):
        axes = [None] * (leaf.ndim - 1) + ["fsdp"]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    over = replace(peft, batch=rows)
    run = jax.jit(jax.value_and_grad(loss_of(over)))
    split_base = jax.tree.map(split, variables)
    found, other = run(adapters, split_base, jax.device_put(X, rows))
    close(found, expected)
    jax.tree.map(close, other, wanted)


@pytest.mark.parametrize("kind", ["unrolled", "scan"])
def test_over_a_base_in_codes(kind):
    peft, variables = planned(Loop(kind), r"blocks.*/fc:output")
    coded = pj.quantise(variables, {r"blocks.*/kernel": pj.Int8(group=8)})
    plain = pj.dequantise(coded)
    over = pj.adapt(Loop(kind).apply, coded, X, rules={r"blocks.*/fc:output": METHOD})
    adapters = random_like(over.init(jax.random.key(1)))
    found, gradients = jax.value_and_grad(loss_of(over))(adapters, coded, X)
    expected, wanted = jax.value_and_grad(loss_of(peft))(adapters, plain, X)
    close(found, expected)
    jax.tree.map(close, gradients, wanted)
