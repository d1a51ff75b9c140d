"""DINOv2: the original's outputs, names, positions, and the round trip to its files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax as pj
from peftjax.models import CheckpointError, Dinov2, Dinov2Config, load, save
from peftjax.models.dinov2.positions import bicubic, interpolate
from peftjax.presets import rules
from tests.helpers.model_cases import close, same_tree

pytestmark = pytest.mark.slow

CONFIG = Dinov2Config(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=4,
    layerscale_value=0.5,
)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 12, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images):
    """Return the parameters of a classifier, all of them random."""
    shapes = jax.eval_shape(Dinov2(CONFIG, head=5).init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.3, 0.3, leaf.shape), leaf.dtype), shapes
    )


@pytest.mark.realdata
@pytest.mark.parametrize("scan", [False, True])
def test_real_weights_give_the_outputs_of_the_original(shared_data, tmp_path, scan):
    folder = shared_data / "weights" / "dinov2_s14_focus"
    model, variables = load(folder, dtype=jnp.float32, scan_layers=scan)
    expected = np.load(folder / "reference.npz", allow_pickle=False)
    rng = np.random.RandomState(0)
    for side in (224, 98):
        pixels = rng.randn(2, 3, side, side).astype(np.float32)
        encoding = jax.jit(model.apply)(variables, pixels.transpose(0, 2, 3, 1))
        patches = encoding.hidden[:, 1:9]
        np.testing.assert_allclose(encoding.pooled, expected[f"cls_{side}"], atol=2e-4)
        recorded = expected[f"patches_{side}_first8"]
        np.testing.assert_allclose(patches, recorded, atol=2e-4)
    model, variables = load(folder, scan_layers=scan)
    save(tmp_path / "again", model, variables, source=folder)
    original = load_file(folder / "model.safetensors")
    # The mask of pretraining has no part in what the model computes.
    del original["embeddings.mask_token"]
    same_tree(original, load_file(tmp_path / "again" / "model.safetensors"))


@pytest.mark.parametrize("scan", [False, True])
def test_load_save_load_gives_the_same_bits(tmp_path, images, variables, scan):
    save(tmp_path / "one", Dinov2(CONFIG, head=5), variables)
    model, loaded = load(tmp_path / "one", scan_layers=scan)
    assert model == Dinov2(CONFIG, head=5, scan_layers=scan)
    expected = Dinov2(CONFIG, head=5).apply(variables, images)
    close(model.apply(loaded, images), expected)
    save(tmp_path / "two", model, loaded)
    first, second = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    same_tree(load_file(first), load_file(second))
    bare, _ = load(tmp_path / "one", head="none")
    assert bare == Dinov2(CONFIG)


def test_names_and_configuration_are_those_of_the_original(tmp_path, variables):
    save(tmp_path / "model", Dinov2(CONFIG, head=5), variables)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["Dinov2ForImageClassification"]
    assert (config["model_type"], len(config["id2label"])) == ("dinov2", 5)
    shapes = {
        name: tensor.shape
        for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()
    }
    layer = "dinov2.encoder.layer.1"
    expected = {
        "dinov2.embeddings.cls_token": (1, 1, 16),
        "dinov2.embeddings.position_embeddings": (1, 17, 16),
        "dinov2.embeddings.patch_embeddings.projection.weight": (16, 3, 4, 4),
        f"{layer}.attention.attention.query.weight": (16, 16),
        f"{layer}.layer_scale1.lambda1": (16,),
        f"{layer}.mlp.fc1.weight": (64, 16),
        "classifier.weight": (5, 32),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 2 * 18 + 8


def test_a_block_scales_its_branches(images, variables):
    bare = {name: x for name, x in variables["params"].items() if name != "head"}
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: x * (not path[-1].key.startswith("scale")), bare
    )
    other = {**zero, "blocks_1": {**zero["blocks_1"], "attn": bare["blocks_0"]["attn"]}}
    run = jax.jit(Dinov2(CONFIG).apply)
    hidden = [run({"params": p}, images).hidden for p in (bare, zero, other)]
    assert float(jnp.abs(hidden[0] - hidden[1]).max()) > 0.1
    np.testing.assert_array_equal(hidden[1], hidden[2])


def test_positions_are_interpolated_as_torch_does():
    # Halfway between two samples and a quarter beyond, a = -0.75.
    quarter = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
    np.testing.assert_allclose(bicubic(8, 4)[4], quarter, atol=1e-7)
    np.testing.assert_allclose(bicubic(8, 4)[3], quarter[::-1], atol=1e-7)
    np.testing.assert_allclose(bicubic(7, 37).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(bicubic(5, 5), np.eye(5))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1, 10, 2)), jnp.float32)
    assert interpolate(table, (3, 3)) is table
    np.testing.assert_array_equal(interpolate(table, (2, 4))[:, 0], table[:, 0])


def test_branches_are_dropped_at_random(images, variables):
    config = dataclasses.replace(CONFIG, drop_path_rate=0.5)
    model = Dinov2(config, head=5)
    run = jax.jit(lambda key: model.apply(variables, images, train=True, rngs=key))
    first, second = (run({"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: expected False"),
        ({"hidden_act": "relu"}, "hidden_act: expected 'gelu'"),
        ({"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"drop_path_rate": 1.0}, "drop_path_rate in"),
        ({"image_size": 12}, "position_embeddings: expected shape"),
    ],
)
def test_what_the_model_does_not_compute_is_refused(
    tmp_path, variables, entry, message
):
    save(tmp_path / "model", Dinov2(CONFIG, head=5), variables)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entry}))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model")


def test_images_that_do_not_fit_are_refused(images, variables):
    for wrong in (images[:, :7], images[..., :1], images.astype(np.uint8)):
        with pytest.raises(ValueError, match="expected floating images"):
            Dinov2(CONFIG, head=5).apply(variables, wrong)
    with pytest.raises(ValueError, match="one of none for a Dinov2"):
        pj.models.family_of(Dinov2(CONFIG)).with_head(Dinov2(CONFIG), "regression")


def test_an_unknown_tensor_is_refused(tmp_path, variables):
    save(tmp_path / "model", Dinov2(CONFIG, head=5), variables)
    file = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(file), "registers": np.zeros(3, np.float32)}, file)
    with pytest.raises(CheckpointError, match="registers"):
        load(tmp_path / "model")


@pytest.mark.parametrize("scan", [False, True])
def test_adapters_go_where_a_vit_has_them(images, scan):
    model = Dinov2(CONFIG, head=5, scan_layers=scan)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    for method in (pj.LoRA(rank=2, alpha=3.0), pj.SSF(), pj.Hydra(rank=2)):
        chosen = rules("dinov2", method)
        peft = pj.adapt(model.apply, variables, images, rules=chosen, strict=True)
        assert all(site.fast for site in peft.sites)
        paths = {site.path for site in peft.sites}
        assert ("patch_embed/kernel" in paths) == isinstance(method, pj.SSF)
        assert "head/kernel" in paths
