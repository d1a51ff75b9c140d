"""A base split over eight devices: weights are gathered, one layer at a time."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import peftjax as pj
from peftjax.models.llama.config import LlamaConfig
from peftjax.models.llama.model import Llama
from peftjax.models.lm_loss import lm_losses
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import placed, rows, shard
from peftjax.training.losses import Weighted
from peftjax.training.state import create_state
from peftjax.training.step import make_step

pytestmark = pytest.mark.slow

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
)
BATCH, TOKENS = 64, 32
KERNELS = {(64, 64): 4, (64, 176): 2, (176, 64): 1}  # of one layer
TABLES = {(96, 64): 1, (64, 96): 1}
ATTENTION = r".*(q|k|v|o)_proj/kernel"
METHODS = {
    "lora": pj.LoRA(rank=2, alpha=3.0),
    "hra": pj.HRA(rank=2),
    "hydralora": pj.HydraLoRA(rank=2, heads=3, alpha=3.0),
}


@cache
def llama(method="lora", **options):
    """Return peft, variables and a batch."""
    model = Llama(CONFIG, **options)
    ids = np.random.default_rng(0).integers(0, 96, (BATCH, TOKENS))
    variables = jax.jit(model.init)(jax.random.key(0), ids[:1])
    rules = {ATTENTION: METHODS[method]}
    peft = pj.adapt(model.apply, variables, ids, rules=rules, strict=True)
    return peft, variables, {"ids": ids}


def lm(apply, batch, key):
    return Weighted(*lm_losses(apply(batch["ids"]), batch["ids"]))


@cache
def compiled(method="lora", gather=True, mesh=(1, 8), accumulate=1, **options):
    """Return a compiled step with its placed arguments."""
    peft, variables, batch = llama(method, **options)
    mesh, optimizer = make_mesh(*mesh), optax.sgd(0.1)
    step = make_step(peft, optimizer, lm, mesh, gather=gather, accumulate=accumulate)
    state = create_state(peft, optimizer, jax.random.key(1), mesh)
    base = step.shard_base(variables, threshold=256)
    return step.lower(state, base, batch).compile(), (state, base), step, batch


def collectives(text):
    """Return `Counter({(operation, shape): times})`, ones in front left out."""
    pattern = r"= (\(.*?\)|\S+) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\("
    found = Counter()
    for shapes, name in re.findall(pattern, text):
        for sizes in re.findall(r"\[([\d,]*)\]", shapes):
            shape = [int(size) for size in sizes.split(",") if size]
            found[name, tuple(size for size in shape if size > 1)] += 1
    return found


def check(text, times):
    """Check that weights are gathered, each so often, and gradients reduced."""
    found = collectives(text)
    assert {name for name, _ in found} <= {"all-gather", "all-reduce"}, found
    for (name, shape), count in found.items():
        if name == "all-gather":
            assert shape in KERNELS or shape in TABLES, (shape, count)
            kernels = KERNELS.get(shape, 0) or TABLES.get(shape, 0)
            assert count <= times * kernels, (shape, count)
        else:
            assert prod(shape) <= 2 * 64 * 3 * 2, shape  # an adapter's gradient


@pytest.mark.parametrize("method", METHODS)
def test_only_weights_are_gathered_and_only_gradients_reduced(method):
    program, *_ = compiled(method, scan_layers=True, remat=True)
    # forward, and backward with the recomputation
    check(program.as_text(), 2)
    # all gradients of a layer at once, in the loop; and loss with weight
    assert program.as_text().count(" all-reduce(") == 2


@pytest.mark.parametrize("remat", [False, True])
def test_layers_that_are_not_scanned(remat):
    program, *_ = compiled(remat=remat)
    check(program.as_text(), 2 * (3 if remat else 2))


def test_the_compiler_alone_moves_activations():
    program, *_ = compiled(gather=False, scan_layers=True, remat=True)
    with pytest.raises(AssertionError, match=rf"\({BATCH}, {TOKENS}, 64\)"):
        check(program.as_text(), 2)


def test_what_was_gathered_is_not_kept_for_the_backward_pass():
    # without rematerialisation, where a loop keeps what its backward pass needs
    temporary = [
        compiled(gather=gather, scan_layers=True)[0].memory_analysis()
        for gather in (True, False)
    ]
    ours, theirs = (found.temp_size_in_bytes for found in temporary)
    assert ours <= theirs


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"scan_layers": True, "remat": True},
        {"scan_layers": True, "mesh": (2, 4), "accumulate": 2},
        {},
    ],
    ids=str,
)
def test_a_step_equals_that_of_one_device(method, options):
    found = []
    for mesh in (options.get("mesh", (1, 8)), (1, 1)):
        _, (state, base), step, batch = compiled(method, **{**options, "mesh": mesh})
        state, metrics = step(jax.tree.map(jnp.copy, state), base, batch)
        found.append(jax.device_get((metrics, state.trainable)))
    eps = np.finfo(np.float32).eps
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps),
        *found,
    )


class Nested(nn.Module):
    """Two groups of two layers, a loop in a loop; each a kernel, and a stacked bias."""

    @nn.compact
    def __call__(self, x):
        kernels = self.param("kernels", nn.initializers.normal(0.2), (2, 2, 32, 32))
        shifts = self.param("shifts", nn.initializers.normal(0.2), (2, 2, 32))
        shared = self.param("shared", nn.initializers.normal(0.2), (32, 32))

        def layer(x, own):
            kernel, shift = own
            return jnp.tanh(x @ kernel + shift) @ shared, None

        def group(x, own):
            return jax.lax.scan(layer, x, own)[0], None

        return jax.lax.scan(jax.checkpoint(group), x, (kernels, shifts))[0]


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(32, 64, rngs=rngs)
        self.second = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def nested(x):
    model = Nested()
    return model.apply, model.init(jax.random.key(0), x), "kernels"


def nnx_mlp(x):
    return *pj.from_nnx(Mlp(nnx.Rngs(0)))[:2], "first/kernel"


@pytest.mark.parametrize("make", [nested, nnx_mlp])
def test_loops_in_loops_and_nnx(make):
    x = np.random.default_rng(1).normal(size=(64, 6, 32)).astype(np.float32)
    apply, variables, rule = make(x)
    rules = {rule: pj.DoRA(rank=2, alpha=3.0)}
    peft = pj.adapt(apply, variables, x, rules=rules, strict=True)
    adapters = peft.init(jax.random.key(1))
    mesh = make_mesh(1, 8)
    base = shard(variables, mesh, threshold=32)

    def loss(adapters, peft, variables, x):
        return (peft.apply(variables, adapters, x) ** 2).mean()

    def gradient(peft, variables, x):
        function = jax.jit(jax.value_and_grad(partial(loss, peft=peft)))
        lowered = function.lower(adapters, variables=variables, x=x).compile()
        return lowered.as_text(), lowered(adapters, variables=variables, x=x)

    split = replace(peft, batch=rows(mesh))
    text, found = gradient(split, base, jax.device_put(x, rows(mesh)))
    gathered = [s for n, s in collectives(text) if n == "all-gather"]
    # weights and biases of one layer; nothing that has the six tokens
    assert gathered and max(map(prod, gathered)) <= 32 * 64
    assert not any(6 in shape for shape in gathered), gathered
    _, expected = gradient(peft, variables, x)
    eps = np.finfo(np.float32).eps
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e3 * eps, atol=64 * eps),
        found,
        expected,
    )


def test_a_mesh_that_splits_no_base_changes_nothing():
    peft, *_ = llama()
    assert placed(peft, make_mesh(8, 1), True).batch is None
    assert placed(peft, make_mesh(2, 4), True).batch == rows(make_mesh(2, 4))
