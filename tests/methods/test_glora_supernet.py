"""GLoRA's supernet against the released code: all 432 forms of a layer."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.affine import merge_layer
from peftjax.core.method import Layer
from peftjax.methods.glora_supernet import CHOICES, GLoRASupernet
from tests.helpers.goldens import KEY, arrays, check_dense, close, load, random_like

pytestmark = pytest.mark.slow

CHECKED = (pj.GLoRASupernet(rank=2),)

FILES = ("glora_linear_all432_0", "glora_linear_all432_1")


def supernet_of(golden):
    """Return the supernet and its parameters for a file, without structure."""
    p = {f"{name}_in": golden[f"{name.upper()}u"].T for name in "ab"}
    p |= {f"{name}_out": golden[f"{name.upper()}d"].T for name in "ab"}
    p |= {"c_in": golden["Cd"], "c_out": golden["Cu"][:, 0]}
    p |= {"d": golden["D"], "e": golden["E"]}
    rank = int(golden["rank"])
    p["ranks"] = np.full(3, rank, np.int32)
    return GLoRASupernet(rank), {k: jnp.asarray(v) for k, v in p.items()}


@pytest.fixture(scope="module", params=FILES)
def golden(request):
    file = load(request.param)
    return {**file, "structures": file["config_codes"].astype(np.int32)}


def test_supernet_in_all_432_structures(golden):
    method, p = supernet_of(golden)
    kernel, bias = golden["weight"].T, golden.get("bias")

    def run(structure):
        return method({**p, "structure": structure}, golden["x"], kernel, bias)

    close(jax.jit(jax.vmap(run))(golden["structures"]), golden["y"])


def test_supernet_merges_in_all_432_structures(golden):
    method, p = supernet_of(golden)
    kernel = jnp.asarray(golden["weight"].T)
    bias = jnp.asarray(golden["bias"]) if "bias" in golden else None

    def merge(structure):
        return merge_layer(method, {**p, "structure": structure}, kernel, bias)

    weights, biases = jax.jit(jax.vmap(merge))(golden["structures"])
    close(weights, golden["effective_weight"].transpose(0, 2, 1))
    close(biases, golden["effective_bias"])
    fork = np.abs(golden["fork_merged_bias"] - golden["effective_bias"]).max(-1) > 1e-4
    assert fork.sum() == 270
    assert (np.abs(biases - golden["fork_merged_bias"]).max(-1)[fork] > 5e-5).all()


@pytest.mark.parametrize("part", range(4))
def test_fixed_methods_of_all_432_structures(golden, part):
    supernet, p = supernet_of(golden)
    kernel, bias = jnp.asarray(golden["weight"].T), golden.get("bias")
    site = Layer(*kernel.shape)
    found = []
    for index in range(part, 432, 4):
        structure = jnp.asarray(golden["structures"][index])
        method, fixed = supernet.to_glora({**p, "structure": structure})
        assert set(fixed) == set(method._shapes(site))
        counted = sum(value.size for value in fixed.values())
        assert counted == method.count(site) == golden["param_count"][index]
        found.append(partial(method, fixed))
    run = jax.jit(lambda x, k, b: [f(x, k, b) for f in found])
    close(run(golden["x"], kernel, bias), golden["y"][part::4])


@pytest.mark.parametrize("index", [0, 100, 217, 318, 431])
def test_fixed_methods_adapt_and_merge(golden, index):
    supernet, p = supernet_of(golden)
    structure = golden["structures"][index]
    method, fixed = supernet.to_glora({**p, "structure": jnp.asarray(structure)})
    layer = {
        "x": golden["x"],
        "weight": golden["weight"],
        "y": golden["y"][index],
        "merged_weight": golden["effective_weight"][index],
        "merged_bias": golden["effective_bias"][index],
    }
    if "bias" in golden:
        layer["bias"] = golden["bias"]
    creates_bias = "bias" not in golden and structure[[2, 4]].any()
    check_dense(method, fixed, layer, merge=not creates_bias)


def test_official_parameter_count():
    golden = load("glora_param_count_vitb_r4")
    supernet = GLoRASupernet(int(golden["rank"]))
    sites = [Layer(*pair) for pair in zip(golden["layer_in"], golden["layer_out"])]
    for codes, expected in zip(golden["config_codes"], golden["params"]):
        pairs = zip(codes, sites)
        assert sum(supernet.subnet(c).count(site) for c, site in pairs) == expected
    assert sum(supernet.count(site) for site in sites) == golden["max_params"]


def test_initial_state():
    supernet = GLoRASupernet(3)
    p = supernet.init(KEY, Layer(10, 12))
    assert p["structure"].tolist() == [3, 3, 3, 2, 2] and p["ranks"].tolist() == [3] * 3
    assert not any(p[n].any() for n in ("a_out", "b_out", "c_in", "d", "e"))
    for name, bound in (("a_in", 6 / 13), ("b_in", 6 / 13), ("c_out", 6 / 4)):
        assert 0.5 * bound**0.5 < jnp.abs(p[name]).max() <= bound**0.5
    trained = sum(v.size for n, v in p.items() if n not in supernet.frozen)
    assert trained == supernet.count(Layer(10, 12))
    x, kernel, bias = arrays((4, 10), (10, 12), (12,))
    run = jax.jit(lambda s: supernet({**p, "structure": s}, x, kernel, bias))
    base = x @ kernel + bias
    for codes in load(FILES[0])["config_codes"][::13]:
        close(run(codes.astype(np.int32)), base)


def test_only_the_drawn_path_gets_a_gradient():
    supernet = GLoRASupernet(3)
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    p = random_like(supernet.init(KEY, Layer(6, 5)))
    trainable = {n: v for n, v in p.items() if n not in supernet.frozen}

    def grads(structure, ranks=(3, 3, 3)):
        data = {"structure": jnp.array(structure), "ranks": jnp.array(ranks)}
        loss = lambda q: supernet({**q, **data}, x, kernel, bias).sum()  # noqa: E731
        return jax.grad(loss)(trainable)

    none = grads([0, 0, 0, 0, 0])
    assert not any(value.any() for value in none.values())
    cheap = grads([2, 1, 2, 1, 2])
    assert cheap["a_out"][0].all() and not cheap["a_out"][1:].any()
    assert cheap["b_out"][0, 0] != 0 and not cheap["b_out"].at[0, 0].set(0).any()
    assert cheap["c_in"][:, 0].all() and not cheap["c_in"][:, 1:].any()
    assert cheap["d"][0] != 0 and not cheap["d"][1:].any() and cheap["e"].all()
    assert not (cheap["a_in"].any() or cheap["b_in"].any() or cheap["c_out"].any())
    lora = grads([3, 3, 3, 0, 0], ranks=(1, 2, 3))
    assert lora["a_in"][:, :1].all() and not lora["a_in"][:, 1:].any()
    assert lora["b_out"][:2].all() and not lora["b_out"][2:].any()
    assert lora["c_out"].all()


@pytest.mark.parametrize("ranks", [(1, 2, 3), (4, 4, 2), (2, 2, 2)])
def test_sub_ranks_become_fixed_methods(ranks):
    supernet = GLoRASupernet(4)
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    p = random_like(supernet.init(KEY, Layer(6, 5)))
    p["ranks"] = jnp.array(ranks, jnp.int32)
    method, fixed = supernet.to_glora(p)
    assert method.ranks == ranks and fixed["b_in"].shape == (6, ranks[1])
    close(method(fixed, x, kernel, bias), supernet(p, x, kernel, bias))
    expected = ranks[0] * 11 + ranks[1] * 11 + ranks[2] * 7 + 10
    assert method.count(Layer(6, 5)) == sum(v.size for v in fixed.values()) == expected


def test_structures_never_recompile():
    supernet = GLoRASupernet(2)
    structures = np.array([*itertools.product(*CHOICES)], np.int32)[::8]
    x, kernel, bias = arrays((4, 6), (6, 5), (5,))
    p = random_like(supernet.init(KEY, Layer(6, 5)))
    traces = 0

    @jax.jit
    def run(p):
        nonlocal traces
        traces += 1
        return supernet(p, x, kernel, bias)

    outputs = [run({**p, "structure": structure}) for structure in structures]
    assert traces == 1
    assert len({float(y.sum()) for y in outputs}) > 40


def test_bad_structures_and_ranks():
    supernet = GLoRASupernet(2)
    for codes in ([1, 1, 1, 1, 1], [4, 0, 0, 0, 0], [0, 0, 0, 3, 0], [0, 0]):
        with pytest.raises(ValueError, match="five codes"):
            supernet.subnet(codes)
    with pytest.raises(ValueError, match=r"three of 1 … 2"):
        supernet.subnet([3, 3, 3, 2, 2], (1, 2, 3))
    stacked = jax.vmap(lambda k: supernet.init(k, Layer(3, 4)))(jax.random.split(KEY))
    with pytest.raises(ValueError, match="unstack"):
        supernet.to_glora(stacked)
    with pytest.raises(ValueError, match="fc/kernel: GLoRA.rank=6."):
        GLoRASupernet(6).check(Layer(8, 5, path="fc/kernel"))
