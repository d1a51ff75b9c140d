"""Small updates of narrow weights: none is rounded away where the model allows it."""

import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj
from peftjax.testing import error

pytestmark = pytest.mark.slow

LORA = pj.LoRA(rank=2, alpha=7.0)
RNG = np.random.default_rng(0)


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def small(peft, size=1e-4):
    """Adapters as after one step: b is 1e-4."""

    def moved(path, leaf):
        return jnp.full_like(leaf, size) if path[-1].key == "b" else leaf

    fresh = peft.init(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(moved, fresh)


def effect(apply_fn, v, x, size=1e-4, **options):
    """What small adapters change in the output."""
    peft = pj.adapt(apply_fn, v, x, rules={".*(kernel|embedding)": LORA}, **options)
    base = np.asarray(jax.jit(apply_fn)(v, x), np.float64)
    adapted = np.asarray(jax.jit(peft.apply)(v, small(peft, size), x), np.float64)
    return peft, adapted - base


MASK = normal(8, 6) > 0
V = {"kernel": normal(8, 6), "scale": normal(6)}
IDS = jnp.array([0, 3, 3])

# The model casts up, or its product is exact: what remains is the update.
MODELS = {
    "constant": (True, lambda v, x: x @ (v["kernel"].astype(x.dtype) * 1.0009765625)),
    "power of two": (True, lambda v, x: x @ (v["kernel"] * 0.125).astype(x.dtype)),
    "division": (True, lambda v, x: x @ (v["kernel"].astype(x.dtype) / 3.0)),
    "scale of each output": (
        True,
        lambda v, x: x @ (v["kernel"].astype(x.dtype) * v["scale"].astype(x.dtype)),
    ),
    "scale in the narrow type": (
        False,
        lambda v, x: x @ (v["kernel"] * v["scale"]).astype(x.dtype),
    ),
    "mask": (
        False,
        lambda v, x: x @ (v["kernel"] * MASK.astype(v["kernel"].dtype)).astype(x.dtype),
    ),
    "where": (
        False,
        lambda v, x: x @ jnp.where(MASK, v["kernel"], 0).astype(x.dtype),
    ),
    "halves": (
        False,
        lambda v, x: (
            x[:, :4] @ v["kernel"][:4].astype(x.dtype)
            + x @ v["kernel"][::-1].astype(x.dtype)
        ),
    ),
    "weight norm": (
        False,
        lambda v, x: (
            x @ (v["kernel"] * lax.rsqrt((v["kernel"] ** 2).sum(0))).astype(x.dtype)
        ),
    ),
    "scanned": (
        False,
        lambda v, x: lax.scan(
            lambda x, k: (x, x @ (k * MASK.astype(k.dtype)).astype(x.dtype)),
            x,
            jnp.stack([v["kernel"], v["kernel"] * 0.5]),
        )[1],
    ),
}


@pytest.mark.filterwarnings("ignore:.*narrower than float32")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_small_update_has_its_effect(name, dtype):
    fast, apply_fn = MODELS[name]
    x = normal(5, 8)
    v = jax.tree.map(lambda leaf: leaf.astype(dtype), V)
    peft, found = effect(apply_fn, v, x)
    assert peft.sites[0].fast == fast
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), v)
    _, expected = effect(apply_fn, wide, x)
    # the scales themselves are rounded by the model; the update is not
    assert error(found, expected) < 2 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_in_the_narrow_type_take_the_update_apart(dtype):
    # equal rows and opposite inputs: the base gives 0, so only the update is rounded
    k = jnp.repeat(normal(4, 6), 2, axis=0).astype(dtype)
    x = jnp.tile(jnp.array([1.0, -1.0]), 4)[None].astype(dtype)
    mask = jnp.repeat(normal(4, 6) > -1, 2, axis=0).astype(dtype)
    for apply_fn in (
        lambda v, x: x @ (v["kernel"] * mask),
        lambda v, x: lax.conv_general_dilated(
            x[:, None],
            (v["kernel"] * mask)[None],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        ),
    ):
        peft, found = effect(apply_fn, {"kernel": k}, x)
        p = small(peft)["kernel"]
        delta = 3.5 * np.asarray(p["a"] @ p["b"], np.float64) * np.asarray(mask)
        expected = np.asarray(x, np.float64) @ delta
        assert not peft.sites[0].fast and not peft.sites[0].notes
        assert error(found.reshape(1, 6), expected) < 8 * float(jnp.finfo(dtype).eps)


def test_a_merged_embedding_keeps_the_update_up_to_the_models_cast():
    def apply_fn(v, ids):
        return (v["embedding"] * MASK.astype(v["embedding"].dtype))[ids].astype(
            "float32"
        )

    v = {"embedding": V["kernel"].astype("bfloat16")}
    _, found = effect(apply_fn, v, IDS)
    _, expected = effect(apply_fn, jax.tree.map(lambda k: k.astype("float32"), v), IDS)
    assert error(found, expected) < 1e-3


def test_the_bias_of_a_merged_site_keeps_its_update():
    def apply_fn(v, x):
        y = x @ v["kernel"].astype(x.dtype) + v["bias"]
        return y + jnp.tanh(v["kernel"]).sum().astype(x.dtype)

    v = {"kernel": V["kernel"].astype("bfloat16"), "bias": jnp.ones(6, "bfloat16")}
    x = normal(5, 8)
    peft = pj.adapt(apply_fn, v, x, rules={"kernel": pj.SSF()})
    p = {"kernel": {"scale": jnp.ones(6), "shift": jnp.full(6, 1e-4)}}
    change = peft.apply(v, p, x) - apply_fn(v, x)
    assert peft.sites[0].bias == "bias" and not peft.sites[0].fast
    assert np.allclose(change, 1e-4, rtol=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_has_to_be_rounded_is_said(dtype):
    v, x = {"kernel": V["kernel"].astype(dtype)}, normal(5, 8)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        peft = pj.adapt(
            lambda v, x: x @ jnp.sort(v["kernel"]).astype(x.dtype),
            v,
            x,
            rules={"kernel": LORA},
        )
    told = "small updates are lost" in peft.summary()
    warned = [
        str(w.message) for w in found if "kernel (used by `sort`)" in str(w.message)
    ]
    assert (told, len(warned)) == ((True, 1) if dtype != "float32" else (False, 0))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(6, dtype=jnp.float32))(x)


LAYERS = {
    "WeightNorm": (Normed(), normal(5, 8)),
    "Conv(mask)": (
        nn.Conv(
            6, (3,), mask=MASK.reshape(1, 8, 6) * jnp.ones((3, 1, 1)), dtype=jnp.float32
        ),
        normal(2, 5, 8),
    ),
    "ConvTranspose": (
        nn.ConvTranspose(6, (3,), transpose_kernel=True, dtype=jnp.float32),
        normal(2, 5, 6),
    ),
}


@pytest.mark.filterwarnings("ignore:.*narrower than float32")
@pytest.mark.parametrize("name", LAYERS)
def test_flax_layers_that_use_a_kernel_otherwise(name):
    model, x = LAYERS[name]
    v = jax.jit(model.init)(jax.random.key(0), x)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), v)
    found, expected = (effect(model.apply, w, x)[1] for w in (half, v))
    sizes = [np.sqrt((change**2).mean()) for change in (found, expected)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def distance(peft, v, x, y, a):
    return ((peft.apply(v, a, x) - y) ** 2).mean()


def test_training_a_scaled_weight_in_bfloat16_equals_training_its_product():
    k, x, y = normal(16, 16, dtype="bfloat16"), normal(9, 16), normal(9, 16)
    losses = []
    for apply_fn in (
        lambda v, x: x @ (v["k"].astype("float32") * 1.0009765625),
        lambda v, x: (x @ v["k"].astype("float32")) * 1.0009765625,
    ):
        peft = pj.adapt(apply_fn, {"k": k}, x, rules={"k": LORA}, strict=True)
        a = peft.init(jax.random.key(0))
        run = jax.jit(jax.value_and_grad(partial(distance, peft, {"k": k}, x, y)))
        for _ in range(4):
            loss, gradient = run(a)
            a = jax.tree.map(lambda p, g: p - 1e-3 * g, a, gradient)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


SG = lax.stop_gradient
FROZEN = {
    "fast": (lambda v, x: x @ SG(v["k"]), lambda v, x: x @ v["k"]),
    "scaled": (lambda v, x: x @ (SG(v["k"]) * 0.5), lambda v, x: x @ (v["k"] * 0.5)),
    "merged": (lambda v, x: x @ (SG(v["k"]) * MASK), lambda v, x: x @ (v["k"] * MASK)),
    "merged, then stopped": (
        lambda v, x: x @ SG(v["k"] * MASK),
        lambda v, x: x @ (v["k"] * MASK),
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_adapters_train_behind_stop_gradient(name):
    v, x = {"k": V["kernel"]}, normal(5, 8)
    gradients = []
    for apply_fn in FROZEN[name]:
        peft = pj.adapt(apply_fn, v, x, rules={"k": LORA})
        a = jax.tree.map(lambda leaf: leaf + 0.1, peft.init(jax.random.key(0)))
        gradients.append(jax.grad(partial(distance, peft, v, x, 0.0))(a)["k"])
    for key in ("a", "b"):
        assert np.abs(gradients[0][key]).max() > 0
        assert error(gradients[0][key], gradients[1][key]) < 1e-6


def test_full_trains_behind_stop_gradient():
    v, x = {"k": V["kernel"], "b": jnp.ones(6)}, normal(5, 8)
    gradients = []
    for stop in (SG, lambda v: v):
        apply_fn = partial(lambda stop, v, x: x @ stop(v["k"].T).T + stop(v["b"]), stop)
        peft = pj.adapt(apply_fn, v, x, rules={".": pj.Full()})
        a = peft.init(jax.random.key(0))
        gradients.append(jax.grad(partial(distance, peft, v, x, 0.0))(a))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[0]))
    assert jax.tree.all(jax.tree.map(np.array_equal, *gradients))


E8 = ["float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", E8)
@pytest.mark.parametrize(
    "method", [LORA, pj.DoRA(2, alpha=7.0), pj.HRA(rank=2)], ids=str
)
def test_weights_in_8_bits_are_adapted_in_the_activations_type(dtype, method):
    def dense(v, x):
        dims = ((1,), (0,)), ((), ())
        return lax.dot_general(x, v["k"], dims, preferred_element_type="float32")

    v, x = {"k": normal(8, 6, dtype=dtype)}, normal(5, 8, dtype="bfloat16")
    peft = pj.adapt(dense, v, x, rules={"k": method}, strict=True)
    a = jax.tree.map(lambda leaf: leaf + 1e-2, peft.init(jax.random.key(0)))
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), v)
    expected = method(a["k"], x.astype("float32"), wide["k"])
    assert error(peft.apply(v, a, x), expected) < 4 * float(jnp.finfo("bfloat16").eps)
    merged = peft.merge(v, a)["k"]
    assert merged.dtype == v["k"].dtype
    exact = pj.adapt(dense, wide, x, rules={"k": method}).merge(wide, a)["k"]
    assert error(merged, exact) < float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", E8)
def test_a_lookup_in_8_bits_keeps_the_update_up_to_the_models_cast(dtype):
    v = {"e": normal(10, 6, dtype=dtype)}
    lookup = lambda v, ids: v["e"][ids].astype("float32")  # noqa: E731
    peft = pj.adapt(lookup, v, IDS, rules={"e": LORA}, strict=True)
    a = {"e": {"a": jnp.full((10, 2), 1e-3), "b": jnp.full((2, 6), 0.5)}}
    change = peft.apply(v, a, IDS) - lookup(v, IDS)
    assert np.allclose(change, 3.5 * 2 * 1e-3 * 0.5, rtol=1e-3)


def test_full_takes_the_type_of_the_leaf_that_is_given():
    v, x = {"k": normal(8, 6, dtype="bfloat16")}, normal(5, 8, dtype="bfloat16")
    peft = pj.adapt(lambda v, x: x @ v["k"], v, x, rules={"k": pj.Full()})
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), v)
    a = peft.init(jax.random.key(0), wide)
    assert a["k"]["value"].dtype == "float32"
    assert peft.merge(wide, a)["k"].dtype == "float32"
    found = peft.apply(wide, a, x.astype("float32"))
    assert found.dtype == "float32" and peft.apply(v, a, x).dtype == "bfloat16"


OVERFLOWS = {
    "float16 weight": ("k", "float16", pj.LoRA(2, alpha=8.0), {"a": 100.0, "b": 100.0}),
    "product of finite": (
        "k",
        "float32",
        pj.LoRA(2, alpha=8.0),
        {"a": 1e20, "b": 1e20},
    ),
    "float16 bias": ("b", "float16", pj.SSF(), {"scale": 1.0, "shift": 1e5}),
    "float8 weight": (
        "k",
        "float8_e4m3fn",
        pj.LoRA(2, alpha=8.0),
        {"a": 10.0, "b": 10.0},
    ),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_merge_refuses_to_overflow(name):
    leaf, dtype, method, values = OVERFLOWS[name]
    v = {"k": jnp.ones((8, 6)), "b": jnp.ones(6)}
    v[leaf] = v[leaf].astype(dtype)
    apply_fn = lambda v, x: x @ v["k"].astype("float32") + v["b"]  # noqa: E731
    peft = pj.adapt(apply_fn, v, normal(5, 8), rules={"k": method})
    shapes = jax.eval_shape(peft.init, jax.random.key(0))["k"]
    a = {"k": {n: jnp.full(shapes[n].shape, value) for n, value in values.items()}}
    with pytest.raises(
        ValueError, match="^k: the merged weight or bias holds NaN or inf"
    ):
        peft.merge(v, a)
    # a base that is not finite either may stay so
    broken = {**v, "k": v["k"].at[0, 0].set(jnp.nan)}
    peft.merge(broken, a)
