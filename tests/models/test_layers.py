"""What model families share: the two layouts of layers, and stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models.dinov2 import Dinov2, Dinov2Config
from peftjax.models.layers import drop_path, stack_layers, unstack_layers


@pytest.fixture
def layers():
    keys = jax.random.split(jax.random.key(0), 11)
    tree = {
        f"blocks_{i}": {
            "fc": {"kernel": jax.random.normal(k, (2, 3))},
            "scale": k[None],
        }
        for i, k in enumerate(keys)
    }
    return {**tree, "norm": {"bias": jnp.ones(3)}}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and bool((x == y).all())


def test_stack_keeps_numeric_order_and_unstack_inverts_it(layers):
    stacked = stack_layers(layers)
    assert set(stacked) == {"blocks", "norm"}
    kernels = stacked["blocks"]["fc"]["kernel"]
    assert kernels.shape == (11, 2, 3)
    # Layer 10 sorts before layer 2 as text.
    np.testing.assert_array_equal(kernels[10], layers["blocks_10"]["fc"]["kernel"])
    assert_same(unstack_layers(stacked), layers)


def test_neither_changes_its_argument(layers):
    before = jax.tree.structure(layers)
    stacked = stack_layers(layers)
    within = jax.tree.structure(stacked)
    unstack_layers(stacked)
    assert jax.tree.structure(layers) == before
    assert jax.tree.structure(stacked) == within


def test_layers_at_any_depth_under_another_name(layers):
    renamed = {k.replace("blocks", "layer"): v for k, v in layers.items()}
    nested = {"params": {"encoder": renamed}, "batch_stats": {}}
    stacked = stack_layers(nested, name="layer")
    assert stacked["params"]["encoder"]["layer"]["fc"]["kernel"].shape == (11, 2, 3)
    assert_same(unstack_layers(stacked, name="layer"), nested)


def test_adapters_keyed_by_whole_paths():
    adapters = {
        "blocks_0/attn/qkv/kernel": {"a": jnp.zeros((4, 2)), "b": jnp.ones((2, 5))},
        "blocks_1/attn/qkv/kernel": {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 5))},
        "head/kernel": {"value": jnp.ones((4, 3))},
    }
    stacked = stack_layers(adapters)
    assert set(stacked) == {"blocks/attn/qkv/kernel", "head/kernel"}
    assert stacked["blocks/attn/qkv/kernel"]["a"].shape == (2, 4, 2)
    assert_same(unstack_layers(stacked), adapters)


def test_abstract_trees(layers):
    shapes = jax.eval_shape(stack_layers, layers)
    assert shapes["blocks"]["fc"]["kernel"].shape == (11, 2, 3)
    back = jax.eval_shape(unstack_layers, shapes)
    assert jax.tree.structure(back) == jax.tree.structure(layers)


def test_bad_trees_are_named(layers):
    missing = {k: v for k, v in layers.items() if k != "blocks_4"}
    with pytest.raises(ValueError, match=r"blocks: expected layers 0 to 10.*3, 5"):
        stack_layers(missing)
    with pytest.raises(ValueError, match=r"blocks: expected layers of equal.*layer 2"):
        stack_layers({**layers, "blocks_2": {"fc": {"kernel": jnp.zeros((2, 3))}}})
    with pytest.raises(ValueError, match=r"stack_layers: expected.*found blocks, norm"):
        stack_layers(stack_layers(layers))
    with pytest.raises(ValueError, match=r"unstack_layers: expected.*blocks"):
        unstack_layers(layers)
    with pytest.raises(ValueError, match="blocks: the tree holds both layouts"):
        stack_layers({**layers, "blocks": {"bias": jnp.ones(3)}})
    with pytest.raises(
        ValueError, match=r"blocks: expected every leaf.*\(2,\), \(3,\)"
    ):
        unstack_layers({"blocks": {"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}})


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    rate, examples = 0.25, 10_000
    x = jnp.ones((examples, 2, 3))
    y = np.asarray(drop_path(x, rate, jax.random.key(0)))
    kept = y[:, 0, 0] > 0
    np.testing.assert_array_equal(y, np.where(kept, y.max(), 0)[:, None, None] * x)
    np.testing.assert_allclose(y.max(), 1 / (1 - rate), rtol=np.finfo(np.float32).eps)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / examples)


def test_drop_path_takes_a_traced_rate_and_keeps_the_dtype():
    x = jnp.ones((8, 4), jnp.bfloat16)
    y = jax.jit(drop_path)(x, jnp.float32(0.5), jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(y, np.float32))) == {0.0, 2.0}
    np.testing.assert_array_equal(drop_path(x, 0.0, jax.random.key(0)), x)
    assert drop_path(x, 0.5, None) is x


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12),
    reason="JAX 0.10 drops the barrier before it fuses; 0.11 was not tried",
)
def test_each_layer_costs_the_same_backwards():
    """Without a barrier each layer sums the residual stream's gradient anew."""

    def flops(depth):
        config = Dinov2Config(
            hidden_size=8,
            num_hidden_layers=depth,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            mlp_ratio=2,
        )
        model, images = Dinov2(config, head=2), jnp.ones((4, 8, 8, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        gradient = jax.jit(jax.grad(lambda v: model.apply(v, images).sum()))
        return gradient.lower(variables).compile().cost_analysis()["flops"]

    first, second, third = map(flops, (2, 4, 6))
    assert third - second == second - first
