"""Every kind of use that the walker recognises: adapted equals merged, none merged."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj
from peftjax.testing import error, perturb

LORA = pj.LoRA(rank=2, alpha=7.0)
BOUND = 64 * float(jnp.finfo("float32").eps)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def agree(apply_fn, variables, *inputs, rules=None, fast=True, bound=BOUND):
    """Adapted equals merged and differs from the base, and is as fast as expected."""
    rules = rules or {".*kernel": LORA}
    peft = pj.adapt(apply_fn, variables, *inputs, rules=rules)
    assert all(site.fast == fast for site in peft.sites), peft.summary()
    adapters = perturb(peft, peft.init(jax.random.key(1)))
    run = jax.jit(
        lambda v, a: (peft.apply(v, a, *inputs), apply_fn(peft.merge(v, a), *inputs))
    )
    adapted, merged = run(variables, adapters)
    assert error(adapted, merged) < bound
    assert error(apply_fn(variables, *inputs), merged) > 1e-3
    return peft


def test_dot_general_in_every_arrangement():
    x, k = normal(0, 3, 5, 8), {"kernel": normal(1, 8, 6)}
    for apply_fn in (
        lambda v, x: x @ v["kernel"],
        lambda v, x: jnp.einsum("bti,io->bto", x, v["kernel"]),
        lambda v, x: jnp.einsum("io,bti->obt", v["kernel"], x),
        lambda v, x: jnp.tensordot(v["kernel"], x, ((0,), (2,))),
        lambda v, x: (v["kernel"].T @ x[..., None])[..., 0],
        lambda v, x: x.reshape(15, 8) @ v["kernel"].reshape(8, 2, 3).reshape(8, 6),
    ):
        (site,) = agree(apply_fn, k, x).sites
        assert (site.d_in, site.d_out, site.kind) == (8, 6, "dense")


@pytest.mark.parametrize(
    "spec, shape, sizes",
    [
        ("btd,dhk->bthk", (8, 2, 3), (8, 6)),
        ("bthk,hkd->btd", (2, 4, 6), (8, 6)),
        ("bthk,khd->btd", (4, 2, 6), (8, 6)),
        ("btd,hdk->bhtk", (2, 8, 3), (8, 6)),
    ],
)
def test_kernels_with_three_axes(spec, shape, sizes):
    x = normal(0, 2, 5, 2, 4) if "bthk," in spec else normal(0, 2, 5, 8)
    v = {"kernel": normal(1, *shape)}
    (site,) = agree(lambda v, x: jnp.einsum(spec, x, v["kernel"]), v, x).sites
    assert (site.d_in, site.d_out) == sizes and site.stack == ()


def test_experts_are_a_stack():
    v = {"kernel": normal(1, 3, 8, 6)}
    apply_fn = lambda v, x: jnp.einsum("etd,edo->eto", x, v["kernel"])  # noqa: E731
    peft = agree(apply_fn, v, normal(0, 3, 5, 8))
    (site,) = peft.sites
    assert site.stack == (3,) and site.trainable == 3 * 2 * (8 + 6)
    assert peft.init(jax.random.key(0))["kernel"]["a"].shape == (3, 8, 2)


def test_vmapped_linen_layer_pairs_its_bias():
    layer = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
    model, x = layer(6), normal(0, 3, 5, 8)
    peft = agree(model.apply, model.init(jax.random.key(0), x), x)
    assert peft.sites[0].bias == "bias" and peft.sites[0].stack == (3,)


def test_members_of_a_stack_by_index():
    def static(v, x):
        for i in range(3):
            x = jnp.tanh(x @ v["kernel"][i] + v["bias"][i])
        return x

    def dynamic(v, x):
        def body(i, x):
            return jnp.tanh(x @ v["kernel"][i] + v["bias"][i])

        return lax.fori_loop(0, 3, body, x)

    v = {"kernel": normal(1, 3, 8, 8) / 3, "bias": normal(2, 3, 8)}
    first = agree(static, v, normal(0, 5, 8))
    assert first.sites[0].stack == (3,) and first.sites[0].bias == "bias"
    assert agree(dynamic, v, normal(0, 5, 8)).sites[0].stack == (3,)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_scan_over_stacked_layers(reverse, axis):
    def apply_fn(v, x):
        kernel = jnp.moveaxis(v["kernel"], axis, 0)
        bias = jnp.moveaxis(v["bias"], axis, 0)

        def body(x, layer):
            k, b = layer
            return jnp.tanh(x @ k + b), x.sum()

        x, ys = lax.scan(body, x, (kernel, bias), reverse=reverse)
        return x + ys.sum()

    v = {"kernel": normal(1, 3, 8, 8) / 3, "bias": normal(2, 3, 8)}
    v = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), v)
    peft = agree(apply_fn, v, normal(0, 5, 8), rules={"kernel": pj.LoRA(2, 7.0)})
    assert peft.sites[0].stack == (3,) and peft.sites[0].bias == "bias"


def test_scan_of_one_layer_keeps_its_axis():
    def apply_fn(v, x):
        return lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, v["kernel"])[0]

    peft = agree(apply_fn, {"kernel": normal(1, 1, 8, 8)}, normal(0, 5, 8))
    assert peft.sites[0].stack == (1,)


def test_a_weight_that_every_iteration_shares():
    def apply_fn(v, x):
        return lax.scan(lambda x, _: (jnp.tanh(x @ v["kernel"]), None), x, None, 3)[0]

    (site,) = agree(apply_fn, {"kernel": normal(1, 8, 8)}, normal(0, 5, 8)).sites
    assert site.stack == () and site.flops == 3 * 2 * 2 * (8 + 8)


def test_while_cond_jit_and_remat():
    def apply_fn(v, x):
        k = v["kernel"]
        i = jnp.zeros((), jnp.int32)
        _, x = lax.while_loop(
            lambda c: c[0] < 2 + 0 * jnp.int32((c[1] @ k).sum()),
            lambda c: (c[0] + 1, jnp.tanh(c[1] @ k)),
            (i, x),
        )
        x = lax.cond(x.sum() > 1e9, lambda x: x, lambda x: x @ k, x)
        x = lax.switch(jnp.int32(1), [lambda x: x, lambda x: x @ k], x)
        return jax.checkpoint(jax.jit(lambda x, k: jnp.tanh(x @ k)))(x, k)

    agree(apply_fn, {"kernel": normal(1, 8, 8) / 3}, normal(0, 5, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": "VALID"},
        {"padding": "CIRCULAR"},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": ((1, 1), (1, 0))},
        {"padding": ((1, 2), (0, 1)), "strides": (1, 2)},
        {"use_bias": False},
    ],
)
def test_convolutions(options):
    model, x = nn.Conv(6, (3, 2), **options), normal(0, 2, 7, 7, 4)
    (site,) = agree(model.apply, model.init(jax.random.key(0), x), x).sites
    assert (site.kind, site.d_in, site.d_out) == ("conv", 24, 6)
    assert site.spatial == (3, 2)
    assert (site.bias is None) == (options.get("use_bias") is False)


def test_convolution_in_torch_layout():
    def apply_fn(v, x):
        dims = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(
            x, v["kernel"], (1, 1), "SAME", None, None, dims
        )

    (site,) = agree(
        apply_fn, {"kernel": normal(1, 6, 4, 3, 3)}, normal(0, 2, 4, 5, 5)
    ).sites
    assert (site.d_in, site.d_out) == (36, 6)


def test_grouped_convolution_is_refused():
    model, x = nn.Conv(8, (3, 3), feature_group_count=2), normal(0, 2, 7, 7, 4)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="kernel: a convolution with 2 groups"):
        pj.adapt(model.apply, variables, x, rules={"kernel": LORA})


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(11, 8, name="embed")
        return embed.attend(nn.tanh(embed(ids)))


def test_tied_output_layer():
    ids = jnp.array([[0, 3, 10], [1, 1, 7]])
    model = Tied()
    v = model.init(jax.random.key(0), ids)
    peft = agree(model.apply, v, ids, rules={"embed/embedding": LORA})
    (site,) = peft.sites
    assert (site.kind, site.d_in, site.d_out) == ("embedding", 11, 8)


def test_a_kernel_used_only_transposed():
    v = {"kernel": normal(1, 6, 8)}
    (site,) = agree(lambda v, x: x @ v["kernel"].T, v, normal(0, 5, 8)).sites
    assert (site.d_in, site.d_out) == (8, 6)


def test_several_uses_of_one_weight():
    def apply_fn(v, x):
        y = jnp.tanh(x @ v["kernel"])
        return y @ v["kernel"].T @ v["kernel"]

    agree(apply_fn, {"kernel": normal(1, 8, 6) / 2}, normal(0, 5, 8))


def test_out_of_range_ids_behave_as_in_the_model():
    model, ids = nn.Embed(5, 4), jnp.array([0, 4, 5])
    v = model.init(jax.random.key(0), ids)
    peft = pj.adapt(model.apply, v, ids, rules={"embedding": LORA})
    adapters = perturb(peft, peft.init(jax.random.key(1)))
    found = np.isnan(peft.apply(v, adapters, ids)).any(-1)
    assert found.tolist() == np.isnan(model.apply(v, ids)).any(-1).tolist()


@jax.custom_vjp
def scaled(x, k):
    return x @ k


scaled.defvjp(lambda x, k: (x @ k, (x, k)), lambda r, g: (g @ r[1].T, r[0].T @ g))


@pytest.mark.parametrize(
    "apply_fn, reason",
    [
        (lambda v, x: scaled(x, v["kernel"]), "custom_vjp"),
        (lambda v, x: x @ v["kernel"] ** 2, "integer_pow|square"),
        (lambda v, x: x @ (v["kernel"] * x[0, :, None]), "scaled along its input"),
        (lambda v, x: x @ v["kernel"] + v["kernel"].sum(), "reduce_sum"),
        (lambda v, x: x @ v["kernel"][:, :4] @ v["kernel"][:, 4:].T, "slice"),
    ],
)
def test_an_unknown_use_is_merged_and_said(apply_fn, reason):
    v, x = {"kernel": normal(1, 8, 8)}, normal(0, 5, 8)
    (site,) = agree(apply_fn, v, x, fast=False).sites
    assert (
        re.search(reason, site.reason)
        and f"merged: {site.reason}"
        in pj.adapt(apply_fn, v, x, rules={"kernel": LORA}).summary()
    )
    with pytest.raises(ValueError, match=rf"strict.*\n.*kernel: .*{reason}"):
        pj.adapt(apply_fn, v, x, rules={"kernel": LORA}, strict=True)


def test_dequantised_kernels_are_recognised_and_named():
    v = {
        "kernel": jax.random.randint(jax.random.key(0), (8, 6), -127, 127, jnp.int8),
        "scale": jnp.full((6,), 0.01),
    }

    def apply_fn(v, x):
        return x @ (v["kernel"].astype(jnp.float32) * v["scale"])

    x = normal(0, 5, 8)
    peft = pj.adapt(apply_fn, v, x, rules={"kernel": LORA}, strict=True)
    assert "int8 weight" in peft.summary()
    adapters = perturb(peft, peft.init(jax.random.key(1)))
    p = adapters["kernel"]
    expected = apply_fn(v, x) + 3.5 * x @ p["a"] @ p["b"]
    assert error(peft.apply(v, adapters, x), expected) < BOUND
    with pytest.raises(pj.NotMergeable, match="kernel: .*int8"):
        peft.merge(v, adapters)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_the_models_accumulation_type_reaches_the_formula(preferred):
    def apply_fn(v, x):
        dims = ((1,), (0,)), ((), ())
        return lax.dot_general(x, v["kernel"], dims, preferred_element_type=preferred)

    x, v = normal(0, 5, 64).astype("bfloat16"), {"kernel": normal(1, 64, 6)}
    v = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), v)
    peft = pj.adapt(apply_fn, v, x, rules={"kernel": LORA})
    fresh = peft.init(jax.random.key(0))
    found, base = peft.apply(v, fresh, x), apply_fn(v, x)
    assert found.dtype == base.dtype and np.array_equal(found, base)
    adapters = perturb(peft, fresh)
    p = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), adapters["kernel"])
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (x, v["kernel"], p))
    expected = wide[0] @ wide[1] + 3.5 * (wide[0] @ wide[2]["a"]) @ wide[2]["b"]
    eps = float(jnp.finfo(preferred or "bfloat16").eps)
    assert error(peft.apply(v, adapters, x), expected) < 8 * eps


def test_the_models_precision_reaches_the_formula():
    def apply_fn(v, x):
        return jnp.dot(x, v["kernel"], precision="highest")

    v, x = {"kernel": normal(1, 8, 6)}, normal(0, 5, 8)
    peft = pj.adapt(apply_fn, v, x, rules={"kernel": LORA})
    jaxpr = jax.make_jaxpr(peft.apply)(v, peft.init(jax.random.key(0)), x)
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(dots) == 3
    highest = lax.Precision.HIGHEST
    assert all(e.params["precision"] == (highest, highest) for e in dots)


def test_flattening_changes_nothing():
    model, x = nn.DenseGeneral((2, 3)), normal(0, 2, 5, 8)
    v = model.init(jax.random.key(0), x)
    outputs = []
    for flatten in (True, False, None):
        peft = pj.adapt(model.apply, v, x, rules={"kernel": LORA}, flatten=flatten)
        adapters = perturb(peft, peft.init(jax.random.key(1)))
        outputs.append(jax.jit(peft.apply)(v, adapters, x))
    assert error(outputs[0], outputs[1]) < BOUND
    assert (outputs[2] == outputs[0]).all()


def test_a_tpu_gets_activations_as_they_are():
    model, x = nn.Dense(6), normal(0, 2, 5, 8)
    v = model.init(jax.random.key(0), x)
    peft = pj.adapt(model.apply, v, x, rules={"kernel": LORA})
    adapters = peft.init(jax.random.key(1))

    def flattens(peft):
        return "f32[10,8]" in str(jax.make_jaxpr(peft.apply)(v, adapters, x))

    assert flattens(peft)
    for platform in ("cpu", "gpu", "tpu"):
        assert flattens(peft.compiled_for(platform)) == (platform != "tpu")
    mine = pj.adapt(model.apply, v, x, rules={"kernel": LORA}, flatten=True)
    assert mine.compiled_for("tpu").sites == mine.sites


def test_shapes_with_a_single_row_or_column():
    for d_in, d_out in ((1, 6), (8, 1), (1, 1)):
        model, x = nn.Dense(d_out), normal(0, 2, 5, d_in)
        v = model.init(jax.random.key(0), x)
        (site,) = agree(model.apply, v, x, rules={"kernel": pj.LoRA(1, 3.0)}).sites
        assert (site.d_in, site.d_out) == (d_in, d_out)
