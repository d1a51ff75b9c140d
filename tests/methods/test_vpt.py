"""VPT against Eq. 4 to 7 of its paper, written out with the frozen model's blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.models import Dinov2, Dinov2Config, ViT
from peftjax.models.layers import stack_layers
from peftjax.models.vit.model import Block
from tests.helpers.goldens import close, random_like

CHECKED = (pj.VPT(length=3),)
METHOD = pj.VPT(length=3, patch=4)
SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 3,
}
RULES = {"shallow": "prompts:output", "deep": r"blocks(_\d+)?/prompts:output"}
IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
MODEL = ViT(**SMALL)
VARIABLES = random_like(
    jax.eval_shape(MODEL.init, jax.random.key(0), jnp.asarray(IMAGES))
)


def planned(kind, model=MODEL, variables=VARIABLES):
    peft = pj.adapt(model.apply, variables, IMAGES, rules={RULES[kind]: METHOD})
    return peft, random_like(jax.eval_shape(lambda: peft.init(jax.random.key(1))))


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + MODEL.norm_eps)
    return x * p["scale"] + p["bias"]


def by_hand(prompts):
    """Return the logits; prompts `[depth, n, width]`, or `[1, n, width]` if shallow."""
    params = VARIABLES["params"]
    block = Block(2, 24, True, 0.0, MODEL.norm_eps, True, jnp.float32)
    patches = IMAGES.reshape(2, 2, 4, 2, 4, 1).swapaxes(2, 3).reshape(2, 4, 16)
    kernel = np.reshape(params["patch_embed"]["kernel"], (16, 16))
    x = patches @ kernel + params["patch_embed"]["bias"]
    token = np.broadcast_to(params["cls_token"], (2, 1, 16))
    x = np.concatenate([token, x], axis=1) + params["pos_embed"]
    n = prompts.shape[1]
    for i in range(SMALL["depth"]):
        if i < len(prompts):
            own = np.broadcast_to(prompts[i], (2, n, 16))
            rest = x[:, 1:] if i == 0 else x[:, 1 + n :]
            x = np.concatenate([x[:, :1], own, rest], axis=1)
        x, _ = block.apply({"params": params[f"blocks_{i}"]}, x, None)
        x = np.asarray(x)
    return (
        norm(x, params["norm"])[:, 0] @ params["head"]["kernel"]
        + (params["head"]["bias"])
    )


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_values_are_the_papers(kind):
    peft, adapters = planned(kind)
    prompts = np.stack([p["prompts"] for p in adapters.values()])
    assert prompts.shape == ({"shallow": 1, "deep": 2}[kind], 3, 16)
    found = jax.jit(peft.apply)(VARIABLES, adapters, IMAGES)
    close(found, by_hand(prompts))
    assert np.abs(found - MODEL.apply(VARIABLES, IMAGES)).max() > 1e-2
    assert sum(peft.trainable.values()) == prompts.size


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_scanned_recomputed_blocks_compute_the_same(kind):
    peft, adapters = planned(kind)
    scanned = ViT(**SMALL, scan_layers=True, remat=True)
    stacked = {"params": stack_layers(VARIABLES["params"])}
    other, _ = planned(kind, scanned, stacked)
    own = stack_layers(adapters) if kind == "deep" else adapters
    assert other.trainable.keys() == own.keys()

    def loss(run, variables, adapters):
        return (run.apply(variables, adapters, IMAGES) ** 2).sum()

    expected = jax.jit(jax.grad(lambda a: loss(peft, VARIABLES, a)))(adapters)
    found = jax.jit(jax.grad(lambda a: loss(other, stacked, a)))(own)
    expected = stack_layers(expected) if kind == "deep" else expected
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(found))
    jax.tree.map(close, found, expected)


def test_the_mean_is_of_the_patches_alone():
    """Blocks that change nothing: the mean of the normalised patches is left."""
    model = ViT(**SMALL, pooling="mean")
    variables = model.init(jax.random.key(0), IMAGES)
    params = {
        name: jax.tree.map(jnp.zeros_like, p) if name.startswith("blocks") else p
        for name, p in variables["params"].items()
    }
    peft, adapters = planned("shallow", model, {"params": params})
    found = peft.apply({"params": params}, adapters, IMAGES)
    close(found, model.apply({"params": params}, IMAGES))


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_dinov2_has_the_same_places(kind):
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        image_size=8,
        num_attention_heads=2,
        patch_size=4,
        num_channels=1,
    )
    model = Dinov2(config)
    variables = model.init(jax.random.key(0), IMAGES)
    peft, adapters = planned(kind, model, variables)
    found, base = (
        peft.apply(variables, adapters, IMAGES),
        model.apply(variables, IMAGES),
    )
    assert found.hidden.shape == base.hidden.shape
    assert np.abs(found.hidden - base.hidden).max() > 1e-4


def test_flops_are_those_of_a_longer_sequence():
    """Each of 5 tokens and 3 prompts costs its products, and attention to all."""
    width, hidden, t, n = 16, 24, 5, 3
    peft, _ = planned("deep")
    dense = 2 * (4 * width * width + 2 * width * hidden)
    attention = 4 * width * ((t + n) ** 2 - t**2)
    assert sum(s.flops for s in peft.sites) == 2 * (n * dense + attention)
    assert f"{2 * (n * dense + attention):,} FLOPs" in peft.summary()


def test_what_is_refused():
    peft, adapters = planned("deep")
    with pytest.raises(pj.NotMergeable, match="no weight can hold"):
        peft.merge(VARIABLES, adapters)
    with pytest.raises(ValueError, match="is for the place of a prefix"):
        pj.adapt(MODEL.apply, VARIABLES, IMAGES, rules={r".*/mlp:output": METHOD})
    with pytest.raises(ValueError, match="found the place of a prefix"):
        rules = {"prompts:output": pj.Bottleneck(rank=2)}
        pj.adapt(MODEL.apply, VARIABLES, IMAGES, rules=rules)
    with pytest.raises(ValueError, match="a bank runs no prefixes"):
        both = pj.bank([adapters, adapters])
        peft.apply(VARIABLES, both, IMAGES, adapter_ids=jnp.array([0, 1]))
    with pytest.raises(ValueError, match="length"):
        pj.VPT(length=0)


def test_the_start_is_xaviers_of_the_patches():
    p = METHOD.init(jax.random.key(0), Layer(0, 4096, "prefix"))["prompts"]
    bound = np.sqrt(6 / (3 * 4 * 4 + 4096))
    assert 0.99 * bound < np.abs(p).max() <= bound
    np.testing.assert_allclose(p.std(), bound / np.sqrt(3), rtol=0.02)
