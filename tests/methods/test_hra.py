"""HRA against the released code and the torch library."""

import json
import pickle
from math import sqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.affine import merge_layer
from peftjax.core.method import Layer
from peftjax.methods.hra import HRA
from tests.helpers.goldens import (
    KEY,
    arrays,
    check_dense,
    close,
    conv_case,
    conv_rows,
    gradients,
    load,
    random_like,
)

CHECKED = (
    pj.HRA(rank=4),
    pj.HRA(rank=4, orthogonal=True, penalty_weight=0.1),
)

VARIANTS = {
    "wy": {},
    "scan": {"form": "scan"},
    "orthogonal": {"orthogonal": True},
    "output": {"side": "output"},
    "output_scan": {"side": "output", "form": "scan"},
    "output_eps": {"side": "output", "eps": 0.1},
    "eps": {"eps": 0.1},
}


def dense_chain(u, eps=0.0, orthogonal=False) -> np.ndarray:
    """Return H_1 … H_r as a matrix, the way the paper writes it."""
    u, chain = np.asarray(u, np.float64), np.eye(len(u))
    if orthogonal:
        q = np.linalg.qr(u)[0]
        return chain - 2 * q @ q.T
    for column in u.T:
        column = column / np.sqrt(column @ column + eps)
        chain = chain @ (np.eye(len(u)) - 2 * np.outer(column, column))
    return chain


@pytest.fixture(params=VARIANTS)
def case(request):
    method = HRA(rank=4, **VARIANTS[request.param])
    p = {"u": random_like(method.init(KEY, Layer(9, 7)))["u"]}
    return method, p, arrays((5, 9), (9, 7), (7,))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gs0_r3", "wy"),
        ("gs0_r3", "scan"),
        ("gs0_r4", "wy"),
        ("gs0_r4", "scan"),
        ("gs1_r4", "wy"),
    ],
)
def test_torch_library(name, form):
    layer = load(f"hra_peft_linear_{name}")
    config = json.loads(str(layer["config_json"]))
    method = HRA(
        config["r"],
        orthogonal=config["apply_GS"],
        form=form,
        allow_non_identity=config["r"] % 2 == 1,
    )
    p = {"u": layer["state.hra_u"]}
    check_dense(method, p, layer)
    close(gradients(method, p, layer)["u"], layer["grad.hra_u"])
    assert method.count(Layer(24, 16)) == layer["state.hra_u"].size


def test_released_code_with_penalties():
    layer = load("hra_official_nlu_gs0_r4")
    method = HRA(4, penalty_weight=0.5)
    p = {"u": jnp.asarray(layer["hra_u"])}
    check_dense(method, p, layer)
    close(gradients(method, p, layer)["u"], layer["grad.hra_u"])
    close(method.penalty(p), 0.5 * layer["orth_reg_frob_normalised"])
    squared = HRA(4, penalty_weight=0.5, penalty_norm="squared")
    close(squared.penalty(p), 0.5 * layer["orth_reg_frob_squared_normalised"])
    assert HRA(4).penalty(p) == 0.0
    init = {"u": jnp.asarray(layer["hra_u_init"])}
    close(method(init, layer["x"], layer["weight"].T, layer["bias"]), layer["y_base"])
    close(layer["y_at_init"], layer["y_base"])


@pytest.mark.parametrize("form", ["wy", "scan"])
def test_released_llama_code(form):
    layer = load("hra_official_llama_gs0_r4")
    method = HRA(4, side="output", eps=float(layer["eps"]), form=form)
    check_dense(method, {"u": layer["oft_r"]}, layer)
    assert method.count(Layer(24, 16)) == layer["oft_r"].size
    close(dense_chain(layer["oft_r"], eps=float(layer["eps"])), layer["Q"])


@pytest.mark.parametrize("form", ["wy", "scan"])
def test_convolution(form):
    layer = load("hra_peft_conv2d_gs0_r4")
    method = HRA(4, form=form)
    peft, variables, x = conv_case(method, layer)
    p = {"u": jnp.asarray(conv_rows(layer["state.hra_u"], layer["weight"]))}
    close(peft.apply(variables, {"kernel": p}, x), layer["y"].transpose(0, 2, 3, 1))
    merged = peft.merge(variables, {"kernel": p})["params"]
    close(merged["kernel"].transpose(3, 2, 0, 1), layer["merged_weight"])
    close(merged["bias"], layer["merged_bias"])

    def loss(p):
        t = layer["cotangent"].transpose(0, 2, 3, 1)
        return jnp.sum(peft.apply(variables, {"kernel": p}, x) * t)

    close(jax.grad(loss)(p)["u"], conv_rows(layer["grad.hra_u"], layer["weight"]))


def test_is_the_chain_of_reflections(case):
    method, p, (x, kernel, bias) = case
    width = 9 if method.side == "input" else 7
    p = {"u": p["u"][:width]}
    chain = dense_chain(p["u"], method.eps, method.orthogonal)
    wanted = chain.T @ kernel if method.side == "input" else kernel @ chain
    close(method(p, x, kernel, bias), x @ wanted + bias)
    merged, const = merge_layer(method, p, kernel, bias)
    close(merged, wanted)
    close(const, bias)
    close(method.unmerge(p, merged), kernel)


def test_gram_matrix_is_preserved():
    method = HRA(rank=4)
    kernel = arrays((9, 7))[0]
    p = random_like(method.init(KEY, Layer(9, 7)))
    merged = method(p, jnp.eye(9), kernel)
    close(merged.T @ merged, kernel.T @ kernel)
    assert jnp.abs(merged - kernel).max() > 0.1
    assert np.linalg.matrix_rank(merged - kernel, tol=1e-4) == 4


def test_order_of_columns_counts_only_without_gram_schmidt():
    x, kernel, _ = arrays((5, 9), (9, 7), (7,))
    u = arrays((9, 4), seed=3)[0]
    swapped = u[:, jnp.array([1, 0, 2, 3])]
    for method, same in ((HRA(4), False), (HRA(4, orthogonal=True), True)):
        gap = method({"u": u}, x, kernel) - method({"u": swapped}, x, kernel)
        assert (float(jnp.abs(gap).max()) < 2e-5) == same


def test_scale_of_columns_changes_only_the_gradient():
    x, kernel = arrays((5, 9), (9, 7))
    u, factors = arrays((9, 4), seed=3)[0], jnp.array([2.0, 0.1, 30.0, 1.0])
    method = HRA(4)

    def loss(u):
        return jnp.sum(jnp.tanh(method({"u": u}, x, kernel)))

    close(method({"u": u * factors}, x, kernel), method({"u": u}, x, kernel))
    close(jax.grad(loss)(u * factors) * factors, jax.grad(loss)(u))


@pytest.mark.parametrize("form", ["wy", "scan"])
def test_pairs_start_at_the_frozen_layer(form):
    method = HRA(rank=6, form=form)
    p = method.init(KEY, Layer(64, 7))
    assert method.at_init == "rounding"
    assert (p["u"][:, ::2] == p["u"][:, 1::2]).all()
    bound = sqrt(2 / 6)
    assert 0.9 * bound < jnp.abs(p["u"]).max() <= bound
    x, kernel, bias = arrays((5, 64), (64, 7), (7,))
    close(method(p, x, kernel, bias), x @ kernel + bias)
    grads = jax.grad(lambda p: jnp.sum(method(p, x, kernel, bias) ** 2))(p)["u"]
    assert jnp.abs(grads).max() > 1e-3
    close(grads[:, ::2], -grads[:, 1::2])


def test_initial_state_of_the_torch_library_is_in_pairs():
    theirs = load("hra_peft_linear_gs0_r4")["init_state.hra_u"]
    ours = HRA(4).init(KEY, Layer(24, 16))["u"]
    for u in (theirs, ours):
        assert (u[:, ::2] == u[:, 1::2]).all() and np.abs(u).max() <= sqrt(2 / 4)
    same = HRA(4, orthogonal=True, start="pairs").init(KEY, Layer(24, 16))["u"]
    assert (same == ours).all()


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"rank": 3, "allow_non_identity": True}, 1 / sqrt(3)),
        ({"rank": 4, "orthogonal": True}, 1 / 2),
        ({"rank": 8, "eps": 1e-4, "side": "output"}, 8.66e-5),
    ],
)
def test_other_starts_are_not_the_frozen_layer(settings, bound):
    method = HRA(**settings)
    assert method.at_init == "none"
    u = method.init(KEY, Layer(64, 64))["u"]
    assert 0.9 * bound < jnp.abs(u).max() <= 1.001 * bound
    x, kernel = arrays((5, 64), (64, 64))
    assert jnp.abs(method({"u": u}, x, kernel) - x @ kernel).max() > 1e-3


def test_penalty_of_pairs_and_of_orthonormal_columns():
    frobenius, squared = (
        HRA(4, penalty_weight=2.0),
        HRA(4, penalty_weight=2.0, penalty_norm="squared"),
    )
    pairs = frobenius.init(KEY, Layer(64, 7))
    assert frobenius.penalty(pairs) >= 2 * sqrt(4)
    assert jnp.isfinite(jax.grad(frobenius.penalty)(pairs)["u"]).all()
    orthonormal = {"u": 3.0 * jnp.eye(6)[:, :4]}
    assert frobenius.penalty(orthonormal) < 1e-5 and squared.penalty(orthonormal) == 0
    assert jnp.isfinite(jax.grad(frobenius.penalty)(orthonormal)["u"]).all()


def test_penalty_of_a_model():
    x, kernel, bias = arrays((5, 9), (9, 7), (7,))
    variables = {"params": {"kernel": kernel, "bias": bias}}
    method = HRA(4, penalty_weight=1e-3)
    peft = pj.adapt(nn.Dense(7).apply, variables, x, rules={"kernel": method})
    adapters = peft.init(KEY)
    close(peft.penalty(adapters), method.penalty(adapters["kernel"]))
    assert pickle.loads(pickle.dumps(method)) == method

    class Doubled(HRA):
        def penalty(self, p):
            return 2 * super().penalty(p)

    double = pj.adapt(
        nn.Dense(7).apply, variables, x, rules={"kernel": Doubled(4, penalty_weight=1)}
    )
    close(double.penalty(adapters), 2e3 * peft.penalty(adapters))


def test_never_forms_a_matrix_of_the_kernel_size_squared():
    method = HRA(rank=4)
    p = method.init(KEY, Layer(64, 48))
    x, kernel, bias = arrays((7, 64), (64, 48), (48,))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: method(p, x, kernel, bias).sum()))(p)
    shapes = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    assert (64, 64) not in shapes and (7, 4) in shapes


def test_published_count():
    method = HRA(8)
    per_block = 5 * method.count(Layer(768, 768)) + method.count(Layer(3072, 768))
    assert 12 * per_block == 663_552


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 3}, "allow_non_identity=True"),
        ({"rank": 3, "allow_non_identity": True, "start": "pairs"}, "even rank"),
        ({"rank": 2, "side": "left"}, "'input', 'output'"),
        ({"rank": 2, "orthogonal": "qr"}, "expected True or False"),
        ({"rank": 2, "form": "dense"}, "'wy', 'scan'"),
        ({"rank": 2, "eps": -1.0}, "number >= 0"),
        ({"rank": 2, "form": "scan", "orthogonal": True}, "no chain"),
        ({"rank": 2, "penalty_weight": "l2"}, "penalty"),
        ({"rank": 2, "penalty_weight": float("nan")}, "penalty"),
        ({"rank": 3, "orthogonal": True, "start": "pairs_hf"}, "even rank"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HRA(**settings)


@pytest.mark.parametrize(("side", "fits"), [("input", 8), ("output", 4)])
def test_rank_above_the_dimension(side, fits):
    HRA(fits, side=side).check(Layer(8, 5))
    with pytest.raises(ValueError, match="fc/kernel: HRA.rank=10."):
        HRA(10, side=side).check(Layer(8, 5, path="fc/kernel"))


def test_starts_of_the_released_codes():
    site = Layer(6, 5)
    pairs, named = (
        HRA(4, orthogonal=True, start=name).init(KEY, site)["u"]
        for name in ("pairs", "pairs_hf")
    )
    assert (pairs == named).all() and (pairs[:, 0] == pairs[:, 1]).all()
    method = HRA(2, orthogonal=True, side="output", start="identity")
    x, kernel = arrays((3, 6), (6, 5))
    y = method(method.init(KEY, site), x, kernel)
    close(y, (x @ kernel) * jnp.array([-1, -1, 1, 1, 1]))


def test_a_column_of_zeros_has_a_penalty():
    u = {"u": jnp.eye(6)[:, :2].at[:, 1].set(0)}
    assert HRA(2, penalty_weight=2.0).penalty(u) == pytest.approx(2.0)
