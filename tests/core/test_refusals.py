"""What cannot be what it looks like is refused, in one sentence that names it."""

import re
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj
from peftjax.testing import error

LORA = pj.LoRA(rank=2, alpha=7.0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 8)), "float32")
IDS = jnp.array([1, 2])
Q = jnp.asarray(RNG.integers(-127, 127, (8, 6)), "int8")
SCALE = jnp.full(6, 0.01)


def floats(q):
    return q.astype("float32")


def product_of_integers(v, x):
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    dims = ((1,), (0,)), ((), ())
    xq = jnp.round(x / scale).astype("int8")
    y = lax.dot_general(xq, v["k"], dims, preferred_element_type="int32")
    return floats(y) * scale * SCALE


def mixed(v, x):
    dims = ((1,), (0,)), ((), ())
    return lax.dot_general(x, v["k"], dims, preferred_element_type="float32") * SCALE


def grouped(v, x):
    y = jnp.einsum("bgi,gio->bgo", x.reshape(5, 2, 4), floats(v["k"]).reshape(2, 4, 6))
    return (y * jnp.full((2, 6), 0.01)).sum(1)


UNSCALED = {
    "lookup": (lambda v, _: floats(v["k"][IDS]) * 0.01, "gather"),
    "products of integers": (product_of_integers, "dot_general"),
    "mixed product": (mixed, "dot_general"),
    "scaled after": (lambda v, x: (x @ floats(v["k"])) * SCALE, "dot_general"),
    "scaled in groups after": (grouped, "dot_general"),
    "times an integer": (
        lambda v, x: x @ (floats(v["k"]) * 2.0) * SCALE,
        "dot_general",
    ),
    "shifted": (lambda v, x: x @ (floats(v["k"]) - 3.0) * SCALE, "dot_general"),
    "not scaled": (lambda v, x: x @ floats(v["k"]), "dot_general"),
}


@pytest.mark.parametrize("name", UNSCALED)
def test_integers_that_are_not_scaled_before_their_use(name):
    apply_fn, primitive = UNSCALED[name]
    message = f"^k: .*quantised.*int8.*{primitive}.*before it is scaled.*Scale it first"
    with pytest.raises(ValueError, match=message):
        pj.adapt(apply_fn, {"k": Q}, X, rules={"k": LORA})


SCALED = {
    "cast, scaled": lambda v, x: x @ (floats(v["k"]) * SCALE),
    "divided": lambda v, x: x @ (floats(v["k"]) / 127.0),
    "zero point": lambda v, x: x @ ((floats(v["k"]) - 3.0) * SCALE),
    "groups": lambda v, x: (
        x @ (floats(v["k"]).reshape(2, 4, 6) * jnp.full((2, 1, 6), 0.01)).reshape(8, 6)
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_integers_that_are_scaled_before_their_use(name):
    apply_fn = SCALED[name]
    peft = pj.adapt(apply_fn, {"k": Q}, X, rules={"k": LORA}, strict=True)
    a = jax.tree.map(lambda leaf: leaf + 0.1, peft.init(jax.random.key(0)))
    expected = apply_fn({"k": Q}, X) + 3.5 * X @ a["k"]["a"] @ a["k"]["b"]
    assert error(peft.apply({"k": Q}, a, X), expected) < 1e-5


MODEL = nn.Dense(6)
V = MODEL.init(jax.random.key(0), X)
ADAPT = {
    "rules": [
        (None, TypeError, "rules: expected .* pairs, found None"),
        ("kernel", TypeError, "rules: expected .* pairs, found 'kernel'"),
        (["kernel"], TypeError, r"rules: expected .* found \['kernel'\]"),
        ({5: LORA}, TypeError, "rule 5: expected a regular expression"),
        ({b"kernel": LORA}, TypeError, "rule b'kernel': expected a regular expression"),
        ({"kernel": pj.LoRA}, TypeError, "rule 'kernel': expected a method such as"),
        (
            {re.compile("KERNEL", re.I): LORA},
            ValueError,
            r"flags are not saved.*\(\?i\)",
        ),
        ([("kernel", LORA), ("kernel", LORA)], ValueError, "decides no parameter"),
    ],
    "variables": [
        ({"params": {"kernel": 1.0}}, TypeError, "array at 'params/kernel', found 1.0"),
        (
            {"params": {"a/b": V["params"]["kernel"], "a": {"b": X}}},
            ValueError,
            "two parameters have the path 'a/b'",
        ),
    ],
}


@pytest.mark.parametrize("rules, kind, message", ADAPT["rules"])
def test_rules(rules, kind, message):
    with pytest.raises(kind, match=message):
        pj.adapt(MODEL.apply, V, X, rules=rules)


def test_rules_may_be_pairs_and_compiled_patterns():
    for rules in ([("kernel", LORA)], {re.compile("kernel"): LORA}):
        assert pj.adapt(MODEL.apply, V, X, rules=rules).rules == (("kernel", LORA),)
    inside = {re.compile("(?i)KERNEL"): LORA}
    assert pj.adapt(MODEL.apply, V, X, rules=inside).rules[0][0] == "(?i)KERNEL"


@pytest.mark.parametrize("variables, kind, message", ADAPT["variables"])
def test_variables_of_adapt(variables, kind, message):
    with pytest.raises(kind, match=message):
        pj.adapt(lambda v, x: x, variables, X, rules={"a/b": LORA})


PARAMS = V["params"]
GIVEN = {
    "a float": (
        {"params": {**PARAMS, "bias": 0.0}},
        TypeError,
        "'params/bias', found 0.0",
    ),
    "no collection": (
        PARAMS,
        ValueError,
        r"missing \['params/bias'.*unexpected \['bias'",
    ),
    "extra": (
        {**V, "stats": {"m": X}},
        ValueError,
        r"nothing, unexpected \['stats/m'\]",
    ),
    "integers": (
        jax.tree.map(lambda leaf: leaf.astype(int), V),
        ValueError,
        "bias: planned for float32, found int32",
    ),
    "none": (None, ValueError, "missing .*'params/kernel'"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_variables_of_a_call(name):
    variables, kind, message = GIVEN[name]
    peft = pj.adapt(MODEL.apply, V, X, rules={"kernel": LORA})
    a = peft.init(jax.random.key(0))
    for run in (lambda v: peft.apply(v, a, X), lambda v: peft.merge(v, a)):
        with pytest.raises(kind, match=message):
            run(variables)


ONES = {"a": jnp.ones((8, 2)), "b": jnp.ones((2, 6))}
ADAPTERS = {
    "none": (None, TypeError, "adapters: expected .*found NoneType"),
    "flat": ({"kernel": X}, TypeError, "adapters: expected"),
    "text": (
        {"kernel": {**ONES, "b": "x"}},
        TypeError,
        "^kernel: .*array as 'b', found 'x'",
    ),
    "number": ({"kernel": {**ONES, "a": 1.0}}, TypeError, "^kernel: .*'a', found 1.0"),
    "complex": (
        {"kernel": {**ONES, "a": ONES["a"] * 1j}},
        ValueError,
        "^kernel: expected floating numbers as 'a', found complex64",
    ),
    "integers": (
        {"kernel": {**ONES, "b": jnp.ones((2, 6), int)}},
        ValueError,
        "^kernel: expected floating numbers as 'b', found int32",
    ),
    "missing": (
        {"kernel": {"a": ONES["a"]}},
        ValueError,
        "^kernel: expected the arrays of",
    ),
    "nothing": ({"kernel": {}}, ValueError, "^kernel: .*found nothing"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name):
    adapters, kind, message = ADAPTERS[name]
    peft = pj.adapt(MODEL.apply, V, X, rules={"kernel": LORA})
    for run in (lambda a: peft.apply(V, a, X), lambda a: peft.merge(V, a)):
        with pytest.raises(kind, match=message):
            run(adapters)


def test_full_takes_no_other_shape():
    peft = pj.adapt(MODEL.apply, V, X, rules={"bias": pj.Full()})
    for value, message in (
        (jnp.ones(1), "found value"),
        (jnp.ones(6, int), "floating"),
    ):
        with pytest.raises(ValueError, match=f"^bias: .*{message}"):
            peft.apply(V, {"bias": {"value": value}}, X)


@dataclass(frozen=True)
class Own(pj.LoRA):
    """LoRA with a setting of its class changed."""

    rank: int = 2
    alpha: float = 7.0


@pytest.mark.parametrize("kind", ["frozen", "float32", "shared"])
def test_names_that_init_does_not_make(kind):
    method = type("Typo", (Own,), {kind: ("a", "bb")})()
    with pytest.raises(ValueError, match=rf"^kernel: Typo.{kind} names \['bb'\]"):
        pj.adapt(MODEL.apply, V, X, rules={"kernel": method})


@dataclass(frozen=True)
class Shared(Own):
    shared: ClassVar[tuple[str, ...]] = ("gain",)

    def init(self, key, layer):
        return {**super().init(key, layer), "gain": jnp.ones(layer.d_out)}

    def formula(self, p, x, kernel, bias, *, key=None):
        y = super().formula(p, x, kernel, bias, key=key)
        return y + (x @ p["a"] @ p["b"]) * (p["gain"] - 1)


def test_shared_arrays_are_checked_like_others():
    v = {"k": jnp.ones((8, 6)), "l": jnp.ones((6, 6))}
    apply_fn = lambda v, x: x @ v["k"] @ v["l"]  # noqa: E731
    peft = pj.adapt(apply_fn, v, X, rules={".": Shared()})
    a = peft.init(jax.random.key(0))
    for wrong, message in (
        ({"gain": jnp.ones(5)}, r"^shared: .*gain \[6\]; found gain \[5\]"),
        ({"gain": jnp.ones(6), "more": X}, "^shared: .*found gain"),
        ({}, "^shared: .*found nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.apply(v, {**a, "": wrong}, X)
    with pytest.raises(ValueError, match=r"^l: shares 'gain' with k.*\[5\].*\[6\]"):
        pj.adapt(apply_fn, {**v, "l": jnp.ones((6, 5))}, X, rules={".": Shared()})


@dataclass(frozen=True)
class Faulty(Own):
    fault: str = ""

    def formula(self, p, x, kernel, bias, *, key=None):
        if self.fault == "scales x":
            x = 2 * x
        if self.fault == "asks for its shape" and x.shape:
            pass
        if self.fault == "its own" and not hasattr(x, "ndim"):
            raise TypeError("a dictionary is missing")
        if self.fault == "misspelt" and not hasattr(x, "ndim"):
            jnp.asrray(kernel)
        return super().formula(p, x, kernel, bias, key=key)


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        ("scales x", TypeError, "embedding: .*may use x only as `x @ M`"),
        ("asks for its shape", TypeError, "embedding: .*may use x only as `x @ M`"),
        ("its own", TypeError, "^a dictionary is missing"),
        ("misspelt", AttributeError, "asrray"),
    ],
)
def test_an_error_inside_a_formula_is_reported_as_what_it_is(fault, kind, message):
    model = nn.Embed(8, 6)
    v = model.init(jax.random.key(0), IDS)
    with pytest.raises(kind, match=message):
        pj.adapt(model.apply, v, IDS, rules={"embedding": Faulty(fault=fault)})


@pytest.mark.parametrize("method", [pj.Full(), pj.DoRA(2, alpha=4.0)], ids=str)
def test_a_start_from_the_weight_needs_it(method):
    with pytest.raises(ValueError, match="^fc: .*starts from the weight itself"):
        method.init(jax.random.key(0), pj.Layer(8, 6, path="fc"))
