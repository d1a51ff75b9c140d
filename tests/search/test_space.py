"""GLoRA's search space: counts, distribution, and drawing in a training step."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.models.vit import ViT
from peftjax.search import Space, draw
from tests.helpers.goldens import load

pytestmark = pytest.mark.slow

LINEAR = r"blocks(_\d+)?/(attn/(qkv|proj)|mlp/fc\d)/kernel"


@cache
def vit_b(rank):
    """Return the space of a ViT-B/16 from its shapes."""
    model = ViT(224, 16)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rules = pj.presets.rules("vit", pj.GLoRASupernet(rank))
    return Space(pj.adapt(model.apply, variables, images, rules=rules))


@cache
def small(scan=False):
    """Return plan, variables and images of a small supernet, and its adapters."""
    model = ViT(
        8,
        4,
        width=16,
        depth=2,
        num_heads=2,
        mlp_dim=24,
        num_classes=3,
        scan_layers=scan,
    )
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    rules = {LINEAR: pj.GLoRASupernet(rank=3), "head/.*": pj.Full()}
    peft = pj.adapt(model.apply, variables, images, rules=rules)
    return peft, variables, images, jax.jit(peft.init)(jax.random.key(2))


def dense(rank=2, bias=True, **ranks):
    model, x = nn.Dense(5, use_bias=bias), jnp.ones((3, 6))
    variables = model.init(jax.random.key(0), x)
    rules = {"kernel": pj.GLoRASupernet(rank)}
    return Space(pj.adapt(model.apply, variables, x, rules=rules), **ranks)


def every(space):
    """Return all candidates."""
    grid = np.stack(np.meshgrid(*space.choices * space.layers, indexing="ij"), -1)
    return grid.reshape(-1, space.layers, 5)


@pytest.mark.parametrize(
    ("rank", "largest", "mean"),
    [(2, 884_832, 0.31e6), (4, 1_603_776, 0.50e6), (8, 3_041_664, 0.88e6)],
)
def test_random_subnets_of_vit_b_are_as_large_as_the_released_sampler_s(
    rank, largest, mean
):
    space = vit_b(rank)
    assert space.layers == 48
    assert space.count(np.full((48, 5), (3, 3, 3, 2, 2))) == largest
    drawn = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 1000))
    for genes in (drawn, space.random(np.random.default_rng(0), 1000)):
        counts = space.count(genes)
        # the number it is compared with has two digits
        assert abs(counts.mean() - mean) < 0.005e6 + 5 * counts.std() / 1000**0.5


def test_counts_are_those_of_the_released_code():
    golden, space = load("glora_param_count_vitb_r4"), vit_b(4)
    order = [
        f"blocks_{i}/{name}/kernel"
        for i in range(12)
        for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    ]
    rows = [order.index(site.path) for site, _ in space.supernets]
    codes = golden["config_codes"][:, rows]
    np.testing.assert_array_equal(space.count(codes), golden["params"])


def test_all_432_structures_of_a_layer():
    space = dense()
    candidates = every(space)
    assert len(candidates) == len(np.unique(candidates, axis=0)) == 432
    method = pj.GLoRASupernet(2)
    layer = pj.Layer(6, 5)
    expected = [method.subnet(codes).count(layer) for codes in candidates[:, 0]]
    np.testing.assert_array_equal(space.count(candidates), expected)
    drawn = space.random(np.random.default_rng(0), 20_000)
    _, found = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == 432  # and none five standard deviations off
    assert np.abs(found - 20_000 / 432).max() < 5 * (20_000 / 432) ** 0.5


def test_without_a_bias_d_trains_nothing():
    for bias in (True, False):
        space = dense(bias=bias)
        candidates = every(space)
        of_d = np.array([0, 1, 5])[candidates[:, 0, 3]]
        unused = space.count(candidates) - space.trained(candidates)
        np.testing.assert_array_equal(unused, 0 * of_d if bias else of_d)


def test_ranks_below_the_supernet_s():
    space = dense(rank=4, ranks=(2, 4))
    assert len(every(space)) == 5 * 5 * 4 * 3 * 3
    fixed = pj.GLoRA((2, 4, 2))
    assert space.count([[3, 4, 3, 2, 2]]) == fixed.count(pj.Layer(6, 5))
    adapters = space.peft.init(jax.random.key(0))
    placed = space.place(adapters, np.array([[3, 2, 4, 2, 0]]))["kernel"]
    assert placed["structure"].tolist() == [3, 2, 3, 2, 0]
    assert placed["ranks"].tolist() == [2, 4, 4]
    method, _ = pj.GLoRASupernet(4).to_glora(placed)
    assert space.count([[3, 2, 4, 2, 0]]) == method.count(pj.Layer(6, 5))


@pytest.mark.parametrize("scan", [False, True])
def test_placing_gives_every_layer_its_row(scan):
    peft, _, _, adapters = small(scan)
    space = Space(peft)
    assert space.layers == 8
    genes = space.random(np.random.default_rng(0), 1)[0]
    frozen = peft.partition(adapters)[1]
    placed = jax.jit(space.place)(frozen, genes)
    assert jax.tree.structure(placed) == jax.tree.structure(frozen)
    rows = [placed[s.path]["structure"].reshape(-1, 5) for s, _ in space.supernets]
    np.testing.assert_array_equal(np.concatenate(rows), genes)
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(placed)):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


@pytest.mark.parametrize("scan", [False, True])
def test_drawing_in_a_training_step(scan):
    """A step that draws compiles once, and random subnets learn with it."""
    peft, variables, images, adapters = small(scan)
    labels, update = jnp.array([0, 1, 2, 0]), draw(peft)
    optimizer = optax.adam(1e-2)
    trainable, frozen = peft.partition(adapters)
    count = 0

    def loss(trainable, frozen):
        logits = peft.apply(variables, peft.combine(trainable, frozen), images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @jax.jit
    def train(trainable, frozen, moments, step):
        nonlocal count
        count += 1
        value, grads = jax.value_and_grad(loss)(trainable, frozen)
        changes, moments = optimizer.update(grads, moments)
        trainable = optax.apply_updates(trainable, changes)
        key = jax.random.fold_in(jax.random.key(5), step)
        frozen = update(frozen, trainable, grads, step, key)
        return trainable, frozen, moments, value

    evaluate = jax.jit(loss)
    keys = jax.random.split(jax.random.key(9), 20)
    subnets = [jax.jit(update)(frozen, None, None, None, key) for key in keys]
    before = np.mean([evaluate(trainable, subnet) for subnet in subnets])
    moments, seen = optimizer.init(trainable), set()
    for step in range(60):
        trainable, frozen, moments, _ = train(trainable, frozen, moments, step)
        seen.add(np.concatenate(jax.tree.leaves(frozen), None).tobytes())
    after = np.mean([evaluate(trainable, subnet) for subnet in subnets])
    assert count == 1 and len(seen) == 60
    assert after < 0.5 * before


def test_drawing_is_decided_by_the_key_alone():
    peft, _, _, adapters = small()
    frozen, update = peft.partition(adapters)[1], jax.jit(draw(peft))
    first, again, other = (
        update(frozen, None, None, None, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert not all(
        bool((first[s.path]["structure"] == other[s.path]["structure"]).all())
        for s, _ in Space(peft).supernets
    )


def test_other_rules_and_ranks_are_refused():
    model, x = nn.Dense(5), jnp.ones((3, 6))
    variables = model.init(jax.random.key(0), x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": pj.GLoRA(2)})
    for refused in (Space, draw):
        with pytest.raises(ValueError, match=r"without a supernet.*found GLoRA\(rank"):
            refused(peft)
    for ranks in ((), (0, 2), (2, 3), (2, 2)):
        with pytest.raises(ValueError, match=r"kernel: ranks=.*1 … 2"):
            dense(ranks=ranks)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (np.zeros((2, 5), int), r"shape \(2, 5\): expected \[\.\.\., 1, 5\]"),
        ([[4, 0, 0, 0, 0]], r"gene A of layer 0: expected one of \[0, 1, 2, 3\]"),
        ([[0, 0, 1, 0, 0]], r"gene C of layer 0: expected one of \[0, 2, 3\]"),
        ([[0, 0, 0, 0, -1]], r"gene E of layer 0: expected one of \[0, 1, 2\]"),
    ],
)
def test_genes_outside_the_space(genes, message):
    with pytest.raises(ValueError, match=message):
        dense().count(genes)
