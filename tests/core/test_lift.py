"""The rules on arrays: each use is its formula, and nothing else changes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj
from peftjax.core.method import Method
from peftjax.core.peft import adapt

X = jax.random.normal(jax.random.key(0), (5, 8))
K = jax.random.normal(jax.random.key(1), (8, 8))
B = jax.random.normal(jax.random.key(2), (8,))


@dataclass(frozen=True)
class Twice(Method):
    """`y = 2 (x K + b)`: wrong wherever the bias does not come to the formula."""

    uses_bias = True

    def init(self, key, layer):
        return {"scale": jnp.full((), 2.0)}

    def formula(self, p, x, kernel, bias, *, key=None):
        return p["scale"] * (x @ kernel + bias)


@dataclass(frozen=True)
class Added(Method):
    """`y = x (K + 1) + b`."""

    def init(self, key, layer):
        return {"one": jnp.ones((layer.d_in, layer.d_out))}

    def formula(self, p, x, kernel, bias, *, key=None):
        return x @ kernel + x @ p["one"] + bias


def primitives(jaxpr):
    """Names of all primitives, those inside of others too."""
    names = []
    for eqn in jaxpr.eqns:
        names.append(eqn.primitive.name)
        for value in eqn.params.values():
            for inside in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner := getattr(inside, "jaxpr", inside), "eqns"):
                    names += primitives(inner)
    return names


BIASED = {
    "plain": lambda x, k, b: x @ k + b,
    "flipped": lambda x, k, b: b + x @ k,
    "reshaped": lambda x, k, b: (x @ k).reshape(5, 2, 4) + b.reshape(2, 4),
    "cast": lambda x, k, b: (x @ k).astype("float16").astype("float32") + b,
    "transposed": lambda x, k, b: ((x @ k).T + b[:, None]).T,
    "jit": lambda x, k, b: jax.jit(lambda y: y + b)(x @ k),
    "remat": lambda x, k, b: jax.checkpoint(lambda x, k, b: x @ k + b)(x, k, b),
    "cond": lambda x, k, b: lax.cond(
        True, lambda k, b: x @ k + b, lambda k, b: x, k, b
    ),
    "while": lambda x, k, b: lax.while_loop(
        lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] @ k + b), (0, x)
    )[1],
}


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_decides_itself_at_its_addition(name):
    apply_fn = lambda v, x: BIASED[name](x, v["k"], v["b"])  # noqa: E731
    v = {"k": K, "b": B}
    peft = adapt(apply_fn, v, X, rules={"k": Twice()}, strict=True)
    found = peft.apply(v, peft.init(jax.random.key(0)), X)
    tolerance = 4e-3 if name == "cast" else 1e-5
    np.testing.assert_allclose(found, 2 * apply_fn(v, X), tolerance, tolerance)


def test_a_stacked_bias_goes_with_its_layer():
    def apply_fn(v, x):
        body = lambda x, layer: (jnp.sin(x @ layer["k"] + layer["b"]), None)  # noqa: E731
        return lax.scan(body, x, v)[0]

    v = {"k": jnp.stack([K, K.T]), "b": jnp.stack([B, -B])}
    peft = adapt(apply_fn, v, X, rules={"k": Twice()}, strict=True)
    found = peft.apply(v, peft.init(jax.random.key(0)), X)
    expected = jnp.sin(2 * (jnp.sin(2 * (X @ K + B)) @ K.T - B))
    np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda x, k, b: x @ k,
        lambda x, k, b: x @ k + 2 * b,
        lambda x, k, b: jnp.tanh(x @ k) + b,
        lambda x, k, b: x @ k + b + b.sum(),
    ],
)
def test_a_call_without_the_planned_bias_is_refused(otherwise):
    def apply_fn(v, x, train=False):
        return (otherwise if train else BIASED["plain"])(x, v["k"], v["b"])

    v = {"k": K, "b": B}
    peft = adapt(apply_fn, v, X, rules={"k": Twice()})
    adapters = peft.init(jax.random.key(0))
    with pytest.raises(ValueError, match="k: this call does not add the bias b as"):
        peft.apply(v, adapters, X, train=True)


def test_a_use_that_was_not_planned_merges_where_it_is():
    def apply_fn(v, x, other=False):
        k = v["k"]
        return x @ k + (x @ (k * k) + x @ jnp.sort(k.T) if other else 0.0)

    peft = adapt(apply_fn, {"k": K}, X, rules={"k": Added()}, strict=True)
    adapters = peft.init(jax.random.key(0))
    found = peft.apply({"k": K}, adapters, X, other=True)
    np.testing.assert_allclose(found, apply_fn({"k": K + 1}, X, other=True), 1e-4, 1e-4)

    peft = adapt(apply_fn, {"k": K}, X, rules={"k": pj.SSF()})
    with pytest.raises(
        ValueError, match=r"k: this call uses the weight otherwise.*mul"
    ):
        peft.apply({"k": K}, peft.init(jax.random.key(0)), X, other=True)


def test_what_holds_no_adapter_stays_as_it_was():
    def apply_fn(v, x):
        x = lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)
        return jax.jit(jnp.cos)(x) @ v["k"] + v["b"]

    v = {"k": K, "b": B}
    peft = adapt(apply_fn, v, X, rules={"k": pj.LoRA(2, alpha=4.0)})
    adapters = peft.init(jax.random.key(0))
    before = primitives(jax.make_jaxpr(apply_fn)(v, X).jaxpr)
    after = primitives(jax.make_jaxpr(peft.apply)(v, adapters, X).jaxpr)
    # two products, a scale and a sum; no transpose and no copy of the weight
    assert after.count("dot_general") == before.count("dot_general") + 2
    assert set(after) - set(before) <= {"mul", "add", "add_any"}


def test_nothing_is_compiled_anew_for_the_same_shapes():
    v = {f"k{i}": K for i in range(3)}
    apply_fn = lambda v, x: x @ v["k0"] @ v["k1"] @ v["k2"]  # noqa: E731
    seen = []

    @dataclass(frozen=True)
    class Counted(Added):
        def init(self, key, layer):
            seen.append("init")
            return super().init(key, layer)

        def penalty(self, p):
            seen.append("penalty")
            return jnp.sum(p["one"])

    peft = adapt(apply_fn, v, X, rules={".*": Counted()})
    del seen[:]
    for _ in range(2):
        adapters = peft.init(jax.random.key(0))
        assert float(peft.penalty(adapters)) == 3 * 64
        peft.merge(v, adapters)
    assert set(seen) <= {"init", "penalty"} and len(seen) <= 2


def test_a_method_that_cannot_be_hashed_still_runs():
    @dataclass(frozen=True)
    class Listed(Added):
        sizes: list[int] | None = None

    v = {"k": K}
    peft = adapt(lambda v, x: x @ v["k"], v, X, rules={"k": Listed([1])})
    adapters = peft.init(jax.random.key(0))
    merged = peft.merge(v, adapters)
    np.testing.assert_allclose(peft.apply(v, adapters, X), X @ merged["k"], 1e-5, 1e-5)
