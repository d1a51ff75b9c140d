"""Low-rank products as one kernel: they equal the formula, and their gradients its."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core import fused
from peftjax.core.fused import blocks, low_rank_dense
from peftjax.core.method import Layer, Method
from peftjax.parallel.mesh import make_mesh
from peftjax.testing import error, perturb
from peftjax.training.evaluation import make_eval

# Float32 rounds at each of up to 600 summed rows, √600 times as much by chance;
# bfloat16 only what goes into a sum and comes out of it.
ROUNDINGS = {"float32": 24, "bfloat16": 4}

METHODS = {
    "lora": pj.LoRA(rank=3, alpha=7.0),
    "rslora": pj.LoRA(rank=8, alpha=5.0, rs=True),
    "dora": pj.DoRA(rank=3, alpha=7.0),
    "hra": pj.HRA(rank=4),
    "hra_orthogonal": pj.HRA(rank=1, orthogonal=True),
    "hydra": pj.Hydra(rank=3, seq_rank=2, scale=0.5, branch_bias=True),
    "hydra_parallel": pj.Hydra(rank=3, branches="parallel", learn_scale=True),
    "hydra_sequential": pj.Hydra(rank=1, branches="sequential"),
    "glora": pj.GLoRA(rank=(2, 3, 4), a="none"),
    "glora_plain": pj.GLoRA(rank=8, a="none", c="none", d="none", e="none"),
}
NOT = [
    pj.LoRA(rank=2, alpha=3.0, dropout=0.1),
    pj.DoRA(rank=2, alpha=3.0, dropout=0.1),
    pj.Hydra(rank=2, dropout=0.1),
    pj.HRA(rank=2, form="scan"),
    pj.HRA(rank=2, side="output"),
    pj.GLoRA(rank=2),
    pj.GLoRA(rank=2, a="none", b="vector"),
    pj.HydraLoRA(rank=2, alpha=3.0),
]


def normal(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def bound(dtype):
    return ROUNDINGS[jnp.dtype(dtype).name] * float(jnp.finfo(dtype).eps)


def same(found, expected, dtype):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for mine, theirs in pairs:
        assert mine.shape == theirs.shape
        assert error(mine, theirs) < bound(dtype)


def plain(x, kernel, a, b):
    return x @ kernel + (x @ a) @ b


def pulled(function: Callable, cotangent, *inputs):
    y, pull = jax.vjp(function, *inputs)
    return y, pull(cotangent.astype(y.dtype))


def factors(leading, d_in, d_out, rank, dtype=jnp.float32):
    shapes = (*leading, d_in), (d_in, d_out), (d_in, rank), (rank, d_out)
    *inputs, dy = normal(0, *shapes, (*leading, d_out), dtype=dtype)
    return inputs, dy


@pytest.mark.parametrize(
    ("leading", "rank", "dtype"),
    [
        ((7,), 1, jnp.float32),
        ((3, 197), 3, jnp.float32),
        ((3, 197), 8, jnp.bfloat16),
        ((2, 3, 5), 8, jnp.float32),
        ((2, 16), 1, jnp.bfloat16),
    ],
)
def test_equals_the_two_products(leading, rank, dtype):
    inputs, dy = factors(leading, 24, 40, rank, dtype)
    found = jax.jit(partial(pulled, low_rank_dense))(dy, *inputs)
    # dots in bfloat16 on a CPU sum in bfloat16; the kernel does not
    wide = [value.astype(jnp.float32) for value in (dy, *inputs)]
    same(found, pulled(plain, *wide), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("leading", [(2, 150), (3, 2, 16)])
def test_blocks_of_rows_and_of_the_kernel(leading, monkeypatch):
    """Rows out of range have no part, and every block of K its own."""
    monkeypatch.setattr(fused, "ROWS", 64)
    monkeypatch.setattr(fused, "BLOCK", 4 * 128 * 384)
    inputs, dy = factors(leading, 256, 384, 3)
    cut = blocks(inputs[0].shape, 384, 4)
    assert cut is not None
    assert (cut.height, cut.ahead, cut.back) == (64, 128, 128)
    found = jax.jit(partial(pulled, low_rank_dense))(dy, *inputs)
    same(found, pulled(plain, dy, *inputs), jnp.float32)


def test_under_vmap_scan_remat_and_grad():
    (x, *layer), dy = factors((2, 5), 16, 16, 3)
    layers = [jnp.stack([value, 2 * value]) / 4 for value in layer]

    def loops(product):
        def step(x, layer):
            return jax.checkpoint(product)(x, *layer), None

        def loss(x, layers):
            y, _ = jax.lax.scan(step, x, layers)
            each = jax.vmap(product, in_axes=(None, 0, 0, 0))(x, *layers)
            return (y * dy).sum() + (each * dy).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, layers)

    same(loops(low_rank_dense), loops(plain), jnp.float32)


def test_what_does_not_fit_is_refused():
    (x, kernel, a, b), _ = factors((4,), 6, 5, 2)
    with pytest.raises(ValueError, match=r"x \[..., in\].*float32\[2, 4\]"):
        low_rank_dense(x, kernel, a, b[:, :4])
    with pytest.raises(ValueError, match="of one dtype"):
        low_rank_dense(x.astype(jnp.bfloat16), kernel, a, b)
    assert blocks((2, 8, 4096), 50257, 2) is None
    assert blocks((2, 2048, 4096), 11008, 2) is not None


@pytest.mark.parametrize(
    ("name", "bias"), [*((name, True) for name in METHODS), ("hydra", False)]
)
def test_a_method_says_what_its_formula_is(name, bias):
    method: Method = METHODS[name]
    x, kernel, b, dy = normal(0, (2, 300, 16), (16, 24), (24,), (2, 300, 24))
    fresh = method.init(jax.random.key(1), Layer(16, 24, kernel=kernel))
    noise = normal(2, *(value.shape for value in fresh.values()))
    p = {n: value + 0.3 * e for (n, value), e in zip(fresh.items(), noise)}
    b = b if bias else 0.0

    def product(p):
        parts = method.low_rank(p, kernel, b)
        assert parts is not None
        y = plain(x, kernel, parts.a, parts.b)
        return (y if parts.scale is None else y * parts.scale) + parts.constant

    found, expected = (
        pulled(f, dy, p) for f in (product, lambda p: method.formula(p, x, kernel, b))
    )
    same(found, expected, jnp.float32)


@pytest.mark.parametrize("method", NOT, ids=str)
def test_other_settings_keep_to_the_formula(method):
    kernel = jnp.ones((8, 8))
    p = method.init(jax.random.key(0), Layer(8, 8, kernel=kernel))
    assert method.low_rank(p, kernel, 0.0) is None


class Doubled(pj.LoRA):
    """Has a formula of its own, and the factors of another."""

    def formula(self, p, x, kernel, bias, *, key=None):
        return 2 * super().formula(p, x, kernel, bias, key=key)


def test_inherited_factors_are_not_those_of_another_formula():
    method, kernel = Doubled(rank=2, alpha=3.0), jnp.ones((8, 8))
    p = method.init(jax.random.key(0), Layer(8, 8))
    assert method.low_rank(p, kernel, 0.0) is None
    assert pj.LoRAFA(rank=2, alpha=3.0).low_rank(p, kernel, 0.0) is not None


class Block(nn.Module):
    """A block of a transformer's kind, bias after one layer, none after the other."""

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x, _=None):
        wide = nn.Dense(24, dtype=self.dtype, name="up")(x)
        out = nn.Dense(16, use_bias=False, dtype=self.dtype, name="down")
        return x + out(jnp.tanh(wide)), None


class Stack(nn.Module):
    """Blocks in a scan, recomputed backwards."""

    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x):
        loop = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return loop(self.dtype, name="scanned")(x, None)[0]


def planned(method, dtype=jnp.float32, **settings):
    model = Stack(jnp.dtype(dtype))
    (x,) = normal(0, (3, 37, 16), dtype=dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(shapes)
    numbers = normal(1, *(leaf.shape for leaf in leaves), dtype=dtype)
    variables = jax.tree.unflatten(structure, [value / 4 for value in numbers])
    rules = {".*kernel": method}
    peft = pj.adapt(model.apply, variables, x, rules=rules, strict=True, **settings)
    return peft, variables, x


def step(peft, variables, x, adapters):
    def loss(adapters, x):
        y = peft.apply(variables, adapters, x, adapter_key=jax.random.key(5))
        return (y.astype(jnp.float32) ** 2).mean()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(adapters, x)


def kernels(peft, variables, x, adapters):
    return str(jax.make_jaxpr(partial(step, peft))(variables, x, adapters)).count(
        "pallas_call["
    )


@pytest.mark.parametrize(
    ("name", "dtype"), [("hydra", jnp.float32), ("dora", jnp.bfloat16)]
)
def test_a_fused_plan_equals_the_plain_one(name, dtype):
    peft, variables, x = planned(METHODS[name], dtype)
    one, *_ = planned(METHODS[name], dtype, fused=True)
    adapters = perturb(peft, peft.init(jax.random.key(1)), 0.1)
    inputs = variables, x, adapters
    assert kernels(one, *inputs) > 0 == kernels(peft, *inputs)
    wide, *_ = planned(METHODS[name])
    wide_variables = jax.tree.map(lambda v: v.astype(jnp.float32), variables)
    expected = step(wide, wide_variables, x.astype(jnp.float32), adapters)
    # a bfloat16 model rounds after each of its two layers and two blocks
    apart = 4 * bound(dtype)
    for found, wanted in zip(
        jax.tree.leaves(step(one, *inputs)), jax.tree.leaves(expected), strict=True
    ):
        assert error(found, wanted) < apart


def test_gates_banks_and_dropout_keep_to_the_formula():
    method = pj.LoRA(rank=2, alpha=3.0)
    one, variables, x = planned(method, fused=True)
    rows = jnp.arange(3) - 1
    bank = pj.bank([one.init(jax.random.key(i)) for i in range(2)])
    run = jax.make_jaxpr(partial(one.apply, variables, bank, adapter_ids=rows))
    assert "pallas_call" not in str(run(x))
    dropped, variables, x = planned(replace(method, dropout=0.5), fused=True)
    adapters = dropped.init(jax.random.key(0))
    assert kernels(dropped, variables, x, adapters) == 0


def test_platforms_and_meshes_without_the_kernel_are_refused():
    one, *_ = planned(pj.LoRA(rank=2, alpha=3.0), fused=True)
    assert one.compiled_for("tpu").sites[0].fused
    with pytest.raises(ValueError, match="expected a TPU, found cuda"):
        one.compiled_for("cuda")
    mesh = make_mesh(devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="expected one device, found 2"):
        make_eval(one, lambda apply, batch: {}, mesh)
