"""The Vision Transformer: against the paper's equations, timm's names, itself."""

from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.special import erf, softmax

from peftjax.models.layers import stack_layers, unstack_layers
from peftjax.models.loading import load
from peftjax.models.vit import ViT

pytestmark = pytest.mark.slow

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "width": 32,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 48,
    "num_classes": 5,
}
# Matrix products in sequence per block: qkv, scores, mix, proj, fc1, fc2.
STEPS = 6 * SMALL["depth"] + 2


def bound(dtype, like):
    """Rounding of STEPS products, each a random walk over the longest sum."""
    longest = sqrt(SMALL["mlp_dim"])
    return float(STEPS * longest * jnp.finfo(dtype).eps * np.abs(like).max())


def random_params(model, images, seed):
    """Every leaf off its initial value, so that no term is zero or one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    flat = flatten_dict(shapes, sep="/")
    flat = {
        path: rng.normal(path.endswith("scale"), 0.2, leaf.shape).astype(leaf.dtype)
        for path, leaf in flat.items()
    }
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(4, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params(images):
    return random_params(ViT(**SMALL), images, seed=2)


def run(params, images, **fields):
    model = ViT(**{**SMALL, **fields})
    return jax.jit(model.apply)({"params": params}, images)


def reference(params, images, eps=1e-6):
    """Equations 1 to 8 of the paper in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * p["scale"] + p["bias"]

    def attention(p, x):
        heads, size = SMALL["num_heads"], SMALL["width"] // SMALL["num_heads"]
        out = []
        for h in range(heads):
            q, k, v = (
                dense(p["qkv"], x)[..., start : start + size]
                for start in SMALL["width"] * np.arange(3) + h * size
            )
            weights = softmax(q @ k.swapaxes(-1, -2) / sqrt(size), axis=-1)
            out.append(weights @ v)
        return dense(p["proj"], np.concatenate(out, -1))

    def mlp(p, x):
        x = dense(p["fc1"], x)
        return dense(p["fc2"], x * (1 + erf(x / sqrt(2))) / 2)

    images = np.asarray(images, np.float64)
    patches = [
        images[:, i : i + 4, j : j + 4].reshape(len(images), -1)
        for i in (0, 4)
        for j in (0, 4)
    ]
    kernel = p["patch_embed"]["kernel"].reshape(-1, SMALL["width"])
    x = np.stack(patches, axis=1) @ kernel + p["patch_embed"]["bias"]
    token = np.repeat(p["cls_token"], len(x), axis=0)
    x = np.concatenate([token, x], axis=1) + p["pos_embed"]
    for i in range(SMALL["depth"]):
        block = p[f"blocks_{i}"]
        x = x + attention(block["attn"], norm(block["norm1"], x))
        x = x + mlp(block["mlp"], norm(block["norm2"], x))
    return dense(p["head"], norm(p["norm"], x)[:, 0])


def test_equals_the_papers_equations(params, images):
    expected = reference(params, images)
    actual = run(params, images)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(actual, expected, atol=bound(jnp.float32, expected))


def test_epsilon_reaches_every_norm(params, images):
    expected = reference(params, images, eps=0.1)
    actual = run(params, images, norm_eps=0.1)
    np.testing.assert_allclose(actual, expected, atol=bound(jnp.float32, expected))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_scan_and_remat_change_neither_values_nor_gradients(
    params, images, scan, remat
):
    def loss(params, model):
        logits = model.apply({"params": params}, images)
        return jnp.square(logits).sum(), logits

    def evaluate(params, **fields):
        model = ViT(**SMALL, **fields)
        return jax.jit(jax.grad(lambda p: loss(p, model), has_aux=True))(params)

    expected = evaluate(params)
    grads, logits = evaluate(
        stack_layers(params) if scan else params, scan_layers=scan, remat=remat
    )
    actual = (unstack_layers(grads) if scan else grads, logits)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=bound(jnp.float32, b))


def test_remat_saves_memory():
    def temporary(remat):
        model = ViT(**{**SMALL, "depth": 6}, remat=remat, scan_layers=True)
        many = jnp.zeros((64, 8, 8, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), many)
        grad = jax.grad(lambda v: model.apply(v, many).sum())
        return jax.jit(grad).lower(variables).compile().memory_analysis()

    kept, recomputed = (temporary(r).temp_size_in_bytes for r in (False, True))
    assert recomputed < 0.7 * kept


def test_fused_equals_separate(params, images):
    flat = flatten_dict(params, sep="/")
    separate = {}
    for path, leaf in flat.items():
        if "/qkv/" in path:
            for name, part in zip("qkv", np.split(leaf, 3, axis=-1)):
                separate[path.replace("/qkv/", f"/{name}/")] = part
        else:
            separate[path] = leaf
    separate = unflatten_dict(separate, sep="/")
    expected = run(params, images)
    actual = run(separate, images, fused_qkv=False)
    np.testing.assert_allclose(actual, expected, atol=bound(jnp.float32, expected))


@pytest.mark.parametrize("scan", [False, True])
def test_bf16_computes_in_bf16_with_float32_parameters(params, images, scan):
    model = ViT(**SMALL, dtype=jnp.bfloat16, scan_layers=scan)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                yield {str(v.aval.dtype) for v in eqn.invars}
            for value in eqn.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    yield from products(getattr(value, "jaxpr", value))

    dtypes = list(products(jax.make_jaxpr(model.apply)(variables, images).jaxpr))
    blocks = 1 if scan else SMALL["depth"]
    assert dtypes == [{"bfloat16"}] * (1 + 6 * blocks) + [{"float32"}]

    expected = run(params, images)
    actual = run(
        stack_layers(params) if scan else params,
        images,
        dtype=jnp.bfloat16,
        scan_layers=scan,
    )
    assert actual.dtype == jnp.float32
    # Each of the STEPS products rounds its inputs and its output once.
    rounding = STEPS * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=rounding)


def test_mean_pooling_is_the_mean_of_the_normalised_tokens(images):
    model = ViT(**{**SMALL, "num_classes": 0}, pooling="mean")
    variables = {"params": random_params(model, images, seed=3)}
    capture = {"capture_intermediates": True, "mutable": "intermediates"}
    apply = jax.jit(lambda v: model.apply(v, images, **capture))
    pooled, state = apply(variables)
    tokens = state["intermediates"]["norm"]["__call__"][0]
    assert tokens.shape == (4, 4, 32)
    atol = float(4 * jnp.finfo(jnp.float32).eps * jnp.abs(tokens).max())
    np.testing.assert_allclose(pooled, np.mean(tokens, axis=1), atol=atol)


@pytest.mark.realdata
@pytest.mark.parametrize("scan", [False, True])
def test_real_checkpoint_gives_its_reference_logits(shared_data, scan):
    folder = shared_data / "weights" / "vit_d64_cifar10"
    model, variables = load(folder, scan_layers=scan)
    assert ("blocks" in variables["params"]) == scan
    data = np.load(folder / "reference.npz", allow_pickle=False)
    images = data["images"].astype(np.float32) / 255
    logits = jax.jit(model.apply)(variables, images)
    # 26 products in sequence, sums over at most 256 terms, on both sides.
    atol = 2 * 26 * sqrt(256) * np.finfo(np.float32).eps * np.abs(data["logits"]).max()
    np.testing.assert_allclose(logits, data["logits"], atol=atol)
