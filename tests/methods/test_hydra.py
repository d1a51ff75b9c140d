"""Hydra against the released code, and the facts of its specification."""

import pickle
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.hydra import Hydra
from tests.helpers.goldens import KEY, arrays, check_dense, close, load, random_like

CHECKED = (pj.Hydra(rank=2, seq_rank=3, branch_bias=True, learn_scale=True),)

BRANCHES = ("both", "parallel", "sequential")


def parameters(layer, *branches: str) -> dict[str, np.ndarray]:
    """Return the arrays of branches whose torch names start with `par_` or `seq_`."""
    p = {}
    for name in branches:
        p[f"{name}_a"] = layer[f"{name}_down_weight"].T
        p[f"{name}_b"] = layer[f"{name}_up_weight"].T
        p[f"{name}_a_bias"] = layer[f"{name}_down_bias"]
        p[f"{name}_b_bias"] = layer[f"{name}_up_bias"]
    return p


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("hydra_vit_ffn_0", ("hidden", "fc2_")),
        ("hydra_vit_attn_0", ("context", "proj_")),
        ("hydra_clip_mlp_0", ("x", "linear_")),
    ],
)
def test_released_models(name, of):
    golden = load(name)
    x, prefix = of
    merged = "merged_" if prefix == "linear_" else f"merged_{prefix}"
    layer = {
        "x": golden[x],
        "weight": golden[f"{prefix}weight"],
        "bias": golden[f"{prefix}bias"],
        "y": golden["y"],
        "merged_weight": golden[f"{merged}weight"],
        "merged_bias": golden[f"{merged}bias"],
    }
    rank, scale = int(golden["rank"]), float(golden["scale"])
    method = Hydra(rank=rank, scale=scale, branch_bias=True)
    p = parameters(golden, "par", "seq")
    check_dense(method, p, layer)
    site = Layer(*layer["weight"].T.shape)
    assert method.count(site) == sum(value.size for value in p.values())
    learned = Hydra(rank=rank, scale=3.0, branch_bias=True, learn_scale=True)
    check_dense(learned, {**p, "scale": golden["scale"]}, layer)
    assert learned.count(site) == method.count(site) + 1


def test_roberta():
    golden = load("hydra_roberta_output_0")
    layer = {
        "x": golden["hidden_states"],
        "weight": golden["dense_weight"],
        "bias": golden["dense_bias"],
        "y": golden["y_pre_norm"],
        "merged_weight": golden["merged_weight"],
        "merged_bias": golden["merged_bias"],
    }
    method = Hydra(rank=int(golden["par_rank"]), seq_rank=int(golden["seq_rank"]))
    names = ("par_a", "par_b", "seq_a", "seq_b")
    torch = ("par_A", "par_B", "seq_A", "seq_B")
    p = {ours: golden[f"{theirs}_weight"].T for ours, theirs in zip(names, torch)}
    check_dense(method, p, layer)


@pytest.mark.parametrize("index", [0, 3])
def test_reparameterisation(index):
    golden = load(f"hydra_reparam_{index}")
    layer = {**golden, "weight": golden["kernel"].T}
    names = ("par_A", "par_B", "seq_A", "seq_B")
    p = {name.lower(): golden[name] for name in names}
    biased = "par_bias" in golden
    if biased:  # effective biases, so those of the down-projections are zero
        rank = p["par_a"].shape[1]
        for name in ("par", "seq"):
            p[f"{name}_a_bias"] = np.zeros(rank, np.float32)
            p[f"{name}_b_bias"] = golden[f"{name}_bias"]
    method = Hydra(rank=3, scale=float(golden["scale"]), branch_bias=biased)
    check_dense(method, p, layer)


def test_one_branch():
    golden = load("hydra_branch_0")
    p = {
        "par_a": golden["down_weight"].T,
        "par_a_bias": golden["down_bias"],
        "par_b": golden["up_weight"].T,
        "par_b_bias": golden["up_bias"],
    }
    scale = float(golden["scale"])
    method = Hydra(rank=2, branches="parallel", branch_bias=True, scale=scale)
    zero = jnp.zeros((16, 16))
    close(method(p, golden["x"], zero), golden["y"])
    # the same branch behind an identity layer is the sequential one
    p = {name.replace("par", "seq"): value for name, value in p.items()}
    method = Hydra(rank=2, branches="sequential", branch_bias=True, scale=scale)
    close(method(p, golden["x"], jnp.eye(16)) - golden["x"], golden["y"])


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("bias", [False, True])
def test_initial_state(branches, bias):
    method = Hydra(rank=2, seq_rank=3, branches=branches, branch_bias=bias)
    site = Layer(6, 5)
    p = method.init(KEY, site)
    assert sum(value.size for value in p.values()) == method.count(site)
    x, kernel, b = arrays((2, 6), (6, 5), (5,))
    assert (method(p, x, kernel, b) == x @ kernel + b).all()
    assert all(not value.any() for name, value in p.items() if not name.endswith("_a"))
    grads = jax.grad(lambda p: method(p, x, kernel, b).sum())(p)
    for name, value in grads.items():
        assert value.any() == (not name.endswith(("_a", "_a_bias")))


@pytest.mark.parametrize("branches", BRANCHES)
def test_branches_are_terms(branches):
    both = Hydra(rank=2, scale=0.7)
    x, kernel, b = arrays((3, 6), (6, 5), (5,))
    p = random_like(both.init(KEY, Layer(6, 5)))
    off = {"parallel": "seq_b", "sequential": "par_b", "both": ""}[branches]
    zeroed = {**p, off: jnp.zeros_like(p[off])} if off else p
    one = Hydra(rank=2, scale=0.7, branches=branches)
    close(one(p, x, kernel, b), both(zeroed, x, kernel, b))
    assert one.uses_bias == (branches != "parallel")


def test_sequential_is_a_residual_adapter_behind_the_layer():
    method = Hydra(rank=2, branches="sequential", scale=2.0)
    x, kernel, b = arrays((3, 6), (6, 5), (5,))
    p = random_like(method.init(KEY, Layer(6, 5)))
    assert set(p) == {"seq_a", "seq_b"}
    z = x @ kernel + b
    close(method(p, x, kernel, b), z @ (jnp.eye(5) + 2.0 * p["seq_a"] @ p["seq_b"]))


def test_parallel_is_lora():
    method = Hydra(rank=2, branches="parallel", scale=3.0)
    x, kernel, b = arrays((3, 6), (6, 5), (5,))
    p = random_like(method.init(KEY, Layer(6, 5)))
    lora = pj.LoRA(2, alpha=6.0)({"a": p["par_a"], "b": p["par_b"]}, x, kernel, b)
    close(method(p, x, kernel, b), lora)


@pytest.mark.parametrize(
    ("start", "width", "bound"),
    [("xavier", 3072, 0.04418), ("xavier", 768, 0.08827), ("kaiming", 3072, 0.01804)],
)
def test_initial_bounds(start, width, bound):
    down = Hydra(rank=2, start=start).init(KEY, Layer(width, 768))["par_a"]
    assert 0.98 * bound < jnp.abs(down).max() <= 1.001 * bound
    np.testing.assert_allclose(down.std(), bound / sqrt(3), rtol=0.05)


def test_normal_start_has_std_002():
    down = Hydra(rank=2, start="normal").init(KEY, Layer(3072, 768))["par_a"]
    np.testing.assert_allclose(down.std(), 0.02, rtol=0.05)


def test_published_parameter_counts():
    vit = Hydra(rank=2, branch_bias=True)
    roberta = Hydra(rank=4, seq_rank=8)
    fc2, proj = Layer(3072, 768), Layer(768, 768)
    assert vit.count(fc2) == 8450 + 3842 and vit.count(proj) == 2 * 3842
    assert 12 * (vit.count(fc2) + vit.count(proj)) == 239_712
    assert 12 * roberta.count(fc2) == 331_776
    assert 12 * vit.count(fc2) == 147_504


def test_dropout_acts_between_the_projections():
    method = Hydra(rank=1, dropout=0.5, branches="parallel")
    p = {"par_a": jnp.ones((6, 1)), "par_b": jnp.ones((1, 5))}
    x, kernel = jnp.ones((400, 6)), jnp.zeros((6, 5))
    y = method(p, x, kernel, key=KEY)
    assert set(np.unique(y)) == {0.0, 12.0}
    assert (y == y[:, :1]).all()
    assert abs(float((y[:, 0] == 0).mean()) - 0.5) < 0.1
    assert (method(p, x, kernel) == 6).all()


def test_pickled_and_subclassed():
    method = Hydra(rank=2, start="normal")
    assert pickle.loads(pickle.dumps(method)) == method != Hydra(rank=2)

    class Constant(Hydra):
        def init(self, key, layer):
            return {n: jnp.ones_like(a) for n, a in super().init(key, layer).items()}

    p = Constant(rank=2).init(KEY, Layer(3, 4))
    assert set(p) == {"par_a", "par_b", "seq_a", "seq_b"}
    assert all((array == 1).all() for array in p.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"seq_rank": 0}, "seq_rank=0"),
        ({"branches": "left"}, "'both', 'parallel', 'sequential'"),
        ({"start": "zeros"}, "'xavier', 'normal', 'kaiming'"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Hydra(**{"rank": 2, **settings})


@pytest.mark.parametrize("settings", [{"rank": 6}, {"rank": 2, "seq_rank": 6}])
def test_rank_above_a_dimension(settings):
    with pytest.raises(ValueError, match=r"fc/kernel: Hydra\((seq_)?rank=6\)"):
        Hydra(**settings).check(Layer(8, 5, path="fc/kernel"))
