"""Dropout masks: one for each use, in loops too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj

pytestmark = pytest.mark.slow

METHOD = pj.LoRA(rank=2, alpha=7.0, dropout=0.5)
X = jnp.ones((5, 8))
KEY = jax.random.key(3)


def scanned(v, x):
    return lax.scan(lambda c, _: (c, x @ v["k"]), 0.0, None, 3)[1]


def scanned_remat(v, x):
    body = jax.checkpoint(lambda c, _: (c, jax.jit(jnp.matmul)(x, v["k"])))
    return lax.scan(body, 0.0, None, 3)[1]


def while_loop(v, x):
    def body(state):
        i, y = state
        return i + 1, lax.dynamic_update_index_in_dim(y, x @ v["k"], i, 0)

    zeros = jnp.zeros((3, *x.shape[:-1], 6))
    return lax.while_loop(lambda state: state[0] < 3, body, (0, zeros))[1]


def nested(v, x):
    def outer(c, _):
        return c, lax.scan(lambda c, k: (c, x @ k), 0.0, v["k"])[1]

    return lax.scan(outer, 0.0, None, 2)[1].reshape(-1, 5, 6)


def unrolled(v, x):
    return jnp.stack([x @ v["k"] for _ in range(3)])


@pytest.mark.parametrize(
    "apply_fn", [scanned, scanned_remat, while_loop, nested, unrolled]
)
def test_every_iteration_draws_its_own_mask(apply_fn):
    v = {"k": jnp.ones((3, 8, 6) if apply_fn is nested else (8, 6))}
    peft = pj.adapt(apply_fn, v, X, rules={"k": METHOD}, strict=True)
    a = jax.tree.map(jnp.ones_like, peft.init(KEY))
    random = jax.jit(lambda key: peft.apply(v, a, X, adapter_key=key))
    found = np.asarray(random(KEY))
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not np.array_equal(one, other)
    assert np.array_equal(found, random(KEY))
    assert not np.array_equal(found, random(jax.random.key(4)))
    same = peft.apply(v, a, X)
    assert all(np.array_equal(one, same[0]) for one in same)


def test_a_loop_without_a_key_is_as_the_model_wrote_it():
    v = {"k": jnp.ones((8, 6))}
    peft = pj.adapt(scanned, v, X, rules={"k": METHOD})
    a = peft.init(KEY)
    (loop,) = (
        eqn
        for eqn in jax.make_jaxpr(peft.apply)(v, a, X).eqns
        if eqn.primitive.name == "scan"
    )
    assert not any(jnp.issubdtype(var.aval.dtype, jnp.integer) for var in loop.invars)
