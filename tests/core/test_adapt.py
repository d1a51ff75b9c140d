"""`adapt` as a user meets it: paths, collections, boxes, dropout, errors, summary."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import peftjax as pj
from peftjax.core.method import Method
from peftjax.testing import error, perturb

LORA = pj.LoRA(rank=2, alpha=7.0)
X = jax.random.normal(jax.random.key(9), (4, 8))


class Net(nn.Module):
    """Two dense layers around a batch norm and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16, name="fc1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="head")(x)


@pytest.fixture(scope="module")
def net():
    model = Net()
    return model, model.init(jax.random.key(0), X)


def test_first_match_wins_and_other_collections_are_left_alone(net):
    model, v = net
    rules = {"fc1/kernel": LORA, r".*(kernel|bias)": pj.Full()}
    peft = pj.adapt(model.apply, v, X, rules=rules)
    methods = {site.path: site.method for site in peft.sites}
    assert methods["fc1/kernel"] == LORA and methods["head/bias"] == pj.Full()
    with pytest.raises(ValueError, match="matches no parameter"):
        pj.adapt(model.apply, v, X, rules={".*/mean": pj.Full()})


def test_full_fine_tuning_is_the_base_at_the_start(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={".*": pj.Full()})
    adapters = peft.init(jax.random.key(0))
    assert np.array_equal(peft.apply(v, adapters, X), model.apply(v, X))
    moved = jax.tree.map(lambda a: a + 1, adapters)
    assert np.array_equal(peft.apply(v, moved, X), model.apply(peft.merge(v, moved), X))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(v["params"]))
    assert sum(site.trainable for site in peft.sites) == sizes
    # a donated train state must not take the model's own buffers with it
    own = v["params"]["head"]["kernel"].unsafe_buffer_pointer()
    assert adapters["head/kernel"]["value"].unsafe_buffer_pointer() != own


def test_two_rules_on_kernel_and_bias_of_one_layer(net):
    model, v = net
    rules = {".*/kernel": LORA, ".*/bias": pj.Full()}
    peft = pj.adapt(model.apply, v, X, rules=rules)
    adapters = perturb(peft, peft.init(jax.random.key(0)))
    merged = model.apply(peft.merge(v, adapters), X)
    assert error(peft.apply(v, adapters, X), merged) < 1e-5


def test_mutable_collections_and_model_rngs_pass_through(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA})
    adapters = peft.init(jax.random.key(0))
    options = dict(
        train=True, rngs={"dropout": jax.random.key(3)}, mutable=["batch_stats"]
    )
    found, state = jax.jit(lambda v, a, x: peft.apply(v, a, x, **options))(
        v, adapters, X
    )
    expected, expected_state = model.apply(v, X, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, expected_state
    )


def test_boxed_parameters_keep_their_boxes():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model = nn.Dense(3, kernel_init=init)
    v = model.init(jax.random.key(0), X)
    peft = pj.adapt(model.apply, v, X, rules={"kernel": LORA})
    adapters = perturb(peft, peft.init(jax.random.key(0)))
    merged = peft.merge(v, adapters)
    assert isinstance(merged["params"]["kernel"], nn.Partitioned)
    assert jax.tree.structure(merged) == jax.tree.structure(v)
    assert error(peft.apply(v, adapters, X), model.apply(merged, X)) < 1e-5


def test_abstract_variables_plan_a_model_without_its_weights(net):
    model, _ = net
    v = jax.eval_shape(model.init, jax.random.key(0), X)
    rules = {"fc1/kernel": LORA, "head/.*": pj.Full()}
    peft = pj.adapt(model.apply, v, jax.ShapeDtypeStruct(X.shape, X.dtype), rules=rules)
    assert sum(site.trainable for site in peft.sites) == 2 * 24 + 16 * 3 + 3
    with pytest.raises(ValueError, match=r"head/bias: Full .*init\(key, variables\)"):
        peft.init(jax.random.key(0))
    real = model.init(jax.random.key(0), X)
    adapters = peft.init(jax.random.key(0), real)
    assert error(peft.apply(real, adapters, X), model.apply(real, X)) < 1e-6


def test_adapters_are_float32_on_a_bfloat16_base():
    model = nn.Dense(6, param_dtype="bfloat16", dtype="bfloat16")
    v = model.init(jax.random.key(0), X)
    peft = pj.adapt(model.apply, v, X, rules={"kernel": LORA, "bias": pj.Full()})
    adapters = peft.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    assert peft.apply(v, adapters, X).dtype == jnp.bfloat16
    assert peft.merge(v, adapters)["params"]["kernel"].dtype == jnp.bfloat16


def test_plans_are_hashable_and_equal(net):
    model, v = net
    plans = [pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA}) for _ in range(2)]
    assert plans[0] == plans[1] and hash(plans[0]) == hash(plans[1])


def test_one_compilation_serves_all_adapters(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA})
    count = 0

    @jax.jit
    def run(adapters):
        nonlocal count
        count += 1
        return peft.apply(v, adapters, X)

    for seed in range(3):
        run(peft.init(jax.random.key(seed)))
    assert count == 1


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return layer(x), None

        layer = nn.Dense(8, name="layer")
        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scan(layer, x, None)[0]


def test_dropout_needs_a_key_and_differs_between_layers_and_uses():
    model = Scanned()
    v = model.init(jax.random.key(0), X)
    v = jax.tree.map(jnp.zeros_like, v)
    method = pj.LoRA(rank=8, alpha=8.0, dropout=0.5)
    peft = pj.adapt(model.apply, v, X, rules={"layer/kernel": method})
    identity = jnp.broadcast_to(jnp.eye(8), (3, 8, 8))
    adapters = {"layer/kernel": {"a": identity, "b": identity}}
    assert np.array_equal(peft.apply(v, adapters, X), X)
    out = peft.apply(v, adapters, X, adapter_key=jax.random.key(1))
    kept = np.asarray(out != 0)
    # three layers with their own masks keep an eighth of the entries, scaled by 8
    assert 0 < kept.mean() < 0.4
    np.testing.assert_allclose(out[kept], 8 * X[kept], rtol=1e-5)
    again = peft.apply(v, adapters, X, adapter_key=jax.random.key(1))
    other = peft.apply(v, adapters, X, adapter_key=jax.random.key(2))
    assert np.array_equal(out, again) and not np.array_equal(out, other)


def test_explicit_mesh_axes():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    v = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}
    x = jax.random.normal(jax.random.key(1), (4, 8, 8))
    apply_fn = lambda v, x: jnp.dot(x, v["kernel"])  # noqa: E731
    peft = pj.adapt(apply_fn, v, x, rules={"kernel": LORA})
    adapters = perturb(peft, peft.init(jax.random.key(0)))
    expected = peft.apply(v, adapters, x)
    with jax.set_mesh(mesh):
        both = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
        found = jax.jit(peft.apply)(v, adapters, both)
    assert error(found, expected) < 1e-6


# --- the formula's bias -------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(Method):
    """`y = scale (x K + b)`, to see whether the bias takes part."""

    uses_bias = True

    def init(self, key, layer):
        return {"scale": jnp.full((), 2.0)}

    def formula(self, p, x, kernel, bias, *, key=None):
        return p["scale"] * (x @ kernel + bias)


def _two_layers(add):
    v = {name: {"kernel": jnp.eye(8), "bias": jnp.arange(8.0)} for name in "ab"}
    return v, lambda v, x: add(x @ v["a"]["kernel"], v["a"]["bias"]) @ v["b"]["kernel"]


def test_a_paired_bias_belongs_to_the_formula():
    v, apply_fn = _two_layers(lambda y, b: y + b)
    peft = pj.adapt(apply_fn, v, X, rules={"a/kernel": Doubled()})
    assert peft.sites[0].bias == "a/bias"
    adapters = peft.init(jax.random.key(0))
    np.testing.assert_allclose(
        peft.apply(v, adapters, X), 2 * apply_fn(v, X), rtol=1e-6
    )
    merged = peft.merge(v, adapters)
    np.testing.assert_allclose(merged["a"]["bias"], 2 * jnp.arange(8.0), rtol=1e-6)
    assert np.array_equal(v["a"]["bias"], jnp.arange(8.0))


@pytest.mark.parametrize(
    "add, why",
    [
        (lambda y, b: 2 * y + b, "mul"),
        (lambda y, b: y + b + b.sum(), "reduce_sum"),
        (lambda y, b: (y + b) * y, "mul"),
        (lambda y, b: y + b[::-1], "add"),
    ],
)
def test_a_bias_used_otherwise_is_refused_by_equation(add, why):
    v, apply_fn = _two_layers(add)
    with pytest.raises(ValueError, match=rf"a/kernel: Doubled needs .*a/bias.*{why}"):
        pj.adapt(apply_fn, v, X, rules={"a/kernel": Doubled()})
    assert pj.adapt(apply_fn, v, X, rules={"a/kernel": LORA}).sites[0].fast


def test_a_layer_without_bias_takes_no_constant_in_a_merge():
    @dataclass(frozen=True)
    class Shift(Method):
        def init(self, key, layer):
            return {"shift": jnp.ones(layer.d_out)}

        def formula(self, p, x, kernel, bias, *, key=None):
            return x @ kernel + bias + p["shift"]

    model = nn.Dense(3, use_bias=False)
    v = model.init(jax.random.key(0), X)
    peft = pj.adapt(model.apply, v, X, rules={"kernel": Shift()})
    adapters = peft.init(jax.random.key(0))
    np.testing.assert_allclose(peft.apply(v, adapters, X), model.apply(v, X) + 1, 1e-6)
    assert "no bias" in peft.summary()
    with pytest.raises(pj.NotMergeable, match="kernel: .*no bias"):
        peft.merge(v, adapters)


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"fc1/kernal": LORA}, "'fc1/kernal' matches no parameter.*\n  fc1/kernel"),
        ({"fc": LORA}, "must match the whole path"),
        (
            {".*kernel": LORA, "head/kernel": LORA},
            "decides no parameter: earlier rules",
        ),
        ({"(": LORA}, "not a regular expression"),
        ({}, "rules are empty"),
        (
            {"fc1/kernel": pj.LoRA(9, 1.0)},
            r"fc1/kernel: LoRA\(rank=9\).* 1 <= rank <= 8",
        ),
        ({"head/kernel": pj.LoRA(4, 1.0)}, r"head/kernel: LoRA\(rank=4\).* <= 3"),
        ({"fc1/bias": LORA}, r"fc1/bias: LoRA needs a weight with at least 2 axes"),
    ],
)
def test_bad_rules_name_what_and_where(net, rules, message):
    model, v = net
    with pytest.raises(ValueError, match=message):
        pj.adapt(model.apply, v, X, rules=rules)


def test_a_rule_that_holds_no_method(net):
    with pytest.raises(TypeError, match="'fc1/kernel': expected a method"):
        pj.adapt(net[0].apply, net[1], X, rules={"fc1/kernel": 8})


def test_variables_of_another_model(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA})
    adapters = peft.init(jax.random.key(0))
    other = nn.Dense(3).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="missing.*fc1/.*unexpected.*bias"):
        peft.apply(other, adapters, X)
    v = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), v)
    with pytest.raises(ValueError, match=r"expected shape \(16,\), found \(32,\)"):
        peft.merge(v, adapters)


def test_adapters_of_another_plan(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA})
    with pytest.raises(ValueError, match=r"missing \['fc1/kernel'\].*\['fc2'\]"):
        peft.apply(v, {"fc2": {}}, X)


@pytest.mark.parametrize("call", ["apply", "merge"])
@pytest.mark.parametrize("bad", ["rank", "missing", "extra"])
def test_arrays_of_other_rules(net, call, bad):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA})
    adapters = peft.init(jax.random.key(0))
    own = adapters["fc1/kernel"]
    if bad == "rank":
        adapters["fc1/kernel"] = {"a": own["a"][:, :1], "b": own["b"][:1]}
    elif bad == "missing":
        del own["b"]
    else:
        own["c"] = own["b"]
    arguments = (X,) if call == "apply" else ()
    with pytest.raises(ValueError, match=r"fc1/kernel: expected .* of LoRA.*; found a"):
        getattr(peft, call)(v, adapters, *arguments)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_adapter_refuses_to_merge(net, bad):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={".*kernel": LORA})
    adapters = peft.init(jax.random.key(0))
    adapters["head/kernel"]["b"] = adapters["head/kernel"]["b"].at[0, 0].set(bad)
    with pytest.raises(ValueError, match="head/kernel: .*'b' holds NaN or infinity"):
        peft.merge(v, adapters)


def test_a_formula_that_is_not_affine_does_not_merge():
    @dataclass(frozen=True)
    class Squashed(Method):
        def init(self, key, layer):
            return {"b": jnp.zeros(layer.d_out)}

        def formula(self, p, x, kernel, bias, *, key=None):
            return x @ kernel + jnp.tanh(x @ kernel) * p["b"] + bias

    model = nn.Dense(3)
    v = model.init(jax.random.key(0), X)
    peft = pj.adapt(model.apply, v, X, rules={"kernel": Squashed()})
    adapters = peft.init(jax.random.key(0))
    assert np.array_equal(peft.apply(v, adapters, X), model.apply(v, X))
    with pytest.raises(pj.NotMergeable, match="kernel: Squashed.*`tanh`"):
        peft.merge(v, adapters)


def test_a_formula_that_uses_x_otherwise_is_refused_on_a_convolution():
    @dataclass(frozen=True)
    class Scaled(Method):
        def init(self, key, layer):
            return {"scale": jnp.ones(layer.d_in)}

        def formula(self, p, x, kernel, bias, *, key=None):
            return (x * p["scale"]) @ kernel + bias

    model, x = nn.Conv(3, (2, 2)), jnp.ones((1, 4, 4, 2))
    v = model.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="kernel: on a conv layer .* only as `x @ M`"):
        pj.adapt(model.apply, v, x, rules={"kernel": Scaled()})


def test_a_bug_in_a_formula_passes_through():
    @dataclass(frozen=True)
    class Broken(Method):
        def init(self, key, layer):
            return {"b": jnp.zeros(layer.d_out)}

        def formula(self, p, x, kernel, bias, *, key=None):
            return x @ kernel + p["typo"]

    model = nn.Dense(3)
    v = model.init(jax.random.key(0), X)
    with pytest.raises(KeyError, match="typo"):
        pj.adapt(model.apply, v, X, rules={"kernel": Broken()})


def test_summary_holds_the_facts(net):
    model, v = net
    peft = pj.adapt(model.apply, v, X, rules={"fc1/kernel": LORA, "head/.*": pj.Full()})
    lines = peft.summary().splitlines()
    row = next(line for line in lines if line.startswith("fc1/kernel"))
    for fact in (
        "dense",
        "[8, 16]",
        "LoRA(rank=2",
        "48",
        str(2 * 2 * (8 + 16)),
        "fast",
    ):
        assert fact in row
    assert "99 trainable parameters" in lines[-1] and "3 sites, 0 merged" in lines[-1]


def test_path_independent_starts(net):
    model, v = net
    one = pj.adapt(model.apply, v, X, rules={"head/kernel": LORA})
    two = pj.adapt(model.apply, v, X, rules={".*kernel": LORA})
    a, b = (p.init(jax.random.key(0))["head/kernel"] for p in (one, two))
    jax.tree.map(np.testing.assert_array_equal, a, b)
