"""The supernet's structures are data; a chosen one becomes fixed methods."""

import jax
import numpy as np
import pytest

import peftjax as pj
from peftjax.models.vit import ViT
from peftjax.testing import error, perturb

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc\d)/kernel"


@pytest.fixture(scope="module")
def supernet():
    model = ViT(8, 4, width=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), images)
    rules = {LINEAR: pj.GLoRASupernet(rank=3), "head/.*": pj.Full()}
    peft = pj.adapt(model.apply, variables, images, rules=rules, strict=True)
    adapters = perturb(peft, jax.jit(peft.init)(jax.random.key(2)))
    return model, variables, images, peft, adapters


def test_fifty_structures_compile_once(supernet):
    _, variables, images, peft, adapters = supernet
    count = 0

    @jax.jit
    def run(adapters):
        nonlocal count
        count += 1
        return peft.apply(variables, adapters, images)

    sample = jax.jit(peft.sample)
    outputs = [
        run(sample(adapters, key)) for key in jax.random.split(jax.random.key(3), 50)
    ]
    assert count == 1
    assert len({np.asarray(y).tobytes() for y in outputs}) == 50


def test_sites_draw_independently_and_uniformly(supernet):
    *_, peft, adapters = supernet
    draw = jax.jit(jax.vmap(lambda key: peft.sample(adapters, key)))
    drawn = draw(jax.random.split(jax.random.key(4), 600))
    structures = [p["structure"] for p in drawn.values() if "structure" in p]
    assert len(structures) == 8
    codes = np.stack(structures, 1).reshape(-1, 5)
    for column, allowed in zip(
        codes.T, ((0, 1, 2, 3),) * 2 + ((0, 2, 3),) + ((0, 1, 2),) * 2
    ):
        found, counts = np.unique(column, return_counts=True)
        assert tuple(found) == allowed
        # five standard deviations of a binomial share
        share = 1 / len(allowed)
        spread = 5 * (share * (1 - share) / len(column)) ** 0.5
        assert np.abs(counts / len(column) - share).max() < spread
    first, second = structures[:2]
    assert (np.asarray(first) != np.asarray(second)).any(-1).mean() > 0.9


def test_to_glora_computes_the_same_with_the_official_count(supernet):
    model, variables, images, peft, adapters = supernet
    for seed in range(3):
        chosen = peft.sample(adapters, jax.random.key(seed))
        subnet = pj.to_glora(peft, chosen)
        fixed = pj.adapt(
            model.apply, variables, images, rules=subnet.rules, strict=True
        )
        expected = jax.jit(peft.apply)(variables, chosen, images)
        found = jax.jit(fixed.apply)(variables, subnet.adapters, images)
        assert error(found, expected) < 1e-5
        for site in fixed.sites:
            sizes = sum(a.size for a in subnet.adapters[site.path].values())
            assert site.trainable == sizes


def test_only_the_drawn_path_learns(supernet):
    _, variables, images, peft, adapters = supernet
    chosen = dict(adapters)
    for path, p in adapters.items():
        if "structure" in p:
            chosen[path] = {**p, "structure": np.array([0, 3, 0, 0, 0], np.int32)}
    trainable, frozen = peft.partition(chosen)

    def loss(trainable):
        return peft.apply(variables, peft.combine(trainable, frozen), images).std()

    for path, p in jax.jit(jax.grad(loss))(trainable).items():
        for name, g in p.items():
            drawn = path.startswith("head") or name in ("b_in", "b_out")
            assert bool((g != 0).any()) == drawn, (path, name)


def test_stacked_layers_cannot_be_fixed():
    model = ViT(8, 4, width=16, depth=2, num_heads=2, mlp_dim=24, scan_layers=True)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(1), images)
    rules = {"blocks/mlp/fc1/kernel": pj.GLoRASupernet(rank=3)}
    peft = pj.adapt(model.apply, variables, images, rules=rules)
    with pytest.raises(ValueError, match="blocks/mlp/fc1/kernel: .*unstack"):
        pj.to_glora(peft, peft.init(jax.random.key(0)))


def test_what_sites_share_stays_with_them(supernet):
    model, variables, images, _, _ = supernet
    rules = {
        "blocks_0/mlp/fc1/kernel": pj.GLoRASupernet(rank=3),
        "blocks_1/mlp/fc1/kernel": pj.Composition(
            modules=2, rank=2, granularity="global"
        ),
    }
    peft = pj.adapt(model.apply, variables, images, rules=rules)
    adapters = peft.sample(peft.init(jax.random.key(0)), jax.random.key(3))
    own = peft.sites[0].trainable
    assert f"{own + 2:,} trainable parameters" in peft.summary()
    subnet = pj.to_glora(peft, adapters)
    fixed = pj.adapt(model.apply, variables, images, rules=subnet.rules)
    found = fixed.apply(variables, subnet.adapters, images)
    assert error(found, peft.apply(variables, adapters, images)) < 1e-5
