"""The Vision Transformer's names, shapes, counts, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from peftjax.models.vit import SIZES, ViT, vit

SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "width": 32,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 48,
    "num_classes": 5,
}


def paths(**fields):
    model = ViT(**{**SMALL, **fields})
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {k: v.shape for k, v in flatten_dict(variables["params"], sep="/").items()}


def test_names_and_shapes():
    block = {
        "norm1/scale": (32,),
        "norm1/bias": (32,),
        "attn/qkv/kernel": (32, 96),
        "attn/qkv/bias": (96,),
        "attn/proj/kernel": (32, 32),
        "attn/proj/bias": (32,),
        "norm2/scale": (32,),
        "norm2/bias": (32,),
        "mlp/fc1/kernel": (32, 48),
        "mlp/fc1/bias": (48,),
        "mlp/fc2/kernel": (48, 32),
        "mlp/fc2/bias": (32,),
    }
    rest = {
        "patch_embed/kernel": (4, 4, 3, 32),
        "patch_embed/bias": (32,),
        "pos_embed": (1, 5, 32),
        "cls_token": (1, 1, 32),
        "norm/scale": (32,),
        "norm/bias": (32,),
    }
    head = {"head/kernel": (32, 5), "head/bias": (5,)}
    unrolled = {f"blocks_{i}/{k}": v for i in range(3) for k, v in block.items()}
    scanned = {f"blocks/{k}": (3, *v) for k, v in block.items()}
    assert paths() == unrolled | rest | head
    assert paths(scan_layers=True) == scanned | rest | head
    assert paths(num_classes=0) == unrolled | rest
    pooled = {k: v for k, v in rest.items() if k != "cls_token"}
    pooled["pos_embed"] = (1, 4, 32)
    assert paths(pooling="mean") == unrolled | pooled | head
    separate = paths(fused_qkv=False)
    assert {k for k in separate if k.startswith("blocks_1/attn")} == {
        f"blocks_1/attn/{name}/{leaf}"
        for name in ("q", "k", "v", "proj")
        for leaf in ("kernel", "bias")
    }
    assert separate["blocks_1/attn/q/kernel"] == (32, 32)


@pytest.mark.parametrize("patch", [16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_of_the_published_sizes(size, patch):
    model = vit(f"{size}/{patch}", num_classes=0)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = sum(leaf.size for leaf in jax.tree.leaves(variables))
    d, m, tokens = model.width, model.mlp_dim, 1 + (224 // patch) ** 2
    block = 4 * d * (d + 1) + 2 * d * m + m + d + 4 * d
    embed = 3 * patch**2 * d + d + d + tokens * d
    assert found == embed + model.depth * block + 2 * d
    if (size, patch) == ("B", 16):
        assert found == 85_798_656


def test_published_sizes_take_fields_and_refuse_other_names():
    assert vit("S/32", num_classes=7, width=400).width == 400
    for name in ("B", "B/", "X/16", "B/0", "B/x"):
        with pytest.raises(ValueError, match="B/16"):
            vit(name)


@pytest.mark.parametrize(
    ("fields", "shape", "dtype", "message"),
    [
        ({"image_size": 9}, (1, 9, 9, 3), "float32", "image_size.*patch_size=4.*9"),
        ({"image_size": 2}, (1, 2, 2, 3), "float32", "image_size"),
        ({"num_heads": 5}, (1, 8, 8, 3), "float32", r"divide width.*\(32, 5\)"),
        ({"pooling": "max"}, (1, 8, 8, 3), "float32", "'max'"),
        ({"drop_path": 1.0}, (1, 8, 8, 3), "float32", "drop_path"),
        ({"dropout": -0.1}, (1, 8, 8, 3), "float32", "dropout"),
        ({}, (1, 12, 12, 3), "float32", r"\(1, 12, 12, 3\).*resize_pos_embed"),
        ({}, (8, 8, 3), "float32", r"\[batch, 8, 8, channels\]"),
        ({}, (1, 8, 8, 3), "uint8", "uint8.*images / 255"),
    ],
)
def test_bad_fields_and_images_are_named(fields, shape, dtype, message):
    model = ViT(**{**SMALL, **fields})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape, dtype))


def test_rectangular_images():
    model = ViT(**{**SMALL, "image_size": (8, 12)})
    images = jnp.zeros((2, 8, 12, 3))
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert model.grid == (2, 3)
    assert variables["params"]["pos_embed"].shape == (1, 1 + 6, 32)
    assert logits.shape == (2, 5)
